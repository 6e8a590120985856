"""Scenes as image files with annotations in COCO format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detcam.synthetic.harbor import BOAT_LABEL, DEMO_NAMES, HarborScene
from detcam.utils.files import replace_file, with_home
from detcam.visualize.overlay import save_image


def write_coco(folder: str | Path, scenes: Sequence[HarborScene], *, images: str = "images") -> Path:
    """Write scenes as PNG files and their labels in COCO format.

    Args:
        folder: folder for ``annotations.json``.
        scenes: scenes to write.
        images: name of the subfolder for the images.

    Returns:
        Path of the JSON file.
    """
    folder = with_home(folder)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes, 1):
        path = save_image(folder / images / f"scene-{scene.seed}.png", scene.image)
        height, width = scene.image.shape[:2]
        entries.append({"id": number, "file_name": path.name, "height": height, "width": width})
        for (x1, y1, x2, y2), label in zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(DEMO_NAMES) if label]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    return replace_file(folder / "annotations.json", json.dumps(content, indent=1).encode())


def label_anchored_boats(scene: HarborScene) -> HarborScene:
    """Return the scene with additional labels for the boats at anchor."""
    anchored = [item.box_xyxy[None] for item in scene.of_kind("anchored")]
    labels = np.append(scene.labels, np.full(len(anchored), BOAT_LABEL))
    return replace(scene, boxes_xyxy=np.concatenate([scene.boxes_xyxy, *anchored]), labels=labels)
