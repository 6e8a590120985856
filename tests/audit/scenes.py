"""Annotated pictures on disk, drawn by the package: what its own detector gets wrong on them is known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from detcam.demo.scenes import DEMO_NAMES, Scene, draw_scene


def write_scenes(folder: Path, seeds: Iterable[int]) -> Path:
    """Demo scenes as PNG files below ``folder/images``, with their labels in COCO's format; returns the JSON file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, seed in enumerate(seeds, 1):
        scene: Scene = draw_scene(seed)
        name = f"scene-{seed}.png"
        picture = np.asarray(scene.image)
        Image.fromarray(picture).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
        for box, label in zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), strict=True):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label * 10,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label * 10, "name": name} for label, name in enumerate(DEMO_NAMES) if label]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
