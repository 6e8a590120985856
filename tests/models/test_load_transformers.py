"""Models of transformers from a folder: in Python, and with every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from detcam.adapters.transformers.detector import TransformersDetector
from detcam.data.images import load_images
from detcam.demo.labels import write_coco
from detcam.models.load import load_model
from detcam.synthetic.harbor import draw_scene
from tests.adapters.transformers.detectors import DETECTORS, image_processor

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an RT-DETR: configuration, safetensors, image processor."""
    path = tmp_path_factory.mktemp("rt_detr")
    DETECTORS["rt_detr"]().save_pretrained(path)
    image_processor("RTDetr").save_pretrained(path)
    return path


def test_a_folder_is_read_offline(folder: Path) -> None:
    adapter = load_model(f"hf:{folder}", score_threshold=0.0)
    assert isinstance(adapter, TransformersDetector)
    assert adapter.names == {0: "boat", 1: "buoy", 2: "gull"} and not adapter.model.training
    original = DETECTORS["rt_detr"]().state_dict()
    assert all(torch.equal(value, original[key]) for key, value in adapter.model.state_dict().items())
    assert adapter.prepare(load_images(torch.rand(3, 80, 100))).inputs.shape == (1, 3, 64, 96)


def test_random_weights_and_weights_of_another_file(folder: Path) -> None:
    untrained = load_model(f"hf:{folder}", weights="none")
    trained = load_model(f"hf:{folder}", weights=folder / "model.safetensors")
    name = "model.encoder_input_proj.0.0.weight"
    original = DETECTORS["rt_detr"]().state_dict()[name]
    assert torch.equal(trained.model.state_dict()[name], original)
    assert not torch.equal(untrained.model.state_dict()[name], original)
    with pytest.raises(ValueError, match="another number of classes"):
        load_model(f"hf:{folder}", weights=folder / "model.safetensors", num_classes=5)


def test_pickled_weights_need_trust(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(folder / name, tmp_path / name)
    torch.save(DETECTORS["rt_detr"]().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle files only.*--trust-checkpoint"):
        load_model(f"hf:{tmp_path}")
    assert isinstance(load_model(f"hf:{tmp_path}", trust_checkpoint=True), TransformersDetector)


def rewrite(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_code_beside_the_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    other = rewrite(
        folder, tmp_path / "own", architectures=["OwnForObjectDetection"], auto_map={"AutoModel": "own.Own"}
    )
    (other / "own.py").write_text("raise SystemExit('code of the folder was run')")
    with pytest.raises(ValueError, match="OwnForObjectDetection.*Code beside the weights is not run"):
        load_model(f"hf:{other}")
    unknown = rewrite(folder, tmp_path / "unknown", model_type="own", auto_map={"AutoConfig": "own.Config"})
    (unknown / "own.py").write_text("raise SystemExit('code of the folder was run')")
    with pytest.raises(ValueError, match="cannot read its configuration"):
        load_model(f"hf:{unknown}")


def test_missing_weights_and_folders(folder: Path, tmp_path: Path) -> None:
    larger = rewrite(folder, tmp_path / "larger", decoder_layers=3)
    with pytest.raises(ValueError, match=r"lack \d+ of RTDetrForObjectDetection"):
        load_model(f"hf:{larger}")
    with pytest.raises(ValueError, match="no folder at"):
        load_model(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=f"pass hf:{folder}"):
        load_model(str(folder))


def test_every_command(folder: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from detcam.cli.app import app

    annotations = write_coco(tmp_path / "scenes", [draw_scene(seed) for seed in (1, 2)])
    images = str(annotations.parent / "images")
    model = ["--model", f"hf:{folder}", "--score-threshold", "0.05"]
    commands = {
        "explain": [images, *model, "--top-k", "1", "--method", "odam"],
        "audit": [
            "--images",
            images,
            "--annotations",
            str(annotations),
            *model,
            "--explain",
            "1",
            "--explain-missed",
            "0",
        ],
        "benchmark": [
            "--images",
            images,
            *model,
            "--top-k",
            "1",
            "--limit",
            "1",
            "--methods",
            "odam",
            "--metrics",
            "sparseness",
        ],
    }
    for command, arguments in commands.items():
        result = CliRunner().invoke(app, [command, *arguments, "--out", str(tmp_path / command)])
        assert result.exit_code == 0, (command, result.output)
        assert any((tmp_path / command).iterdir())
