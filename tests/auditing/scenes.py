"""Annotated images on disk, drawn by the package: what its own detector gets wrong on them is known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from detcam.demo.labels import write_coco
from tests.drawn import harbor_scene


def write_scenes(folder: Path, seeds: Iterable[int]) -> Path:
    """Demo scenes as PNG files below ``folder/images``, with their labels in COCO's format; returns the JSON file.

    Categories have other ids than the detector's classes, as in most data sets.
    """
    path = write_coco(folder, [harbor_scene(seed) for seed in seeds])
    data = json.loads(path.read_text())
    for entry in data["annotations"]:
        entry["category_id"] *= 10
    for entry in data["categories"]:
        entry["id"] *= 10
    path.write_text(json.dumps(data))
    return path
