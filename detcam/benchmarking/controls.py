"""Controls: maps that do not depend on the network. A method has to outperform them to be informative."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.adapters.base import Adapter, Target
from detcam.benchmarking.specs import MethodSpec
from detcam.data.images import load_images
from detcam.geometry import normalize
from detcam.outputs import DetectionTarget, as_target
from detcam.utils.opencv import cv2

BLUR_SIGMA = 0.05
"""Standard deviation of the blur, as a share of the image's longer side."""
BLOB_SIGMA = 0.5
"""Standard deviation of the blob in the middle, as a share of half the image's side."""
FILLED_REGION = {"detection": "filled box", "segmentation": "filled region"}
"""The control that shows only the position of the prediction, by task."""
CENTER_BLOB = "blob in the middle"
"""The control of the tasks whose predictions have no position: photographers center their subjects."""

Draw = Callable[[tuple[int, int], Target, np.random.Generator], np.ndarray]
"""From image size (H, W), target and random generator to a map (H, W)."""


def reference_controls(task: str) -> tuple[str, ...]:
    """The names of the controls that the notes compare methods with, the simplest first."""
    if task not in FILLED_REGION:
        return (CENTER_BLOB,)
    return FILLED_REGION[task], f"{FILLED_REGION[task]}, blurred"


def make_controls(task: str, seed: int) -> list[MethodSpec]:
    """Make the controls of a task: noise, the position of the prediction, each sharp and blurred.

    Args:
        task: task of the adapter.
        seed: seed of the noise, which differs between images and targets.
    """
    draws: dict[str, Draw] = {"random": _draw_noise, "random, blurred": _draw_blurred_noise}
    if task in FILLED_REGION:
        draws[FILLED_REGION[task]] = fill_region
        draws[f"{FILLED_REGION[task]}, blurred"] = _draw_blurred_region
    else:
        draws[CENTER_BLOB] = _draw_blob
    return [MethodSpec(name, "control", partial(_explain, draw, seed)) for name, draw in draws.items()]


def _explain(draw: Draw, seed: int, adapter: Adapter, images: Any, targets: Sequence[Sequence[Target]]) -> list[Tensor]:
    heatmaps = []
    for image, image_targets in zip(load_images(images, channels=None), targets, strict=True):
        size_hw = (image.shape[-2], image.shape[-1])
        image_seed = zlib.crc32(image.cpu().numpy().tobytes())
        maps = [
            draw(size_hw, target, np.random.default_rng([seed, image_seed, index]))
            for index, target in enumerate(image_targets)
        ]
        stacked = torch.from_numpy(np.stack(maps)).float() if maps else torch.zeros((0, *size_hw))
        heatmaps.append(normalize(stacked))
    return heatmaps


def _draw_noise(size_hw: tuple[int, int], target: Target, generator: np.random.Generator) -> np.ndarray:
    return generator.random(size_hw)


def _draw_blurred_noise(size_hw: tuple[int, int], target: Target, generator: np.random.Generator) -> np.ndarray:
    return _blur(generator.random(size_hw))


def fill_region(size_hw: tuple[int, int], target: Target, generator: np.random.Generator | None = None) -> np.ndarray:
    """Draw a map (H, W) that is 1 in the target's mask or box and 0 elsewhere; 0 if the target has neither."""
    mask = getattr(target, "mask", None)
    if mask is not None and not isinstance(target, DetectionTarget):
        return np.asarray(mask, np.float64)
    box = as_target(target).box_xyxy
    if box is None:
        return np.zeros(size_hw)
    rows, columns = (np.arange(length) + 0.5 for length in size_hw)
    x1, y1, x2, y2 = box
    inside = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
    return inside.astype(np.float64)


def _draw_blurred_region(size_hw: tuple[int, int], target: Target, generator: np.random.Generator) -> np.ndarray:
    return _blur(fill_region(size_hw, target))


def _draw_blob(size_hw: tuple[int, int], target: Target, generator: np.random.Generator) -> np.ndarray:
    rows, columns = (np.linspace(-1, 1, length) for length in size_hw)
    return np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * BLOB_SIGMA**2))


def _blur(values: np.ndarray) -> np.ndarray:
    """Blur a map (H, W) by a Gaussian of 5 % of its longer side."""
    return np.asarray(cv2.GaussianBlur(values, (0, 0), BLUR_SIGMA * max(values.shape)))
