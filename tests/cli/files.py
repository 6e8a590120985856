"""Images that the command reads, and the index that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detcam.explanation.writer import EXPLANATIONS_FILE

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
CLASSIFIER = ("--model", "mobilenet_v3_small", "--weights", "none", "--image-size", "64")
Command = Callable[..., tuple[int, str, str]]
"""The fixture `detcam_command`: from arguments to the exit code, stdout and stderr."""


def save_image(path: Path, seed: int = 0, size_hw: tuple[int, int] = (90, 120), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def read_entries(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / EXPLANATIONS_FILE).read_text(encoding="utf-8"))
    entries: list[dict[str, Any]] = content["images"]
    return entries
