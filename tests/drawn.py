"""Images with known pixels, and where a color lies in them."""

from __future__ import annotations

import functools

import numpy as np

from detcam.synthetic.harbor import draw_scene

GRAY = 120
INFERNO_HOT, INFERNO_COLD = (252, 255, 164), (0, 0, 4)  # the published ends of the colormap

harbor_scene = functools.cache(draw_scene)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain(height: int, width: int, value: int = GRAY) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def colored(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Bool map of the pixels that have exactly this color."""
    return (image == color).all(axis=2)


def bounds(region: np.ndarray) -> tuple[int, int, int, int]:
    """Half-open xyxy bounds of the true pixels."""
    ys, xs = np.nonzero(region)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
