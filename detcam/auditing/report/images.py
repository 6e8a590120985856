"""The report's images: the data set's images made smaller, maps of cases, thumbnails, outlines for the page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detcam.auditing.case import Box, CaseMaps
from detcam.utils.opencv import cv2
from detcam.visualize.convert import ImageArray
from detcam.visualize.overlay import overlay_heatmap

LONGEST_IMAGE = 1600
LONGEST_HEATMAP = 640  # heatmaps are smooth
THUMBNAIL_WH = (320, 240)
SURROUNDINGS = 0.3  # a thumbnail shows so much of the box's size around box and evidence
BOX_COLOR = (86, 200, 255)
TRUE_COLOR = (79, 213, 140)
CASING = (16, 16, 16)


def image_jpeg(image: ImageArray) -> bytes:
    """An image as JPEG, its longest side at most 1600 pixels."""
    return _jpeg(_at_most(image, LONGEST_IMAGE), 85)


def heatmap_png(heatmap: NDArray[np.uint8]) -> bytes:
    """A heatmap as 8-bit grey PNG, its longest side at most 640 pixels."""
    return _png(Image.fromarray(_at_most(heatmap, LONGEST_HEATMAP)))


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A region as 1-bit PNG, its longest side at most 1600 pixels; a pixel counts where most of it does."""
    # Averages of 0 and 1 are rounded to whole numbers.
    return _png(Image.fromarray(_at_most(mask.astype(np.uint8), LONGEST_IMAGE) > 0))


def thumbnail_jpeg(
    image: ImageArray, box_xyxy: Box, maps: CaseMaps | None, color: tuple[int, int, int] = BOX_COLOR
) -> bytes:
    """Box, heat and what lies around them, as JPEG within 320 x 240 pixels."""
    left, top, right, bottom = window(image.shape[:2], box_xyxy, None if maps is None else maps.evidence)
    extent = np.array([right - left, bottom - top])
    scale = (np.array(THUMBNAIL_WH) / extent).min()
    size_wh = np.maximum(np.rint(extent * scale), 1)
    # Whole pixels of a small image miss the thumbnail's shape by a little: rather stretched than with a rim.
    size_wh = np.where(size_wh > 0.96 * np.array(THUMBNAIL_WH), THUMBNAIL_WH, size_wh)
    size = int(size_wh[0]), int(size_wh[1])
    shown = _resized(image[top:bottom, left:right], size)
    if maps is not None:
        heat = _resized(maps.heatmap[top:bottom, left:right], size)
        shown = overlay_heatmap(shown, heat.astype(np.float32) / 255)
    corners = np.rint((np.array(box_xyxy) - (left, top, left, top)) * np.tile(size_wh / extent, 2)).astype(int)
    canvas = np.ascontiguousarray(shown)
    for grown, paint in ((2, CASING), (1, color), (0, color)):
        first, last = corners[:2] - grown, corners[2:] - 1 + grown
        cv2.rectangle(canvas, tuple(first.tolist()), tuple(last.tolist()), paint, 1)
    return _jpeg(canvas, 80)


def window(
    image_size_hw: tuple[int, ...], box_xyxy: Box, evidence: NDArray[np.bool_] | None
) -> tuple[int, int, int, int]:
    """The part of an image (xyxy, half-open) that shows box and evidence, of a thumbnail's shape where it fits."""
    height, width = image_size_hw
    left, top, right, bottom = box_xyxy
    around = SURROUNDINGS * max(right - left, bottom - top)
    if evidence is not None and evidence.any():
        rows, columns = np.flatnonzero(evidence.any(axis=1)), np.flatnonzero(evidence.any(axis=0))
        left, top = min(left, float(columns[0])), min(top, float(rows[0]))
        right, bottom = max(right, float(columns[-1]) + 1), max(bottom, float(rows[-1]) + 1)
    across, down = right - left + 2 * around, bottom - top + 2 * around
    shape = THUMBNAIL_WH[0] / THUMBNAIL_WH[1]
    across, down = max(across, down * shape, 8 * shape), max(down, across / shape, 8)
    first_x, last_x = _interval((left + right) / 2, across, width)
    first_y, last_y = _interval((top + bottom) / 2, down, height)
    return first_x, first_y, last_x, last_y


def _interval(centre: float, length: float, most: int) -> tuple[int, int]:
    """Whole pixels of about that length and centre within 0 to `most`: moved inside, and at most all of it."""
    size = min(max(round(length), 1), most)
    first = min(max(round(centre - size / 2), 0), most - size)
    return first, first + size


def outline(path: Path, image_size_hw: tuple[int, int]) -> str:
    """The edges of a region that `mask_png` wrote, as an SVG path in the image's pixels.

    Raises:
        ValueError: not a PNG.
    """
    stored = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    if stored is None:
        raise ValueError(f"{path} is not a PNG file; delete it and run the audit again")
    scale = np.array(image_size_hw[::-1]) / np.array(stored.shape[::-1])
    rows, columns = np.flatnonzero(stored.any(axis=1)), np.flatnonzero(stored.any(axis=0))
    if not len(rows):
        return ""
    part = stored[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Contours run through the centres of pixels: in an image twice as large, a quarter of a pixel inside the edge.
    fine = (part > 0).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    edges, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for edge in edges:
        corners = ((cv2.approxPolyDP(edge, 1.0, True)[:, 0] + 0.5) / 2 + (columns[0], rows[0])) * scale
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners.tolist()) + "Z")
    return "".join(parts)


def _at_most(array: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    height, width = array.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return array
    return _resized(array, (max(round(width * scale), 1), max(round(height * scale), 1)))


def _resized(array: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    smaller = size_wh[0] < array.shape[1]
    way = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(array), size_wh, interpolation=way), np.uint8)


def _jpeg(image: ImageArray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
