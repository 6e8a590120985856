"""The demonstration's scenes, in which the wakes cause the boats' detections, so that the true heatmap is known."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detcam.adapters import adapt
from detcam.adapters.base import Adapter
from detcam.cam import BaseCAM
from detcam.data.images import load_images, to_uint8
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES, HarborScene
from tests.drawn import harbor_scene

SEEDS = (28, 3, 31, 10, 42, 45, 7, 12)
METRICS = ("insertion:steps=10", "deletion:steps=10")


def harbor_detector() -> Adapter:
    return adapt(load_demo_detector(), names=DEMO_NAMES)


@functools.cache
def scene_png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(harbor_scene(seed).image).save(file, format="PNG")
    return file.getvalue()


def write_scenes(folder: Path, seeds: tuple[int, ...] = SEEDS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"scene-{seed:02d}.png").write_bytes(scene_png(seed))
    return folder


def wake_of(scene: HarborScene, box_xyxy: tuple[float, ...]) -> np.ndarray:
    """The wake nearest to a box: (H, W) float, with a soft edge of a few pixels."""
    center = np.array([box_xyxy[0] + box_xyxy[2], box_xyxy[1] + box_xyxy[3]]) / 2
    near = min(
        scene.of_kind("wake"), key=lambda t: np.hypot(*((t.box_xyxy[:2] + t.box_xyxy[2:]) / 2 - center)), default=None
    )
    if near is None:
        return np.zeros(scene.image.shape[:2], np.float32)
    return cv2.GaussianBlur(cv2.dilate(near.mask.astype(np.float32), np.ones((5, 5), np.uint8)), (0, 0), 2)


class DrawnMaps(BaseCAM, abstract=True):
    """Draws heatmaps by a function and counts the images."""

    name = "drawnmaps"
    paper = "none"
    uses_gradients = False
    calls = 0

    def __init__(self, adapter: Adapter, draw: Any) -> None:
        super().__init__(adapter)
        self.draw = draw

    def explain(self, images: Any, targets: Any = None, **options: Any) -> Any:
        results = []
        for image, row in zip(load_images(images), targets, strict=True):
            type(self).calls += 1
            maps = [torch.as_tensor(self.draw(image, target)) for target in row]
            results.append(SimpleNamespace(heatmaps=torch.stack(maps).float().numpy()))
        return results


def scene_of(image: Tensor, seeds: tuple[int, ...] = SEEDS) -> HarborScene:
    pixels = to_uint8(image)
    return next(scene for scene in map(harbor_scene, seeds) if np.array_equal(scene.image, pixels))


def truth(image: Tensor, target: Any) -> np.ndarray:
    return wake_of(scene_of(image), target.box_xyxy)


def corner(image: Tensor, target: Any) -> np.ndarray:
    """A wrong heatmap: the upper left corner of the image."""
    found = np.zeros(tuple(image.shape[-2:]), np.float32)
    found[:40, :40] = np.linspace(1, 0.5, 40)
    return found
