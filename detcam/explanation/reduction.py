"""Overlays and heatmaps of very large images, drawn at a fraction of their size in bounded memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from detcam.rendering import DeferredHeatmaps, HeatmapArray, RawMaps
from detcam.utils.opencv import cv2
from detcam.visualize.convert import ImageArray
from detcam.visualize.overlay import render

if TYPE_CHECKING:
    from detcam.explanation.result import Explanation

MAX_DRAWN_PIXELS = 2**26
"""Pixels of an image that is drawn at its own size; larger ones are drawn with at most half as many."""


def reduced_size(size_hw: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Return a size divided by the least integer that leaves at most about so many pixels."""
    step = max(math.ceil(math.sqrt(size_hw[0] * size_hw[1] / max_pixels)), 1)
    return math.ceil(size_hw[0] / step), math.ceil(size_hw[1] / step)


def drawn_image(image: ImageArray) -> ImageArray:
    """Return an image (H, W, 3) at the size at which it is drawn, each pixel the mean of a block."""
    height, width = image.shape[:2]
    if height * width <= MAX_DRAWN_PIXELS:
        return image
    new_height, new_width = reduced_size((height, width), MAX_DRAWN_PIXELS // 2)
    return np.asarray(cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_AREA))


def heatmap_at(explanation: Explanation, index: int, size_hw: tuple[int, int]) -> HeatmapArray:
    """Return one heatmap (h, w) of an explanation at another size than its image's, without computing the whole."""
    maps = explanation.maps
    if isinstance(maps, DeferredHeatmaps):
        views = tuple(_resized(view, size_hw) for view in maps.views)
        return np.asarray(DeferredHeatmaps(views)[index])
    return np.asarray(cv2.resize(maps[index], size_hw[::-1], interpolation=cv2.INTER_AREA))


def _resized(maps: RawMaps, size_hw: tuple[int, int]) -> RawMaps:
    return replace(maps, geometry=maps.geometry.with_image_size(size_hw))


def draw_overlay(
    explanation: Explanation, index: int, image: ImageArray, *, caption: str, colormap: str | int, scale: float = 1.0
) -> ImageArray:
    """Draw one target's heatmap over a reduced image.

    Args:
        explanation: the explanation.
        index: index of the target.
        image: the explanation's image, (h, w, 3) uint8, at any size.
        caption: text below the image.
        colormap: name or OpenCV number.
        scale: factor of the heatmap in [0, 1].
    """
    (height, width), (full_height, full_width) = image.shape[:2], explanation.image.shape[:2]
    mask, box = explanation.mask(index), explanation.box_xyxy(index)
    ratios = np.tile([width / full_width, height / full_height], 2)
    small = None if mask is None else cv2.resize(np.asarray(mask, np.uint8), (width, height)) > 0
    return render(
        image,
        heatmap_at(explanation, index, (height, width)) * np.float32(scale),
        box_xyxy=None if box is None or mask is not None else np.asarray(box) * ratios,
        mask=small,
        caption=caption,
        colormap=colormap,
    )
