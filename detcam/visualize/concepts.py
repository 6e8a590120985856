"""Images of concepts: each in its colour over the image, with its labels in a legend beside it."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detcam.detections import class_name
from detcam.utils.opencv import cv2
from detcam.visualize import drawing
from detcam.visualize.convert import Color, ImageArray, as_array, as_image, color_rgb, contrast_to

LEGIBLE = 320
"""An image whose longer side is below this is enlarged by a whole factor where numbers are drawn on it."""
PRESENT = 0.5
"""Where a concept's map is at least this, and no other concept's is higher, the concept is named."""
MIN_SHARE = 0.002
"""Share of the image that a concept must lead on to be numbered there."""

ConceptColor = Color | Sequence[float] | NDArray[Any]


def show_factorization_on_image(
    img: Any,
    explanations: Any,
    colors: Sequence[ConceptColor] | None = None,
    image_weight: float = 0.5,
    concept_labels: Sequence[str] | None = None,
) -> ImageArray:
    """Colours each pixel by the concept that is strongest there, the more the stronger it is.

    A pixel whose strongest concept has strength h is `(1 - a) * img + a * color` with `a = (1 - image_weight) * h`:
    where no concept is strong, the image shows. With labels, each concept gets a number on the image, in the middle
    of where it leads, and a legend on the right says what the numbers are.

    Args:
        img: Image, RGB.
        explanations: (K, H, W) maps in [0, 1], one for each concept.
        colors: One for each concept: RGB floats in [0, 1], three whole numbers 0 to 255, or CSS names; None takes
            colours that are easily told apart.
        image_weight: What is left of the image where a concept is at full strength, in [0, 1].
        concept_labels: One for each concept, of one or more lines. Small images are enlarged by a whole factor.

    Returns:
        HxWx3 uint8; with labels the legend beside it, and white below where the legend is higher.

    Raises:
        TypeError: Something is neither array nor tensor.
        ValueError: Sizes or numbers differ, or values lie outside [0, 1].
    """
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight must lie in [0, 1], got {image_weight}")
    image = as_image(img, "img")
    maps = _as_maps(explanations, image.shape[:2])
    paints = concept_colors(len(maps)) if colors is None else [_as_rgb(color) for color in colors]
    if len(paints) != len(maps):
        raise ValueError(f"colors must be one per concept ({len(maps)}), got {len(paints)}")
    if isinstance(concept_labels, str) or (concept_labels is not None and len(concept_labels) != len(maps)):
        got = "a single string" if isinstance(concept_labels, str) else f"{len(concept_labels)}"
        raise ValueError(f"concept_labels must be a list of one per concept ({len(maps)}), got {got}")
    leading = maps.argmax(0)
    opacity = (1 - image_weight) * np.take_along_axis(maps, leading[None], 0)[0][..., None]
    blend = image + opacity * (np.array(paints, np.float32)[leading] - image)
    shown = np.rint(blend).astype(np.uint8)
    return shown if concept_labels is None else _with_legend(shown, maps, leading, paints, concept_labels)


def create_labels_legend(concept_scores: Any, labels: Mapping[int, str] | Sequence[str], top_k: int = 2) -> list[str]:
    """The best classes of each concept, a line for each: ``tiger cat 0.83``.

    Args:
        concept_scores: (K, classes) scores.
        labels: Class index to name; of names with commas the first one is taken.
        top_k: Lines at most.

    Returns:
        K texts.
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
    """Colours for concepts: the package's own but for white, and beyond those hues evenly apart, dark and light."""
    own = [color for color in drawing.PALETTE if color != (255, 255, 255)]
    if count <= len(own):
        return own[:count]
    found = []
    for index in range(count):
        red, green, blue = colorsys.hsv_to_rgb(index / count, 0.85, (1.0, 0.65)[index % 2])
        found.append((round(red * 255), round(green * 255), round(blue * 255)))
    return found


def _as_maps(explanations: Any, size_hw: tuple[int, int]) -> NDArray[np.float32]:
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
    """A colour in 0 to 255, from floats in [0, 1] (an alpha is left out), whole numbers, or a CSS name."""
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
    paints: Sequence[tuple[int, int, int]],
    labels: Sequence[str],
) -> ImageArray:
    """Numbers on the image, and beside it what they are."""
    factor = max(1, -(-LEGIBLE // max(shown.shape[:2])))
    places = [_middle((leading == k) & (maps[k] >= PRESENT)) for k in range(len(maps))]
    shown = shown.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = shown.shape[:2]
    scale = drawing.scale_for(height, width)
    numbers = [
        drawing.text_plate(str(k + 1), scale.font, scale.pad, width, ink=contrast_to(paint), paper=paint)
        for k, paint in enumerate(paints)
    ]
    for place, number in zip(places, numbers, strict=True):
        if place is not None and number.shape[0] <= height and number.shape[1] <= width:
            _stick(shown, number, (place[0] * factor, place[1] * factor), scale.halo)
    legend = _legend(numbers, labels, scale, width)
    canvas = np.full((max(height, len(legend)), width + legend.shape[1], 3), 255, np.uint8)
    canvas[:height, :width] = shown
    canvas[: len(legend), width:] = legend
    return canvas


def _middle(region: NDArray[np.bool_]) -> tuple[int, int] | None:
    """The point (x, y) well inside a region that is nearest to its mean; None where the region is next to nothing."""
    if region.sum() < MIN_SHARE * region.size:
        return None
    # A pixel of nothing around it: the image's border is an edge, too.
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    deep = np.argwhere(depth >= 0.9 * depth.max())
    y, x = deep[np.square(deep - np.argwhere(region).mean(0)).sum(1).argmin()]
    return int(x), int(y)


def _stick(image: ImageArray, plate: ImageArray, middle_xy: tuple[int, int], halo: int) -> None:
    """Put a plate with a dark line around it on an image, in place, moved inwards at the border."""
    (height, width), (h, w) = image.shape[:2], plate.shape[:2]
    left = min(max(middle_xy[0] - w // 2, 0), width - w)
    top = min(max(middle_xy[1] - h // 2, 0), height - h)
    image[max(top - halo, 0) : top + h + halo, max(left - halo, 0) : left + w + halo] = drawing.INK
    image[top : top + h, left : left + w] = plate


def _legend(numbers: Sequence[ImageArray], labels: Sequence[str], scale: drawing.Scale, width: int) -> ImageArray:
    """Each number's plate with its label's lines beside it, on white."""
    gap, across = 2 * scale.pad, max(number.shape[1] for number in numbers)
    most = max(width, 12 * scale.font)  # a label longer than this ends in an ellipsis
    rows = []
    for number, label in zip(numbers, labels, strict=True):
        lines = [
            drawing.text_plate(line, scale.font, scale.pad, most, ink=drawing.INK, paper=drawing.PAPER)
            for line in label.splitlines() or [""]
        ]
        rows.append((number, lines))
    text = max(line.shape[1] for _, lines in rows for line in lines)
    strips = [np.full((gap, gap + across + text + gap, 3), 255, np.uint8)]
    for number, lines in rows:
        strip = np.full((sum(len(line) for line in lines) + gap, strips[0].shape[1], 3), 255, np.uint8)
        left = gap + across - number.shape[1]
        strip[: len(number), left : gap + across] = number
        top = 0
        for line in lines:
            strip[top : top + len(line), gap + across : gap + across + line.shape[1]] = line
            top += len(line)
        strips.append(strip)
    return np.concatenate(strips)
