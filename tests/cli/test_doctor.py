"""``detcam doctor``, the shell's completion, the question whether a checkpoint is trusted, and hints to valid names."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from detcam.cli import doctor
from detcam.cli.app import app
from detcam.utils.version import __version__
from tests.cli.files import Command


def test_doctor_tells_versions_devices_and_a_self_test(detcam_command: Command) -> None:
    code, out, err = detcam_command("doctor")
    assert (code, err) == (0, "")
    assert f"detcam {__version__}" in out and torch.__version__ in out
    assert "devices: cpu" in out and "self-test on cpu: 2 boxes explained" in out and "no problems found" in out
    for extra in ("onnx", "smp", "timm", "transformers", "ultralytics", "heic"):
        assert extra in out


def test_doctor_reports_what_is_broken(detcam_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "scipy":
            raise OSError("libfoo.so: cannot open shared object file")
        return real(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    code, out, _ = detcam_command("doctor")
    assert code == 1 and "1 problem found" in out
    assert "problem: scipy cannot be imported (OSError: libfoo.so: cannot open shared object file)" in out


def test_doctor_reports_a_failed_self_test(detcam_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("detcam.explanation.explain.explain", fails)
    code, out, _ = detcam_command("doctor")
    assert code == 1 and "the self-test failed on cpu (RuntimeError: no kernel image is available)" in out


def test_missing_extras_are_named(detcam_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "timm" else real(name))
    code, out, _ = detcam_command("doctor")
    assert code == 0 and "not installed: pip install 'detcam[timm]'" in out


@pytest.mark.parametrize(
    ("words", "expected"), [("detcam exp", ["explain"]), ("detcam explain --method gradcamp", ["gradcamplusplus"])]
)
def test_completion(words: str, expected: list[str]) -> None:
    variables = {"_DETCAM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "from detcam.cli.main import main; main()"],
        env={**dict(os.environ), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == expected


@pytest.fixture
def whole_model(tmp_path: Path) -> Path:
    """A file of a whole model, whose reading runs code, and an image."""
    torch.manual_seed(0)
    network = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    torch.save(nn.Sequential(*network).eval(), tmp_path / "best.pt")
    Image.new("RGB", (32, 24), "gray").save(tmp_path / "a.png")
    return tmp_path / "best.pt"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)], ids=["yes", "no", "default"])
def test_a_terminal_is_asked_once_whether_a_checkpoint_is_trusted(
    whole_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, code: int
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    monkeypatch.chdir(whole_model.parent)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit) as caught:
        app(["explain", "a.png", "--model", "best.pt", "--out", "out"], prog_name="detcam")
    err = capsys.readouterr().err
    assert int(caught.value.code or 0) == code
    assert err.count("Do you trust its source?") == 1 and "best.pt holds more than tensors" in err
    assert (whole_model.parent / "out" / "explanations.json").exists() == (code == 0)


def test_elsewhere_one_line_names_the_option(whole_model: Path, detcam_command: Command) -> None:
    code, _, err = detcam_command("explain", "a.png", "--model", "best.pt")
    assert code == 2 and len(err.splitlines()) == 1
    assert "reading it runs code from the file. If you trust its source, pass --trust-checkpoint" in err


NEAR = {
    "method": (["--model", "resnet18", "--method", "oadm"], "did you mean odam"),
    "setting": (["--model", "resnet18", "--method", "rise:pases=3"], "did you mean passes?"),
    "model": (["--model", "resnet81"], "did you mean resnet18"),
    "colormap": (["--model", "resnet18", "--colormap", "infrno"], "did you mean inferno?"),
    "layer": (["--model", "resnet18", "--target-layer", "layer9"], "did you mean layer4"),
    "class": (["--model", "resnet18", "--labels", "tiger_cta"], "did you mean tiger cat"),
    "quantity": (["--model", "resnet18", "--quantity", "scor"], "did you mean score?"),
    "option": (["--modle", "resnet18"], "--model"),
}


@pytest.mark.parametrize(("arguments", "hint"), NEAR.values(), ids=NEAR)
def test_errors_name_the_nearest_valid_name(
    detcam_command: Command, whole_model: Path, arguments: list[str], hint: str
) -> None:
    code, _, err = detcam_command("explain", "a.png", "--weights", "none", *arguments)
    assert code == 2 and hint in err, err


def test_names_of_other_libraries_have_near_ones(detcam_command: Command, whole_model: Path) -> None:
    pytest.importorskip("ultralytics")
    _, _, err = detcam_command("explain", "a.png", "--model", "yolov11n.pt")
    assert "ultralytics publishes none of that name; did you mean yolo11n.pt" in err
    pytest.importorskip("timm")
    _, _, err = detcam_command("explain", "a.png", "--model", "timm:resnet81", "--weights", "none")
    assert "did you mean resnet18" in err
