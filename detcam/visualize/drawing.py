"""Boxes and text on images: outlines, lines of text, and labels placed where they hide the least."""

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
from detcam.visualize.convert import Color, ImageArray, as_array, as_heatmap, as_image, color_rgb, contrast_to

# Told apart with colour-blind eyes too; the first ones are not colours of the default colormap.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (86, 200, 255), (0, 190, 130), (255, 255, 255), (240, 228, 66),
    (255, 140, 200), (40, 110, 255), (255, 120, 20), (170, 255, 90),
)  # fmt: skip
INK = (28, 28, 28)
PAPER = (255, 255, 255)
HOT = 0.5  # a label avoids the pixels of a heatmap from here upwards
FALLBACK_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "arial.ttf",
    "Arial Unicode.ttf",
)


class Scale(NamedTuple):
    """Sizes in pixels that fit an image of some size."""

    font: int
    line: int
    halo: int
    pad: int


def scale_for(height: int, width: int) -> Scale:
    """Text and line sizes in proportion to the image, with floors that keep text legible."""
    side = math.sqrt(height * width)
    line = max(1, round(side / 320))
    font = max(12 if side >= 100 else 8, round(side * 0.028))
    return Scale(font, line, max(1, round(line / 2)), max(2, round(font / 4)))


def draw_outline(
    image: ImageArray, region: NDArray[np.bool_], color: tuple[int, int, int], line: int, halo: int
) -> None:
    """Draw, in place, the inner edge of a region in `color` and a contrasting line just outside of it.

    Args:
        image: HxWx3 uint8.
        region: (H, W) bool; an empty one draws nothing. The image's border counts as an edge.
        color: RGB.
        line: Width of the inner line, pixels.
        halo: Width of the contrasting outer line, pixels.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if rows.size == 0:
        return
    window = (
        slice(max(rows[0] - halo, 0), rows[-1] + 1 + halo),
        slice(max(columns[0] - halo, 0), columns[-1] + 1 + halo),
    )
    inside = region[window].astype(np.uint8)
    core = _eroded(inside, line, beyond=0)
    grown = cv2.dilate(inside, np.ones((2 * halo + 1,) * 2, np.uint8))
    image[window][(grown == 1) & (inside == 0)] = contrast_to(color)
    image[window][(inside == 1) & (core == 0)] = color
    # Along the image's border there is no outside: there the contrasting line lies within.
    deep, deep_but_for_border = (_eroded(inside, line + halo, beyond) for beyond in (0, 1))
    image[window][(core == 1) & (deep == 0) & (deep_but_for_border == 1)] = contrast_to(color)


def _eroded(inside: NDArray[np.uint8], by: int, beyond: int) -> NDArray[Any]:
    kernel = np.ones((2 * by + 1,) * 2, np.uint8)
    return cv2.erode(inside, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=beyond)


@lru_cache(maxsize=32)
def plain_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which knows no letters but the English ones."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which text needs; install Pillow from its wheel")
    return font


@lru_cache(maxsize=64)
def _font_with(special: frozenset[str], size: int) -> ImageFont.FreeTypeFont | None:
    """The first installed font that has all of these characters, None where there is none."""
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
    """One line of text that fits `max_width` pixels, shortened with an ellipsis, and the font to draw it in.

    Letters that no installed font has lose their accents or become question marks.
    """
    text = " ".join(text.split())
    plain = plain_font(size)
    special = frozenset(c for c in text if not c.isascii() and c != "…")
    font = _font_with(special, size) if special else plain
    if font is None:
        folded = unicodedata.normalize("NFKD", text)
        text = "".join(c if c.isascii() else "?" for c in folded if not unicodedata.combining(c))
        font = plain
    if font.getlength(text) <= max_width:
        return text, font
    low, high = 0, len(text)  # the longest beginning that fits together with the ellipsis
    while low < high:
        middle = (low + high + 1) // 2
        fits = font.getlength(text[:middle].rstrip() + "…") <= max_width
        low, high = (middle, high) if fits else (low, middle - 1)
    return (text[:low].rstrip() + "…" if low else ""), font


def text_plate(
    text: str, size: int, pad: int, max_width: int, *, ink: Color, paper: Color, width: int | None = None
) -> ImageArray:
    """One line of text on a plate, as high as the font; as wide as the text, or as `width` and centred."""
    line, font = typeset(text, size, max_width - 2 * pad)
    ascent, descent = font.getmetrics()
    across = width if width is not None else min(max_width, math.ceil(font.getlength(line)) + 2 * pad)
    plate = Image.new("RGB", (max(across, 1), ascent + descent + pad), paper)
    left = pad if width is None else (across - font.getlength(line)) / 2
    ImageDraw.Draw(plate).text((left, ascent + pad / 2), line, fill=ink, font=font, anchor="ls")
    return np.array(plate)


def text_strip(text: str, width: int, size: int) -> ImageArray:
    """Centred lines of text (split at line breaks), dark on white, exactly `width` pixels wide."""
    pad = max(2, size // 4)
    lines = text.splitlines() or [""]
    return np.concatenate([text_plate(t, size, pad, width, ink=INK, paper=PAPER, width=width) for t in lines])


def place_label(
    size_wh: tuple[int, int],
    box: NDArray[np.int64],
    gap: int,
    hot_sums: NDArray[Any],
    boxes: NDArray[np.int64],
    taken: Sequence[NDArray[np.int64]],
) -> NDArray[np.int64]:
    """The best place for a label of a box.

    In this order of importance: on nothing hot and on no other label, outside of its box, touching it, on no
    other box, and above before below before beside.

    Args:
        size_wh: The label's size, no larger than the image.
        box: (4,) xyxy in pixels.
        gap: Pixels between box and label.
        hot_sums: (H + 1, W + 1) integral image of the hot region (`cv2.integral`).
        boxes: (N, 4) all boxes; `box` is one of them.
        taken: Labels placed before, xyxy.

    Returns:
        (4,) the label's place, xyxy in pixels, inside the image.
    """
    (w, h), (x1, y1, x2, y2) = size_wh, box.tolist()
    room = np.array([hot_sums.shape[1] - 1 - w, hot_sums.shape[0] - 1 - h])
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
    near += [
        (x1 + gap, y1 + gap),
        (x2 - gap - w, y1 + gap),
        (x1 + gap, y2 - gap - h),
        (x2 - gap - w, y2 - gap - h),
    ]
    steps = [np.unique(np.linspace(0, room[i], 33).astype(np.int64)) for i in (0, 1)]
    far = np.stack(np.meshgrid(*steps), axis=-1).reshape(-1, 2)
    corners = np.concatenate([np.clip(np.array(near), 0, room), far])
    spots = np.concatenate([corners, corners + (w, h)], axis=1)
    area = float(w * h)

    a, b, c, d = spots.T
    hot = (hot_sums[d, c] - hot_sums[b, c] - hot_sums[d, a] + hot_sums[b, a]) / area
    cost = 100 * (hot > 0) + 100 * hot
    for other in taken:
        covered = overlap(spots, other) / area
        cost += 100 * (covered > 0) + 100 * covered
    cost += 10 * overlap(spots, box) / area
    cost += 3 * sum(overlap(spots, other) / area for other in boxes) / max(len(boxes), 1)
    apart = np.clip(np.hypot(*gaps(spots, box)) - gap, 0, None)
    cost += 4 * (apart > 1) + 10 * apart / np.hypot(*hot_sums.shape)
    rank = np.arange(len(spots))
    cost += np.where(rank < len(near), 0.01 * rank, 0.5)
    return spots[int(np.argmin(cost))]


def overlap(spots: NDArray[np.int64], box: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pixels that each of (N, 4) xyxy rectangles shares with one."""
    sides = np.minimum(spots[:, 2:], box[2:]) - np.maximum(spots[:, :2], box[:2])
    return np.clip(sides, 0, None).prod(axis=1).astype(np.float64)


