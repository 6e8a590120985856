"""Controls: maps that know nothing of the network. A method has to beat them before its map says anything."""

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
from detcam.outputs import DetectionTarget
from detcam.utils.opencv import cv2

BLUR = 0.05
"""Standard deviation of the blur, as a share of the image's longer side."""

REFERENCE = {"detection": "filled box", "segmentation": "filled region"}
"""The control that knows where the finding is and nothing else; for other tasks it is the blob in the middle."""
BLOB = "blob in the middle"

Draw = Callable[[tuple[int, int], Target, np.random.Generator], np.ndarray]


def references_of(task: str) -> tuple[str, ...]:
    """The controls against which methods are judged in words, the plainest first."""
    if task not in REFERENCE:
        return (BLOB,)
    return REFERENCE[task], f"{REFERENCE[task]}, blurred"


def controls_for(task: str, seed: int) -> list[MethodSpec]:
    """The controls that a task can have: noise, blurred noise, and the place of the finding, sharp and blurred.

    A classifier's finding has no place; a blob in the middle, where photographers put things, stands in for it.

    Args:
        task: of the adapter.
        seed: of the noise, which differs between images and targets.
    """
    drawn: dict[str, Draw] = {"random": _noise, "random, blurred": _blurred_noise}
    if task in REFERENCE:
        drawn[REFERENCE[task]] = filled
        drawn[f"{REFERENCE[task]}, blurred"] = _blurred_filled
    else:
        drawn[BLOB] = _blob
    return [MethodSpec(name, "control", partial(_explain, draw, seed)) for name, draw in drawn.items()]


def _explain(draw: Draw, seed: int, adapter: Adapter, images: Any, targets: Sequence[Sequence[Target]]) -> list[Tensor]:
    answers = []
    for image, asked in zip(load_images(images), targets, strict=True):
        size = (image.shape[-2], image.shape[-1])
        own = zlib.crc32(image.cpu().numpy().tobytes())
        maps = [draw(size, target, np.random.default_rng([seed, own, row])) for row, target in enumerate(asked)]
        found = torch.from_numpy(np.stack(maps)).float() if maps else torch.zeros((0, *size))
        answers.append(normalize(found))
    return answers


def _noise(size_hw: tuple[int, int], target: Target, generator: np.random.Generator) -> np.ndarray:
    return generator.random(size_hw)


def _blurred_noise(size_hw: tuple[int, int], target: Target, generator: np.random.Generator) -> np.ndarray:
    return blur(generator.random(size_hw))


def filled(size_hw: tuple[int, int], target: Target, generator: np.random.Generator | None = None) -> np.ndarray:
    """1 in the target's region or box, 0 elsewhere: (H, W).

    Raises:
        ValueError: the target has neither.
    """
    mask = getattr(target, "mask", None)
    if mask is not None and not isinstance(target, DetectionTarget):
        return np.asarray(mask, np.float64)
    box = getattr(target, "box_xyxy", None)
    if box is None:
        return np.zeros(size_hw)  # the whole image is asked: a flat map
    rows, columns = (np.arange(length) + 0.5 for length in size_hw)
    x1, y1, x2, y2 = box
    inside = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
    return inside.astype(np.float64)


def _blurred_filled(size_hw: tuple[int, int], target: Target, generator: np.random.Generator) -> np.ndarray:
    return blur(filled(size_hw, target))


def _blob(size_hw: tuple[int, int], target: Target, generator: np.random.Generator) -> np.ndarray:
    rows, columns = (np.linspace(-1, 1, length) for length in size_hw)
    return np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * 0.5**2))


def blur(values: np.ndarray) -> np.ndarray:
    """A map (H, W) through a Gaussian of 5 % of its longer side."""
    return np.asarray(cv2.GaussianBlur(values, (0, 0), BLUR * max(values.shape)))
