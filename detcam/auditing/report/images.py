"""Images of a report: downsized images, maps and regions of cases, thumbnails, and outlines for the page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detcam.auditing.case import Box, CaseMaps
from detcam.utils.opencv import cv2, decode_image
from detcam.visualize.convert import ImageArray, colormap_code
from detcam.visualize.overlay import DEFAULT_COLORMAP, overlay_heatmap

MAX_IMAGE_SIDE = 1600
MAX_HEATMAP_SIDE = 640
THUMBNAIL_WH = (320, 240)
THUMBNAIL_MARGIN = 0.3  # margin around box and evidence, relative to the longer side of the box
BOX_COLOR = (86, 200, 255)
TRUTH_COLOR = (79, 213, 140)
OUTLINE_WIDTH = 3  # of which one line is on the border of the box and the others outside
OUTER_COLOR = (16, 16, 16)


def image_jpeg(image: ImageArray) -> bytes:
    """Encode an image as JPEG, its longest side at most MAX_IMAGE_SIDE pixels."""
    return _jpeg(_shrink(image, MAX_IMAGE_SIDE), 85)


def heatmap_png(heatmap: NDArray[np.uint8]) -> bytes:
    """Encode a heatmap as 8-bit gray PNG, its longest side at most MAX_HEATMAP_SIDE pixels."""
    return _png(Image.fromarray(_shrink(heatmap, MAX_HEATMAP_SIDE)))


def overlay_png(heatmap: NDArray[np.uint8]) -> bytes:
    """Encode a heatmap as PNG in the colors of overlays, as opaque as it is hot; its size is that of `heatmap_png`."""
    image = Image.fromarray(_shrink(heatmap, MAX_HEATMAP_SIDE))
    image.putpalette(heat_colors(256).tobytes())
    return _png(image, transparency=bytes(range(256)))


def heat_colors(count: int = 33) -> NDArray[np.uint8]:
    """Return the colors of overlays for heat from 0 to 1 in equal steps, (count, 3) RGB."""
    levels = np.rint(np.linspace(0, 255, count)).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels[:, None], colormap_code(DEFAULT_COLORMAP))[:, 0, ::-1])


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """Encode a region as 1-bit PNG, its longest side at most MAX_IMAGE_SIDE pixels."""
    # Resizing rounds the mean of a block of 0 and 1, so a pixel is set if most of its block is.
    return _png(Image.fromarray(_shrink(mask.astype(np.uint8), MAX_IMAGE_SIDE) > 0))


def thumbnail_jpeg(
    image: ImageArray, box_xyxy: Box, maps: CaseMaps | None, color: tuple[int, int, int] = BOX_COLOR
) -> bytes:
    """Draw the box and the heatmap with their surroundings, as JPEG of at most THUMBNAIL_WH pixels."""
    left, top, right, bottom = crop_window(image.shape[:2], box_xyxy, None if maps is None else maps.evidence)
    extent = np.array([right - left, bottom - top])
    scale = (np.array(THUMBNAIL_WH) / extent).min()
    size_wh = np.maximum(np.rint(extent * scale), 1)
    # Rounding to whole pixels changes the aspect ratio a little: stretch the crop rather than leave a rim.
    size_wh = np.where(size_wh > 0.96 * np.array(THUMBNAIL_WH), THUMBNAIL_WH, size_wh)
    size = int(size_wh[0]), int(size_wh[1])
    thumbnail = _resized(image[top:bottom, left:right], size)
    if maps is not None:
        heat = _resized(maps.heatmap[top:bottom, left:right], size)
        thumbnail = overlay_heatmap(thumbnail, heat.astype(np.float32) / 255)
    corners = np.rint((np.array(box_xyxy) - (left, top, left, top)) * np.tile(size_wh / extent, 2))
    # The crop contains the box but for what lies beyond the image: the outline stays visible at the border.
    inset = OUTLINE_WIDTH - 1
    corners = np.clip(corners, inset, np.tile(size_wh, 2) - inset).astype(int)
    canvas = np.ascontiguousarray(thumbnail)
    for margin, line_color in ((2, OUTER_COLOR), (1, color), (0, color)):
        first, last = corners[:2] - margin, corners[2:] - 1 + margin
        cv2.rectangle(canvas, tuple(first.tolist()), tuple(last.tolist()), line_color, 1)
    return _jpeg(canvas, 80)


def crop_window(
    image_size_hw: tuple[int, ...], box_xyxy: Box, evidence: NDArray[np.bool_] | None
) -> tuple[int, int, int, int]:
    """Return the crop (xyxy, half-open) around box and evidence, with the aspect ratio of a thumbnail if it fits."""
    height, width = image_size_hw
    left, top, right, bottom = box_xyxy
    margin = THUMBNAIL_MARGIN * max(right - left, bottom - top)
    if evidence is not None and evidence.any():
        rows, columns = np.flatnonzero(evidence.any(axis=1)), np.flatnonzero(evidence.any(axis=0))
        left, top = min(left, float(columns[0])), min(top, float(rows[0]))
        right, bottom = max(right, float(columns[-1]) + 1), max(bottom, float(rows[-1]) + 1)
    crop_width, crop_height = right - left + 2 * margin, bottom - top + 2 * margin
    ratio = THUMBNAIL_WH[0] / THUMBNAIL_WH[1]
    crop_width, crop_height = max(crop_width, crop_height * ratio, 8 * ratio), max(crop_height, crop_width / ratio, 8)
    first_x, last_x = _interval((left + right) / 2, crop_width, width)
    first_y, last_y = _interval((top + bottom) / 2, crop_height, height)
    return first_x, first_y, last_x, last_y


def _interval(center: float, length: float, limit: int) -> tuple[int, int]:
    """Return a range of whole pixels with about this center and length, moved and clipped to 0 to `limit`."""
    size = min(max(round(length), 1), limit)
    first = min(max(round(center - size / 2), 0), limit - size)
    return first, first + size


def region_outline(path: Path, image_size_hw: tuple[int, int], without: Path | None = None) -> str:
    """Return the outline of a region that `mask_png` encoded, as an SVG path in pixels of the image.

    Args:
        path: file of the region.
        image_size_hw: size of the image.
        without: file of a region whose pixels are left out.

    Raises:
        ValueError: a file is not a PNG file.
    """
    stored = _read_mask(path)
    if without is not None:
        stored[_read_mask(without) > 0] = 0
    scale = np.array(image_size_hw[::-1]) / np.array(stored.shape[::-1])
    rows, columns = np.flatnonzero(stored.any(axis=1)), np.flatnonzero(stored.any(axis=0))
    if not len(rows):
        return ""
    part = stored[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Contours run through pixel centers. At twice the resolution that is a quarter of a pixel inside the edge.
    fine = (part > 0).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    edges, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for edge in edges:
        corners = ((cv2.approxPolyDP(edge, 1.0, True)[:, 0] + 0.5) / 2 + (columns[0], rows[0])) * scale
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners.tolist()) + "Z")
    return "".join(parts)


def _read_mask(path: Path) -> NDArray[np.uint8]:
    stored = decode_image(path.read_bytes(), cv2.IMREAD_GRAYSCALE)
    if stored is None:
        raise ValueError(f"{path} is not a PNG file; delete it and run the audit again")
    return np.asarray(stored, np.uint8)


def _shrink(array: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    height, width = array.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return array
    return _resized(array, (max(round(width * scale), 1), max(round(height * scale), 1)))


def _resized(array: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    smaller = size_wh[0] < array.shape[1]
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(array), size_wh, interpolation=interpolation), np.uint8)


def _jpeg(image: ImageArray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4, **options)
    return buffer.getvalue()
