"""Explanations during training, and where they are logged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from detcam.auditing.monitoring import MonitorEntry, TrainingMonitor
from detcam.auditing.monitoring.monitor import summarize_cases
from detcam.auditing.monitoring.sinks import log_to
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES
from tests.auditing.comparison.records import make_case
from tests.auditing.scenes import write_scenes
from tests.helpers import Snapshot


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), (1_000_000,))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_demo_detector()


def make_monitor(scenes: Path, **options: Any) -> TrainingMonitor:
    given: dict[str, Any] = {"explain": 1, "names": DEMO_NAMES, "score_threshold": 0.5, **options}
    return TrainingMonitor(scenes.parent / "images", scenes, **given)


@pytest.fixture(scope="module")
def entry(scenes: Path, model: nn.Module) -> MonitorEntry:
    found = make_monitor(scenes)(model, 3)
    assert found is not None
    return found


def test_every_few_epochs_and_the_model_as_it_was(scenes: Path, model: nn.Module) -> None:
    logged: list[MonitorEntry] = []
    monitor = make_monitor(scenes, every=2, logger=logged.append)
    model.train()
    before = Snapshot(model)
    for epoch in range(3):
        monitor(model, epoch)
    before.check()
    model.eval()
    assert [each.epoch for each in monitor.history] == [0, 2] and logged == monitor.history
    with pytest.raises(ValueError, match="at least 1 epoch"):
        make_monitor(scenes, every=0)


def test_what_is_logged(entry: MonitorEntry) -> None:
    assert entry.scalars["explained"] == entry.scalars["confirmed"] == 1 and entry.scalars["average precision"] > 0.5
    assert entry.scalars["evidence outside the box"] > 0.9, "a wake"
    (cause,) = [name for name in entry.scalars if name.startswith("causes/")]
    assert cause.endswith(": boat, background")
    (overlay,) = entry.overlays.values()
    assert overlay.dtype == np.uint8 and overlay.ndim == 3 and overlay.shape[2] == 3


def test_summary_of_cases() -> None:
    cases = [
        make_case(0, evidence_shares={"ring": 0.75, "predicted box": 0.25}),
        make_case(1, evidence_shares={"ring": 0.25, "predicted box": 0.75}),
        make_case(2, verdict="not confirmed"),
    ]
    expected = {
        "explained": 3,
        "confirmed": 2,
        "evidence outside the box": 0.5,
        "causes/surroundings: boat, background": 2,
    }
    assert summarize_cases(cases) == expected and summarize_cases([]) == {"explained": 0, "confirmed": 0}


def test_tensorboard_file(entry: MonitorEntry, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    log_to(writer, entry)
    writer.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert {name: read.Scalars(f"detcam/{name}")[0].step for name in entry.scalars} == dict.fromkeys(entry.scalars, 3)
    assert read.Scalars("detcam/confirmed")[0].value == 1
    (name,) = entry.overlays
    assert read.Images(f"detcam/{name}")[0].width == entry.overlays[name].shape[1]


def test_weights_and_biases_offline(entry: MonitorEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="detcam")
    log_to(run, entry)
    assert run.summary["detcam/confirmed"] == 1 and run.summary["detcam/epoch"] == 3
    run.finish()
    assert list(tmp_path.rglob("*.png")), "the overlay is stored"


def test_unknown_loggers_are_refused(entry: MonitorEntry) -> None:
    log_to(None, entry)
    with pytest.raises(TypeError, match="expected a TensorBoard SummaryWriter"):
        log_to(3, entry)


def test_ultralytics_callback_takes_the_averaged_weights(scenes: Path, model: nn.Module) -> None:
    monitor = make_monitor(scenes, explain=0)
    callback = monitor.ultralytics_callback()
    callback(SimpleNamespace(model=None, ema=SimpleNamespace(ema=model), epoch=4))
    callback(SimpleNamespace(model=model, ema=None, epoch=5))
    assert [entry.epoch for entry in monitor.history] == [4, 5]


def test_lightning_callback(scenes: Path, model: nn.Module) -> None:
    lightning = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    monitor, logged = make_monitor(scenes, explain=0), list[Any]()
    callback = monitor.lightning_callback("detector")
    assert isinstance(callback, lightning.Callback)
    trainer = SimpleNamespace(current_epoch=2, logger=SimpleNamespace(experiment=logged.append))
    callback.on_train_epoch_end(trainer, SimpleNamespace(detector=model))
    assert [entry.epoch for entry in monitor.history] == [2] and logged == monitor.history
