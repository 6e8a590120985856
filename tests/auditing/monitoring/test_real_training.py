"""Training monitors in real trainings of ultralytics and Lightning, which log to TensorBoard and Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from detcam.auditing.monitoring import TrainingMonitor
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.synthetic.training import training_pair
from tests.auditing.scenes import write_scenes

pytestmark = pytest.mark.slow
SCENES = (1_000_000, 1_000_001)
NAMES = DEMO_NAMES[1:]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), SCENES)


def monitor_of(labels: Path, **options: Any) -> TrainingMonitor:
    return TrainingMonitor(labels.parent / "images", labels, explain=2, score_threshold=0.5, **options)


def write_yolo_data(folder: Path, count: int) -> Path:
    """Drawn images with labels as text files, and ``data.yaml``."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in range(count):
        scene = draw_scene(seed, demo=False)
        height, width = scene.image.shape[:2]
        Image.fromarray(scene.image).save(folder / "images" / f"{seed}.png")
        lines = []
        for (left, top, right, bottom), label in zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), strict=True):
            box = (
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            )
            lines.append(" ".join([str(label - 1), *(f"{value:.6f}" for value in box)]))
        (folder / "labels" / f"{seed}.txt").write_text("\n".join(lines))
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(NAMES))
    path = folder / "data.yaml"
    path.write_text(f"path: {folder}\ntrain: images\nval: images\nnames:\n{names}")
    return path


def test_ultralytics(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    monkeypatch.chdir(tmp_path)
    monitor = monitor_of(labels, image_size=256)
    model = ultralytics.YOLO("yolo11n.yaml", task="detect")
    model.add_callback("on_train_epoch_end", monitor.ultralytics_callback())
    training: list[bool] = []
    model.add_callback("on_train_batch_end", lambda trainer: training.append(trainer.model.training))
    model.train(
        data=str(write_yolo_data(tmp_path / "data", 8)), epochs=2, imgsz=256, batch=4, workers=0, device="cpu",
        plots=False, project=str(tmp_path / "runs"), pretrained=False, verbose=False, amp=False,
    )  # fmt: skip
    assert [entry.epoch for entry in monitor.history] == [0, 1], "once an epoch"
    assert len(training) == 4 and all(training), "training goes on in training mode"


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_lightning(package: str, labels: Path, tmp_path: Path) -> None:
    lightning = pytest.importorskip(package, reason=f"{package} is not installed")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    loggers = pytest.importorskip(f"{package}.loggers")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.detector = load_demo_detector().train()

        def training_step(self, batch: list[tuple[Tensor, dict[str, Tensor]]], index: int) -> Tensor:
            assert self.detector.training, "also after the monitor has explained it"
            images, targets = zip(*batch, strict=True)
            return torch.stack(list(self.detector(list(images), list(targets)).values())).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-4)

    pairs = [training_pair(draw_scene(seed, demo=False), False) for seed in range(4)]
    monitor = monitor_of(labels, names=DEMO_NAMES)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=loggers.TensorBoardLogger(str(tmp_path), name="", version=""),
        callbacks=[monitor.lightning_callback("detector")],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Module(), DataLoader(pairs, batch_size=2, collate_fn=list))
    assert [entry.epoch for entry in monitor.history] == [0, 1]
    assert all(entry.scalars["confirmed"] >= 1 for entry in monitor.history), "the demo detector rests on wakes"
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in read.Scalars("detcam/confirmed")] == [0, 1]
    shown = [tag for tag in read.Tags()["images"] if tag.startswith("detcam/image-")]
    assert len(shown) >= 2


def test_weights_and_biases_in_a_plain_loop(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="detcam")
    monitor, model = monitor_of(labels, names=DEMO_NAMES, logger=run), load_demo_detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    image, target = training_pair(draw_scene(0, demo=False), False)
    for epoch in range(2):
        model.train()
        torch.stack(list(model([image], [target]).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor(model, epoch)
    assert run.summary["detcam/epoch"] == 1 and run.summary["detcam/evidence outside the box"] > 0.9
    run.finish()
    assert len(list(tmp_path.rglob("*.png"))) >= 2 and list(tmp_path.rglob("*.wandb"))
