"""Draws the concepts of a factorization over an image, each in its color, with a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from detcam.detections import class_name
from detcam.utils.opencv import cv2
from detcam.visualize import drawing
from detcam.visualize.convert import (
    Color,
    ImageArray,
    PixelsLike,
    TensorLike,
    as_array,
    as_image,
    color_rgb,
    contrast_to,
)

MIN_LABELED_SIDE = 320
"""An image with numbers is enlarged by an integer factor if its longer side is below this, in pixels."""
MIN_LABELED_STRENGTH = 0.5
"""Minimum strength of a concept where its number is drawn."""
MIN_AREA_FRACTION = 0.002
"""Minimum fraction of the image that a concept dominates for its number to be drawn."""

ConceptColor: TypeAlias = Color | Sequence[float] | NDArray[Any]


def show_factorization_on_image(
    img: PixelsLike,
    explanations: TensorLike,
    colors: Sequence[ConceptColor] | None = None,
    image_weight: float = 0.5,
    concept_labels: Sequence[str] | None = None,
) -> ImageArray:
    """Color each pixel by its strongest concept, with an opacity that grows with the concept's strength.

    A pixel whose strongest concept has strength h is `(1 - a) * img + a * color` with `a = (1 - image_weight) * h`.
    With labels, each concept gets a number, drawn inside the region where it dominates, and a legend on the right
    explains the numbers.

    Args:
        img: RGB image.
        explanations: (K, H, W) in [0, 1], one map per concept.
        colors: one per concept: RGB floats in [0, 1], three integers from 0 to 255, or CSS names. None takes colors
            that are easy to distinguish.
        image_weight: weight of the image where a concept has strength 1, in [0, 1].
        concept_labels: one per concept, of one or more lines. Small images are enlarged by an integer factor.

    Returns:
        HxWx3 uint8. With labels, the legend is on the right, and white fills the area below the shorter of the two.

    Raises:
        TypeError: an argument is neither an array nor a tensor.
        ValueError: sizes or numbers of entries differ, or values are outside [0, 1].

    Example:
        >>> import numpy as np
        >>> from detcam import show_factorization_on_image
        >>> image, maps = np.zeros((40, 60, 3), np.uint8), np.zeros((2, 40, 60), np.float32)
        >>> show_factorization_on_image(image, maps).shape
        (40, 60, 3)
    """
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight must lie in [0, 1], got {image_weight}")
    image = as_image(img, "img")
    maps = _as_maps(explanations, image.shape[:2])
    rgb_colors = concept_colors(len(maps)) if colors is None else [_as_rgb(color) for color in colors]
    if len(rgb_colors) != len(maps):
        raise ValueError(f"colors must be one per concept ({len(maps)}), got {len(rgb_colors)}")
    if isinstance(concept_labels, str) or (concept_labels is not None and len(concept_labels) != len(maps)):
        got = "a single string" if isinstance(concept_labels, str) else f"{len(concept_labels)}"
        raise ValueError(f"concept_labels must be a list of one per concept ({len(maps)}), got {got}")
    leading = maps.argmax(0)
    opacity = (1 - image_weight) * np.take_along_axis(maps, leading[None], 0)[0][..., None]
    blend = image + opacity * (np.array(rgb_colors, np.float32)[leading] - image)
    shown = np.rint(blend).astype(np.uint8)
    return shown if concept_labels is None else _with_legend(shown, maps, leading, rgb_colors, concept_labels)


def create_labels_legend(
    concept_scores: TensorLike, labels: Mapping[int, str] | Sequence[str], top_k: int = 2
) -> list[str]:
    r"""List the classes with the highest scores of each concept, one per line: ``tiger cat 0.83``.

    Args:
        concept_scores: (K, classes) scores.
        labels: class index to name; only the part of a name before its first comma is used.
        top_k: maximum number of classes per concept.

    Returns:
        One text per concept.

    Raises:
        ValueError: `concept_scores` is not two-dimensional, or `top_k` is below 1.

    Example:
        >>> import numpy as np
        >>> from detcam import create_labels_legend
        >>> create_labels_legend(np.array([[0.1, 0.7, 0.2]]), ["cat", "dog", "bus"], top_k=2)
        ['dog 0.70\nbus 0.20']
    """
    scores = as_array(concept_scores, "concept_scores")
    if scores.ndim != 2:
        raise ValueError(f"concept_scores must have shape (K, classes), got {scores.shape}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    names = labels if isinstance(labels, Mapping) else dict(enumerate(labels))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [
        "\n".join(f"{class_name(names, int(i)).split(',')[0]} {row[i]:.2f}" for i in chosen)
        for row, chosen in zip(scores, best, strict=True)
    ]


def concept_colors(count: int) -> list[tuple[int, int, int]]:
    """Return colors for concepts: the palette without white, or evenly spaced hues if there are more concepts."""
    palette = [color for color in drawing.PALETTE if color != (255, 255, 255)]
    if count <= len(palette):
        return palette[:count]
    colors = []
    for index in range(count):
        red, green, blue = colorsys.hsv_to_rgb(index / count, 0.85, (1.0, 0.65)[index % 2])
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colors


def _as_maps(explanations: TensorLike, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    maps = as_array(explanations, "explanations")
    if maps.ndim != 3 or maps.shape[1:] != tuple(size_hw) or not len(maps):
        raise ValueError(
            f"explanations must have shape (K, {size_hw[0]}, {size_hw[1]}), the image's size; got {maps.shape}: "
            "take one image's entry of a batch"
        )
    if not np.isfinite(maps).all() or maps.min() < -1e-3 or maps.max() > 1 + 1e-3:
        raise ValueError("explanations must lie in [0, 1] and be finite; scale each map by its maximum")
    return np.clip(maps, 0, 1).astype(np.float32)


def _as_rgb(color: ConceptColor) -> tuple[int, int, int]:
    """Convert floats in [0, 1] (an alpha channel is dropped), integers from 0 to 255, or a CSS name to RGB."""
    if isinstance(color, str):
        return color_rgb(color)
    values = np.asarray(color)[:3]
    if values.dtype.kind == "f" and values.max() <= 1:
        values = np.rint(values * 255)
    return color_rgb((int(values[0]), int(values[1]), int(values[2])))


def _with_legend(
    shown: ImageArray,
    maps: NDArray[np.float32],
    leading: NDArray[np.int64],
    rgb_colors: Sequence[tuple[int, int, int]],
    labels: Sequence[str],
) -> ImageArray:
    """Draw each concept's number on the image, and add the legend."""
    factor = max(1, -(-MIN_LABELED_SIDE // max(shown.shape[:2])))
    positions = [_label_position((leading == k) & (maps[k] >= MIN_LABELED_STRENGTH)) for k in range(len(maps))]
    shown = shown.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = shown.shape[:2]
    scale = drawing.scale_for(height, width)
    numbers = [
        drawing.text_plate(str(k + 1), scale.font, scale.pad, width, color=contrast_to(color), background=color)
        for k, color in enumerate(rgb_colors)
    ]
    for position, number in zip(positions, numbers, strict=True):
        if position is not None and number.shape[0] <= height and number.shape[1] <= width:
            _paste(shown, number, (position[0] * factor, position[1] * factor), scale.halo)
    legend = _legend(numbers, labels, scale, width)
    canvas = np.full((max(height, len(legend)), width + legend.shape[1], 3), 255, np.uint8)
    canvas[:height, :width] = shown
    canvas[: len(legend), width:] = legend
    return canvas


def _label_position(region: NDArray[np.bool_]) -> tuple[int, int] | None:
    """Return the point (x, y) well inside a region that is closest to its mean, or None if the region is tiny."""
    if region.sum() < MIN_AREA_FRACTION * region.size:
        return None
    # The padding makes the image border an edge.
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    deep = np.argwhere(depth >= 0.9 * depth.max())
    y, x = deep[np.square(deep - np.argwhere(region).mean(0)).sum(1).argmin()]
    return int(x), int(y)


def _paste(image: ImageArray, plate: ImageArray, center_xy: tuple[int, int], halo: int) -> None:
    """Paste a plate with a dark border on an image, in place, shifted inwards at the image border."""
    (height, width), (h, w) = image.shape[:2], plate.shape[:2]
    left = min(max(center_xy[0] - w // 2, 0), width - w)
    top = min(max(center_xy[1] - h // 2, 0), height - h)
    image[max(top - halo, 0) : top + h + halo, max(left - halo, 0) : left + w + halo] = drawing.TEXT_COLOR
    image[top : top + h, left : left + w] = plate


def _legend(numbers: Sequence[ImageArray], labels: Sequence[str], scale: drawing.Scale, width: int) -> ImageArray:
    """Draw the legend: each number's plate and the lines of its label, on white."""
    gap, number_width = 2 * scale.pad, max(number.shape[1] for number in numbers)
    max_width = max(width, 12 * scale.font)  # a longer label ends in an ellipsis
    rows = []
    for number, label in zip(numbers, labels, strict=True):
        lines = [
            drawing.text_plate(
                line, scale.font, scale.pad, max_width, color=drawing.TEXT_COLOR, background=drawing.BACKGROUND_COLOR
            )
            for line in label.splitlines() or [""]
        ]
        rows.append((number, lines))
    text_width = max(line.shape[1] for _, lines in rows for line in lines)
    strips = [np.full((gap, gap + number_width + text_width + gap, 3), 255, np.uint8)]
    for number, lines in rows:
        strip = np.full((sum(len(line) for line in lines) + gap, strips[0].shape[1], 3), 255, np.uint8)
        left = gap + number_width - number.shape[1]
        strip[: len(number), left : gap + number_width] = number
        top = 0
        for line in lines:
            strip[top : top + len(line), gap + number_width : gap + number_width + line.shape[1]] = line
            top += len(line)
        strips.append(strip)
    return np.concatenate(strips)
