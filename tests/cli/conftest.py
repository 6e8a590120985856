"""The command as a function, and a small detector for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from detcam.cli.app import app
from tests.cli.files import DETECTOR, Command


@pytest.fixture
def detcam_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app([str(argument) for argument in arguments], prog_name="detcam")
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options for a small detector with four classes and seeded weights."""
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    path = tmp_path_factory.mktemp("weights") / "cells.pth"
    torch.save(model.half().state_dict(), path)
    return ("--model", DETECTOR, "--weights", str(path), "--names", "red,white,small", "--image-size", "96")
