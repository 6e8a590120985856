"""ONNX files on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.adapters.onnx.networks import export, patch
from tests.cli.files import Command

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_explain_takes_an_onnx_file(detcam_command: Command, tmp_path: Path) -> None:
    Image.fromarray((patch() * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    options: list[Any] = ["--names", "red,blue", "--top-k", 1, "--method", "drise:passes=20", "--out", tmp_path / "out"]
    code, out, err = detcam_command("explain", tmp_path / "a.png", "--model", export(tmp_path, "grid"), *options)
    assert code == 0, out + err
    assert list((tmp_path / "out").rglob("*.png"))
    code, out, err = detcam_command("explain", tmp_path / "a.png", "--model", export(tmp_path, "other"), *options)
    assert code == 2
    assert "    def decode(output):\n        raw = output" in err
