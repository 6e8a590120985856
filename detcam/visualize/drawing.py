"""Draws boxes and text on images, with labels placed where they hide the least."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detcam.utils.opencv import cv2
from detcam.visualize.convert import (
    BoxesLike,
    Color,
    ImageArray,
    PixelsLike,
    TensorLike,
    as_array,
    as_heatmap,
    as_image,
    color_rgb,
    contrast_to,
)

# Distinguishable with color vision deficiency; the first ones are not in the default colormap.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (86, 200, 255), (0, 190, 130), (255, 255, 255), (240, 228, 66),
    (255, 140, 200), (40, 110, 255), (255, 120, 20), (170, 255, 90),
)  # fmt: skip
TEXT_COLOR = (28, 28, 28)
BACKGROUND_COLOR = (255, 255, 255)
AVOID_THRESHOLD = 0.5  # labels avoid pixels with at least this heat
FALLBACK_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "arial.ttf", "Arial Unicode.ttf")


class Scale(NamedTuple):
    """Text and line sizes for an image, in pixels: font size, line width, contrast line width, padding."""

    font: int
    line: int
    halo: int
    pad: int


def scale_for(height: int, width: int) -> Scale:
    """Return text and line sizes proportional to the image, at least as large as is legible."""
    side = math.sqrt(height * width)
    line = max(1, round(side / 320))
    font = max(12 if side >= 100 else 8, round(side * 0.028))
    return Scale(font, line, max(1, round(line / 2)), max(2, round(font / 4)))


def draw_outline(
    image: ImageArray, region: NDArray[np.bool_], color: tuple[int, int, int], line: int, halo: int
) -> None:
    """Draw the inner edge of a region in `color` and a contrasting line outside it, in place.

    Args:
        image: HxWx3 uint8.
        region: (H, W) bool; an empty region draws nothing. The image border counts as an edge.
        color: RGB.
        line: width of the inner line in pixels.
        halo: width of the contrasting outer line in pixels.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if rows.size == 0:
        return
    window = (
        slice(max(rows[0] - halo, 0), rows[-1] + 1 + halo),
        slice(max(columns[0] - halo, 0), columns[-1] + 1 + halo),
    )
    inside = region[window].astype(np.uint8)
    core = _eroded(inside, line, border=0)
    grown = cv2.dilate(inside, np.ones((2 * halo + 1,) * 2, np.uint8))
    image[window][(grown == 1) & (inside == 0)] = contrast_to(color)
    image[window][(inside == 1) & (core == 0)] = color
    # At the image border the contrasting line lies inside, since there are no pixels outside.
    deep, deep_with_border = (_eroded(inside, line + halo, border) for border in (0, 1))
    image[window][(core == 1) & (deep == 0) & (deep_with_border == 1)] = contrast_to(color)


def _eroded(inside: NDArray[np.uint8], radius: int, border: int) -> NDArray[Any]:
    kernel = np.ones((2 * radius + 1,) * 2, np.uint8)
    return cv2.erode(inside, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=border)


@lru_cache(maxsize=32)
def plain_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in font, which has ASCII letters only."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError(
            "Pillow was built without FreeType, which is required to draw text; install Pillow from its wheel"
        )
    return font


@lru_cache(maxsize=64)
def fallback_font(special: frozenset[str], size: int) -> ImageFont.FreeTypeFont | None:
    """Return the first installed font with all of these characters, or None."""
    for name in FALLBACK_FONTS:
        try:
            font = ImageFont.truetype(name, size)
        except OSError:  # not installed
            continue
        missing = bytes(font.getmask("\uffff"))
        if all(bytes(font.getmask(character)) != missing for character in special):
            return font
    return None


