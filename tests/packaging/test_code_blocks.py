"""The Python blocks of README and docs run, each page in one namespace and in a folder with the files that it names."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from detcam.demo.labels import write_coco
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from tests.adapters.onnx.networks import export

REPOSITORY = Path(__file__).resolve().parents[2]
RUN_ELSEWHERE = {"extending.md", "transformers.md"}
"""Pages whose blocks other tests run, which look at what they give."""
PAGES = sorted({"README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))})
Names = dict[str, Any]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in a language, in order."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.S | re.M)
    return [content for name, content in found if name == language]


def python_blocks(page: str) -> list[str]:
    return blocks(page, "python")


def commands(page: str) -> list[list[str]]:
    """The arguments of each ``detcam`` command in the blocks without a language."""
    lines = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("detcam ")]


PAGES_WITH_PYTHON = [page for page in PAGES if python_blocks(page) and Path(page).name not in RUN_ELSEWHERE]


def demo_adapter() -> Any:
    import detcam

    return detcam.adapt(load_demo_detector(), names=DEMO_NAMES)


def of_readme(monkeypatch: pytest.MonkeyPatch) -> Names:
    from torchvision.models import detection

    monkeypatch.setattr(detection, "fasterrcnn_resnet50_fpn_v2", lambda weights: load_demo_detector())
    return {}


def of_migrating(monkeypatch: pytest.MonkeyPatch) -> Names:
    import torch
    import torchvision

    original = torchvision.models.resnet50
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: original())
    image = np.random.default_rng(0).random((64, 64, 3), np.float32)
    return {"rgb_img": image, "input_tensor": torch.from_numpy(image).permute(2, 0, 1)[None]}


def of_black_boxes(monkeypatch: pytest.MonkeyPatch) -> Names:
    import detcam

    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    files = {form: export(Path(), form) for form in ("grid", "other")}
    Image.fromarray(draw_scene(28).image[100:164, 150:214]).save("street.png")
    adapt = detcam.adapt
    monkeypatch.setattr(
        detcam, "adapt", lambda path, **options: adapt(files["other" if "decode" in options else "grid"], **options)
    )
    return {"my_server": lambda image: (np.array([[9.0, 9.0, 40.0, 40.0]]), np.array([0.9]), np.array([0]))}


def of_planted_causes(monkeypatch: pytest.MonkeyPatch) -> Names:
    from detcam.benchmarking import planted

    monkeypatch.setattr(planted, "evaluate", lambda *args, **options: [])  # trains for minutes
    return {"heatmap": None}


def of_reports(_: pytest.MonkeyPatch) -> Names:
    import detcam

    for folder in ("report-old", "report-new", "report"):
        detcam.audit(demo_adapter(), "val", "instances_val.json", out=folder, explain=1, explain_missed=0)
    return {}


def of_models(monkeypatch: pytest.MonkeyPatch) -> Names:
    from tests.packaging import stand_ins

    names = stand_ins.names()
    for name, module in stand_ins.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return names


SETUPS: dict[str, Callable[[pytest.MonkeyPatch], Names]] = {
    "README.md": of_readme,
    "docs/migrating.md": of_migrating,
    "docs/models.md": of_models,
    "docs/black-boxes.md": of_black_boxes,
    "docs/comparing-audits.md": of_reports,
    "docs/repairing-errors.md": of_reports,
    "docs/planted-causes.md": of_planted_causes,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("registries_as_they_were")
@pytest.mark.parametrize("page", PAGES_WITH_PYTHON)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import detcam

    monkeypatch.chdir(tmp_path)
    scene = draw_scene(28)
    for name in ("street.jpg", "street.png"):
        Image.fromarray(scene.image).save(name)
    file = write_coco(tmp_path, [scene], images="val")
    for folder, name in (("val", "instances_val.json"), ("images", "instances.json"), ("train", "train.json")):
        content = json.loads(file.read_bytes())
        Path(name).write_text(json.dumps(content))
        Path(folder).mkdir(exist_ok=True)
        Image.fromarray(scene.image).save(Path(folder) / content["images"][0]["file_name"])
    Path("street").mkdir()
    Image.fromarray(scene.image[96:, 128:]).save("street/scene.png")
    names: Names = {"__name__": "page", "detcam": detcam, "model": demo_adapter()}
    names |= SETUPS.get(page, lambda _: {})(monkeypatch)
    for number, block in enumerate(python_blocks(page)):
        if page == "README.md" and "audit" in block:
            names["model"] = demo_adapter()  # the model of the block before has the classes of COCO
        exec(compile(block, f"{page}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_exist(page: str) -> None:
    """Each command of a page has these options: its arguments are parsed, up to files that are not here."""
    from typer.main import get_command

    from detcam.cli.app import app

    for arguments in commands(page):
        result = CliRunner().invoke(get_command(app), [*arguments, "--help"])
        assert result.exit_code == 0, f"{page}: detcam {shlex.join(arguments)}\n{result.output}"
        known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", result.output))
        used = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
        assert used <= known, f"{page}: {sorted(used - known)} of detcam {shlex.join(arguments)}"