def gaps(spots: NDArray[np.int64], box: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels between each of (N, 4) xyxy rectangles and one, across and down; 0 where they meet."""
    apart = np.maximum(np.maximum(spots[:, :2] - box[2:], box[:2] - spots[:, 2:]), 0)
    return apart[:, 0], apart[:, 1]


def draw_boxes(
    image: Any,
    boxes_xyxy: Any,
    captions: Sequence[str] | None = None,
    *,
    colors: Color | Sequence[Color] | None = None,
    avoid: Any = None,
) -> ImageArray:
    """Boxes with captions; captions lie outside of their boxes where there is room, and not on what is hot.

    The coloured line lies on the box's own outermost pixels, a contrasting one just outside of it. Sizes
    follow the image's. Captions too long for the image end in an ellipsis; an image lower than two lines
    of text (some 30 pixels) gets none.

    Args:
        image: Image, RGB.
        boxes_xyxy: (N, 4), half-open, in the image's pixels; cut at the image's border.
        captions: One per box; an empty one draws no label.
        colors: One colour for all or one per box: (r, g, b) 0 to 255, or a CSS name; default: a palette.
        avoid: (H, W) heatmap in [0, 1]; captions keep off the pixels of 0.5 and more where that can be done.

    Returns:
        ImageArray of the image's size.

    Raises:
        TypeError: Something is of the wrong type.
        ValueError: Wrong shapes or lengths, a box that is NaN, inside out or outside of the image.
    """
    pixels = as_image(image)
    size_hw = pixels.shape[:2]
    boxes = pixel_boxes(boxes_xyxy, size_hw)
    paints = _colors_for(colors, len(boxes))
    if isinstance(captions, str) or (captions is not None and len(captions) != len(boxes)):
        got = "a single string" if isinstance(captions, str) else f"{len(captions)}"
        raise ValueError(f"captions must be a list of one per box ({len(boxes)}), got {got}")
    hot = np.zeros(size_hw) if avoid is None else as_heatmap(avoid, size_hw, "avoid") >= HOT
    hot_sums: NDArray[Any] = cv2.integral(hot.astype(np.uint8), sdepth=cv2.CV_64F)

    scale = scale_for(*size_hw)
    for (x1, y1, x2, y2), paint in zip(boxes.tolist(), paints, strict=True):
        region = np.zeros(size_hw, bool)
        region[y1:y2, x1:x2] = True
        line = max(1, min(scale.line, min(x2 - x1, y2 - y1) // 6))  # a small box keeps its inside
        draw_outline(pixels, region, paint, line, scale.halo)
    taken: list[Any] = []
    for box, caption, paint in zip(boxes, captions or [""] * len(boxes), paints, strict=True):
        plate = text_plate(caption, scale.font, scale.pad, size_hw[1], ink=contrast_to(paint), paper=paint)
        if not caption.strip() or 2 * plate.shape[0] > size_hw[0]:
            continue
        place = place_label(plate.shape[1::-1], box, scale.halo, hot_sums, boxes, taken)
        _draw_leader(pixels, box, place, paint, scale)
        pixels[place[1] : place[3], place[0] : place[2]] = plate
        taken.append(place)
    return pixels


def pixel_boxes(boxes_xyxy: Any, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """Checked boxes on whole pixels, cut at the image's border, each at least one pixel."""
    if isinstance(boxes_xyxy, (list, tuple)):
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
            f"boxes_xyxy must be finite, x1 <= x2, y1 <= y2, and meet the image of {width} x {height} "
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
        raise ValueError(f"colors must be one colour or one per box ({count}), got {len(colors)}")
    return [color_rgb(color) for color in colors]  # type: ignore[arg-type]


def _draw_leader(image: ImageArray, box: Any, place: Any, color: tuple[int, int, int], scale: Scale) -> None:
    """A thin line from a label to its box where the two do not touch."""
    across, down = (int(gap[0]) for gap in gaps(place[None], box))
    if max(across, down) <= scale.halo + 1:
        return
    middle = (place[:2] + place[2:]) // 2
    end = np.clip(middle, box[:2], box[2:] - 1)
    start = np.clip(end, place[:2], place[2:] - 1)
    for paint, thickness in ((contrast_to(color), scale.line + 2 * scale.halo), (color, scale.line)):
        cv2.line(image, tuple(start.tolist()), tuple(end.tolist()), paint, thickness, cv2.LINE_AA)