def typeset(text: str, size: int, max_width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Fit a line of text to `max_width` pixels.

    Returns:
        The text, shortened with an ellipsis if necessary, and the font to draw it in. Letters that no installed font
        has lose their accents or become question marks.
    """
    text = " ".join(text.split())
    plain = plain_font(size)
    special = frozenset(c for c in text if not c.isascii() and c != "…")
    font = fallback_font(special, size) if special else plain
    if font is None:
        folded = unicodedata.normalize("NFKD", text)
        text = "".join(c if c.isascii() else "?" for c in folded if not unicodedata.combining(c))
        font = plain
    if font.getlength(text) <= max_width:
        return text, font
    low, high = 0, len(text)  # bisection for the longest prefix that fits with the ellipsis
    while low < high:
        middle = (low + high + 1) // 2
        fits = font.getlength(text[:middle].rstrip() + "…") <= max_width
        low, high = (middle, high) if fits else (low, middle - 1)
    return (text[:low].rstrip() + "…" if low else ""), font


def text_plate(
    text: str, size: int, pad: int, max_width: int, *, color: Color, background: Color, width: int | None = None
) -> ImageArray:
    """Draw a line of text on a plate of the font's height, as wide as the text or centered in `width` pixels."""
    line, font = typeset(text, size, max_width - 2 * pad)
    ascent, descent = font.getmetrics()
    plate_width = width if width is not None else min(max_width, math.ceil(font.getlength(line)) + 2 * pad)
    plate = Image.new("RGB", (max(plate_width, 1), ascent + descent + pad), background)
    left = pad if width is None else (plate_width - font.getlength(line)) / 2
    ImageDraw.Draw(plate).text((left, ascent + pad / 2), line, fill=color, font=font, anchor="ls")
    return np.array(plate)


def text_strip(text: str, width: int, size: int) -> ImageArray:
    """Draw centered lines of text, split at line breaks, dark on white and `width` pixels wide."""
    pad = max(2, size // 4)
    lines = text.splitlines() or [""]
    return np.concatenate(
        [text_plate(t, size, pad, width, color=TEXT_COLOR, background=BACKGROUND_COLOR, width=width) for t in lines]
    )


def place_label(
    size_wh: tuple[int, int],
    box: NDArray[np.int64],
    gap: int,
    hot_sums: NDArray[Any],
    boxes: NDArray[np.int64],
    labels: Sequence[NDArray[np.int64]],
) -> NDArray[np.int64]:
    """Choose the position of a box's label.

    In order of importance, the label covers no hot pixels and no other label, lies outside its box, touches it, covers
    no other box, and lies above rather than below or beside the box.

    Args:
        size_wh: size of the label, at most the image's.
        box: (4,) xyxy in pixels.
        gap: pixels between box and label.
        hot_sums: (H + 1, W + 1) integral image of the hot region (`cv2.integral`).
        boxes: (N, 4) all boxes, including `box`.
        labels: positions of the labels placed so far, xyxy.

    Returns:
        (4,) xyxy in pixels, inside the image.
    """
    (w, h), (x1, y1, x2, y2) = size_wh, box.tolist()
    limit = np.array([hot_sums.shape[1] - 1 - w, hot_sums.shape[0] - 1 - h])
    up, down, left, right = y1 - gap - h, y2 + gap, x1 - gap - w, x2 + gap
    near = [
        (x1, up),
        (x2 - w, up),
        (x1, down),
        (x2 - w, down),
        (right, y1),
        (right, y2 - h),
        (left, y1),
        (left, y2 - h),
    ]
    near += [(x1 + gap, y1 + gap), (x2 - gap - w, y1 + gap), (x1 + gap, y2 - gap - h), (x2 - gap - w, y2 - gap - h)]
    steps = [np.unique(np.linspace(0, limit[i], 33).astype(np.int64)) for i in (0, 1)]
    far = np.stack(np.meshgrid(*steps), axis=-1).reshape(-1, 2)
    corners = np.concatenate([np.clip(np.array(near), 0, limit), far])
    positions = np.concatenate([corners, corners + (w, h)], axis=1)
    area = float(w * h)

    a, b, c, d = positions.T
    hot = (hot_sums[d, c] - hot_sums[b, c] - hot_sums[d, a] + hot_sums[b, a]) / area
    cost = 100 * (hot > 0) + 100 * hot
    for other in labels:
        covered = overlap(positions, other) / area
        cost += 100 * (covered > 0) + 100 * covered
    cost += 10 * overlap(positions, box) / area
    cost += 3 * sum(overlap(positions, other) / area for other in boxes) / max(len(boxes), 1)
    distance = np.clip(np.hypot(*gaps(positions, box)) - gap, 0, None)
    cost += 4 * (distance > 1) + 10 * distance / np.hypot(*hot_sums.shape)
    rank = np.arange(len(positions))
    cost += np.where(rank < len(near), 0.01 * rank, 0.5)
    return positions[int(np.argmin(cost))]


def overlap(positions: NDArray[np.int64], box: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the number of pixels that each of (N, 4) xyxy rectangles shares with a box."""
    sides = np.minimum(positions[:, 2:], box[2:]) - np.maximum(positions[:, :2], box[:2])
    return np.clip(sides, 0, None).prod(axis=1).astype(np.float64)


def gaps(positions: NDArray[np.int64], box: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the horizontal and vertical distance of (N, 4) xyxy rectangles to a box; 0 where they meet."""
    distance = np.maximum(np.maximum(positions[:, :2] - box[2:], box[:2] - positions[:, 2:]), 0)
    return distance[:, 0], distance[:, 1]


def draw_boxes(
    image: PixelsLike,
    boxes_xyxy: BoxesLike,
    captions: Sequence[str] | None = None,
    *,
    colors: Color | Sequence[Color] | None = None,
    avoid: TensorLike | None = None,
) -> ImageArray:
    """Draw boxes with captions.

    The colored line covers the outermost pixels of a box, a contrasting line the pixels around it. Line width and text
    size grow with the image. Captions lie outside their boxes if there is room. A caption that is too long ends in an
    ellipsis; an image with less than two lines of text in height (about 30 pixels) gets no captions.

    Args:
        image: RGB image.
        boxes_xyxy: (N, 4), half-open, in pixels of the image; clipped to it.
        captions: one per box; an empty caption draws no label.
        colors: one color for all boxes or one per box: (r, g, b) from 0 to 255, or a CSS name. None takes a palette.
        avoid: (H, W) heatmap in [0, 1]; captions avoid pixels of 0.5 and above if possible.

    Returns:
        HxWx3 uint8, a new image.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes or lengths do not match, or a box is NaN, inverted or outside the image.

    Example:
        >>> import numpy as np
        >>> from detcam.visualize.overlay import draw_boxes
        >>> image = np.zeros((80, 120, 3), np.uint8)
        >>> draw_boxes(image, [[10, 20, 60, 70]], ["cat 0.93"]).shape
        (80, 120, 3)
    """
    pixels = as_image(image)
    size_hw = pixels.shape[:2]
    boxes = pixel_boxes(boxes_xyxy, size_hw)
    box_colors = _colors_for(colors, len(boxes))
    if isinstance(captions, str) or (captions is not None and len(captions) != len(boxes)):
        got = "a single string" if isinstance(captions, str) else f"{len(captions)}"
        raise ValueError(f"captions must be a list of one per box ({len(boxes)}), got {got}")
    heat = None if avoid is None else as_heatmap(avoid, size_hw, "avoid")

    scale = scale_for(*size_hw)
    for (x1, y1, x2, y2), color in zip(boxes.tolist(), box_colors, strict=True):
        region = np.zeros(size_hw, bool)
        region[y1:y2, x1:x2] = True
        line = max(1, min(scale.line, min(x2 - x1, y2 - y1) // 6))  # leaves the inside of a small box visible
        draw_outline(pixels, region, color, line, scale.halo)
    if not any(caption.strip() for caption in captions or []):
        return pixels
    hot = np.zeros(size_hw, np.uint8) if heat is None else (heat >= AVOID_THRESHOLD).astype(np.uint8)
    hot_sums: NDArray[Any] = cv2.integral(hot, sdepth=cv2.CV_64F)
    labels: list[NDArray[np.int64]] = []
    for box, caption, color in zip(boxes, captions or [], box_colors, strict=True):
        plate = text_plate(caption, scale.font, scale.pad, size_hw[1], color=contrast_to(color), background=color)
        if not caption.strip() or 2 * plate.shape[0] > size_hw[0]:
            continue
        label = place_label(plate.shape[1::-1], box, scale.halo, hot_sums, boxes, labels)
        _draw_leader(pixels, box, label, color, scale)
        pixels[label[1] : label[3], label[0] : label[2]] = plate
        labels.append(label)
    return pixels


def pixel_boxes(boxes_xyxy: BoxesLike, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """Validate boxes, round them to whole pixels and clip them to the image; each has at least one pixel."""
    if not isinstance(boxes_xyxy, (np.ndarray, torch.Tensor)):
        rows = [as_array(box, "boxes_xyxy") if isinstance(box, torch.Tensor) else box for box in boxes_xyxy]
        boxes_xyxy = np.array(rows, dtype=np.float64)
    boxes = as_array(boxes_xyxy, "boxes_xyxy").astype(np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4), np.int64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes_xyxy must have shape (N, 4), got {boxes.shape}; a single box is boxes_xyxy[None]")
    height, width = size_hw
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    wrong |= (boxes[:, 2:] < 0).any(axis=1) | (boxes[:, :2] > (width, height)).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"boxes_xyxy must be finite, x1 <= x2, y1 <= y2, and overlap the image of {width} x {height} "
            f"pixels (width x height), got {boxes[wrong][0].round(2).tolist()}; "
            "boxes are x1, y1, x2, y2 in the image's pixels"
        )
    whole = np.rint(boxes).astype(np.int64)
    low = np.clip(whole[:, :2], 0, (width - 1, height - 1))
    high = np.maximum(np.clip(whole[:, 2:], 0, (width, height)), low + 1)
    return np.concatenate([low, high], axis=1)


def _colors_for(colors: Color | Sequence[Color] | None, count: int) -> list[tuple[int, int, int]]:
    if colors is None:
        return [PALETTE[i % len(PALETTE)] for i in range(count)]
    if isinstance(colors, str) or (len(colors) == 3 and not isinstance(colors[0], (str, Sequence, np.ndarray))):
        return [color_rgb(colors)] * count  # type: ignore[arg-type]
    if len(colors) != count:
        raise ValueError(f"colors must be one color or one per box ({count}), got {len(colors)}")
    return [color_rgb(color) for color in colors]  # type: ignore[arg-type]


def _draw_leader(
    image: ImageArray, box: NDArray[np.int64], label: NDArray[np.int64], color: tuple[int, int, int], scale: Scale
) -> None:
    """Draw a thin line from a label to its box if the two do not touch."""
    horizontal, vertical = (int(gap[0]) for gap in gaps(label[None], box))
    if max(horizontal, vertical) <= scale.halo + 1:
        return
    center = (label[:2] + label[2:]) // 2
    end = np.clip(center, box[:2], box[2:] - 1)
    start = np.clip(end, label[:2], label[2:] - 1)
    for line_color, thickness in ((contrast_to(color), scale.line + 2 * scale.halo), (color, scale.line)):
        cv2.line(image, tuple(start.tolist()), tuple(end.tolist()), line_color, thickness, cv2.LINE_AA)
