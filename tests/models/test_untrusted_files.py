"""Files of ultralytics networks: no code of theirs runs without leave, whatever they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detcam.adapters.ultralytics.architecture import check_architecture, is_plain_module
from detcam.models.load import load_model
from tests.models.markers import Marker


@pytest.mark.parametrize("name", ["yolo11n", "yolo11n.pt", "ultralytics:yolo11n", "ultralytics:yolo11n.pt"])
def test_a_file_with_a_published_name_needs_permission(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("ultralytics")
    monkeypatch.chdir(tmp_path)
    ran = tmp_path / "ran"
    torch.save({"model": Marker(ran)}, "yolo11n.pt")
    with pytest.raises(ValueError, match=r"yolo11n\.pt holds more than tensors .*--trust-checkpoint") as caught:
        load_model(name)
    assert "\n" not in str(caught.value) and not ran.exists()
    with pytest.raises(ValueError, match=r"yolo11n\.pt holds weights only"):
        load_model(name, trust_checkpoint=True)
    assert ran.exists(), "with leave it is read"


@pytest.mark.parametrize("name", ["ultralytics:mine.pt", "yolo-mine", "ultralytics:./mine.pt"])
def test_only_published_files_are_read_from_the_downloads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("ultralytics")
    cache, ran = tmp_path / "hub" / "checkpoints", tmp_path / "ran"
    cache.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for file in ("mine.pt", "yolo-mine.pt"):
        torch.save({"model": Marker(ran)}, cache / file)
    with pytest.raises(ValueError, match="publishes no .*--trust-checkpoint|no model file at"):
        load_model(name)
    assert not ran.exists()


def yolo_yaml(path: Path, **changes: Any) -> Path:
    """The architecture of YOLO11 with other fields."""
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    path.write_text(json.dumps({**tasks.yaml_model_load("yolo11.yaml"), **changes}))
    return path


@pytest.mark.parametrize("command", ["__import__('pathlib').Path('ran').touch() or nn.SiLU()", "nn.SiLU", "print()"])
def test_an_activation_is_a_module_without_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    yolo_yaml(tmp_path / "yolo11n-mine.yaml", activation=command)
    for name in ("yolo11n-mine.yaml", "yolo11n-mine", "ultralytics:yolo11n-mine.yaml"):
        with pytest.raises(ValueError, match=r"yolo11n-mine\.yaml: expected an activation such as .*got ") as caught:
            load_model(name, weights="none", trust_checkpoint=True)
        assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_an_architecture_names_only_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows could call ultralytics' loaders, and a model as a layer reads a further file."""
    monkeypatch.chdir(tmp_path)
    ran = tmp_path / "ran"
    torch.save({"model": Marker(ran)}, "evil.pt")
    yolo_yaml(tmp_path / "inner.yaml", activation="__import__('pathlib').Path('ran').touch() or nn.SiLU()")
    for module, argument in (
        ("load_checkpoint", "evil.pt"),
        ("torch_load", "evil.pt"),
        ("DetectionModel", "inner.yaml"),
        ("nn.init", "evil.pt"),
        ("torchvision.ops.nms", "evil.pt"),
        ("__builtins__", "evil.pt"),
    ):
        row = [-1, 1, module, [argument]]
        yolo_yaml(tmp_path / "yolo11n-mine.yaml", backbone=[[-1, 1, "Conv", [64, 3, 2]], row])
        with pytest.raises(ValueError, match=rf"expected the name of a layer .*got '{module}' in backbone"):
            load_model("yolo11n-mine.yaml", weights="none")
        assert not ran.exists()
    yolo_yaml(tmp_path / "yolo11n-mine.yaml", backbone="Conv")
    with pytest.raises(ValueError, match=r"expected backbone as a list of rows .*got 'Conv'"):
        load_model("yolo11n-mine.yaml", weights="none")


def test_plain_activations_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    yolo_yaml(tmp_path / "yolo11n-mine.yaml", activation="torch.nn.LeakyReLU(0.1, inplace=True)")
    adapter = load_model("yolo11n-mine.yaml", weights="none", num_classes=3, image_size=64)
    assert any(isinstance(module, nn.LeakyReLU) for module in adapter.model.modules())
    good = ("nn.SiLU()", " torch.nn.ReLU(inplace=True) ", "nn.Hardtanh(-1, 1)")
    bad = (
        "nn.SiLU",
        "SiLU()",
        "nn.init()",
        "nn.SiLU(print())",
        "nn.SiLU(**{})",
        "nn.functional.silu()",
        3,
        ["nn.SiLU()"],
    )
    assert all(is_plain_module(text) for text in good) and not any(is_plain_module(text) for text in bad)
    assert not is_plain_module("(" * 100_000) and not is_plain_module("")


def test_all_architectures_of_the_package_pass() -> None:
    cfg, tasks = pytest.importorskip("ultralytics.cfg"), pytest.importorskip("ultralytics.nn.tasks")
    files = sorted((Path(cfg.__file__).parent / "models").rglob("*.yaml"))
    assert len(files) > 20
    for file in files:
        check_architecture(file.name, tasks.yaml_model_load(str(file)), tasks)
