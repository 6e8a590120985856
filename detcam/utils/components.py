"""Extent and connected components of masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from detcam.utils.opencv import cv2

MaskArray: TypeAlias = npt.NDArray[np.bool_]
Extent: TypeAlias = tuple[slice, slice]


def overlap_exceeds(first: MaskArray, second: MaskArray, iou: float) -> bool:
    """Whether the intersection over union of two masks (h, w) exceeds a value; False if both are empty.

    NumPy counts the pixels of a mask ten times as fast as PyTorch. The sizes of most masks are too different.
    """
    sizes = np.count_nonzero(first), np.count_nonzero(second)
    if min(sizes) <= iou * max(sizes):
        return False
    common = np.count_nonzero(first & second)
    return bool(common > iou * (sum(sizes) - common))


def extent(mask: MaskArray) -> Extent:
    """Return the rows and columns that contain all True values of a mask (h, w); both empty if there are none."""
    window = []
    for axis in (1, 0):
        positions = np.flatnonzero(mask.any(axis))
        window.append(slice(int(positions[0]), int(positions[-1]) + 1) if len(positions) else slice(0, 0))
    return window[0], window[1]


def components(mask: MaskArray) -> Iterator[tuple[Extent, MaskArray, int]]:
    """Find the 8-connected components of a mask (h, w).

    Returns:
        Of each: its window, the component in the window, and its number of pixels.
    """
    rows, columns = extent(mask)
    if rows.stop == rows.start:
        return  # OpenCV crashes on an empty array
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask[rows, columns].astype(np.uint8))
    for number in range(1, count):
        left, top, width, height, area = statistics[number].tolist()
        part = labels[top : top + height, left : left + width] == number
        top, left = rows.start + top, columns.start + left
        yield (slice(top, top + height), slice(left, left + width)), part, area


def with_margin(window: Extent, margin: int, size_hw: tuple[int, ...]) -> Extent:
    """Return a window with a margin on each side, inside an array of a size."""
    rows, columns = (
        slice(max(side.start - margin, 0), min(side.stop + margin, size))
        for side, size in zip(window, size_hw, strict=True)
    )
    return rows, columns
