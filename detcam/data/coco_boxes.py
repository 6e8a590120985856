"""Boxes and segmentations of COCO files as tools write them: text, pairs, other corners, fractions of the image."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeGuard, get_args

from pycocotools import mask as coco_masks

from detcam.data.ground_truth import as_rle
from detcam.utils.console import short_repr

BoxFormat: TypeAlias = Literal["xywh", "xyxy", "cxcywh", "xywh-fractions", "xyxy-fractions", "cxcywh-fractions"]
"""What the four numbers of a box are: corner and size (COCO), two corners, or center and size; in pixels, or fractions
of the image's width and height."""

FRAMES = ("upright", "stored")
"""What may be appended to a format: the frame of the boxes of images that EXIF rotates."""
MAX_COORDINATE = 1e7
"""Maximum magnitude of a coordinate, in pixels: larger ones overflow in the libraries that draw boxes."""
MAX_RUN_BITS = 60
"""Maximum number of bits of a run length: longer numbers are no run lengths, and take quadratic time to decode."""
MIN_AGREEMENT = 0.8
"""Fraction of the boxes that must look like another format, and minimum overlap with the polygon."""
MIN_OUTSIDE = 0.2
"""Fraction of the boxes that end outside of their image as corner and size, above which they may be two corners."""


def check_box_format(box_format: str | None) -> None:
    """Raise ValueError if a box format is unknown."""
    if box_format is not None and without_frame(box_format) not in get_args(BoxFormat):
        raise ValueError(
            f"expected box_format to be one of {', '.join(get_args(BoxFormat))}, also with -upright or -stored "
            f"appended; got {box_format!r}"
        )


def without_frame(box_format: str) -> str:
    """Return a format without the frame that may be appended to it."""
    start, _, last = box_format.rpartition("-")
    return start if last in FRAMES else box_format


def plain_box(value: Any) -> list[float] | None:
    """Return a box's four numbers from a list of numbers or texts, a text, or a mapping; None for anything else."""
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        value = [value.get(key) for key in ("x", "y", "width", "height")]
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    numbers = [_number(item) for item in value]
    return numbers if all(number is not None and is_coordinate(number) for number in numbers) else None  # type: ignore[return-value]


def is_empty_box(value: Any) -> bool:
    """Return whether a box holds no position: nothing, or zeros."""
    return value in (None, [], "", ()) or (isinstance(value, (list, tuple)) and all(item in (0, "0") for item in value))


def to_xywh(box: Sequence[float], box_format: str, size_hw: tuple[int, int]) -> list[float]:
    """Convert a box of any format to corner and size in pixels."""
    a, b, c, d = box
    order, _, fractions = box_format.partition("-")
    if fractions:
        a, c, b, d = a * size_hw[1], c * size_hw[1], b * size_hw[0], d * size_hw[0]
    if order == "xyxy":
        return [a, b, c - a, d - b]
    return [a - c / 2, b - d / 2, c, d] if order == "cxcywh" else [a, b, c, d]


def recognize_format(items: Sequence[tuple[Mapping[str, Any], tuple[int, int]]]) -> str | None:
    """Return the format of a file's boxes where it is certainly not COCO's, else None.

    Boxes are fractions if all of them lie in [0, 1] and none is a whole pixel. They are two corners if these agree with
    the polygon or the stated area, and corner and size do not; or if many boxes end outside of their image as corner
    and size, and none does as two corners.

    Args:
        items: annotations, each with the height and width of its image.
    """
    boxes = [(box, entry, size) for entry, size in items if (box := plain_box(entry.get("bbox"))) and any(box)]
    if not boxes:
        return None
    if all(0 <= value <= 1 for box, _, _ in boxes for value in box) and any(v % 1 for b, _, _ in boxes for v in b):
        corners = all(box[2] > box[0] and box[3] > box[1] for box, _, _ in boxes)
        outside = sum(box[0] + box[2] > 1.01 or box[1] + box[3] > 1.01 for box, _, _ in boxes)
        return "xyxy-fractions" if corners and outside > MIN_OUTSIDE * len(boxes) else "xywh-fractions"
    if not all(box[2] > box[0] and box[3] > box[1] for box, _, _ in boxes):
        return None
    votes = [vote for item in boxes if (vote := _vote(*item)) is not None]
    if votes:
        return "xyxy" if sum(votes) >= MIN_AGREEMENT * len(votes) else None
    inside = all(box[2] <= size[1] + 1 and box[3] <= size[0] + 1 for box, _, size in boxes)
    outside = sum(box[0] + box[2] > size[1] + 1 or box[1] + box[3] > size[0] + 1 for box, _, size in boxes)
    return "xyxy" if inside and outside > MIN_OUTSIDE * len(boxes) else None


def _vote(box: Sequence[float], entry: Mapping[str, Any], size_hw: tuple[int, int]) -> bool | None:
    """Whether a box is two corners, by its polygon or area; None if they do not tell."""
    polygons, _ = plain_segmentation(entry.get("segmentation"), size_hw)
    if isinstance(polygons, list) and polygons:
        xs, ys = [v for p in polygons for v in p[0::2]], [v for p in polygons for v in p[1::2]]
        true = (min(xs), min(ys), max(xs), max(ys))
        corners, sized = _iou(true, box), _iou(true, (box[0], box[1], box[0] + box[2], box[1] + box[3]))
        return None if max(corners, sized) < MIN_AGREEMENT or corners == sized else corners > sized
    area = _number(entry.get("area"))
    if not area:
        return None
    as_corners, as_size = (box[2] - box[0]) * (box[3] - box[1]), box[2] * box[3]
    close_corners, close_size = (abs(value - area) <= 0.02 * area for value in (as_corners, as_size))
    return close_corners if close_corners != close_size else None


def _iou(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def box_of_segmentation(segmentation: Any, size_hw: tuple[int, int]) -> list[float]:
    """Return the bounding box (x, y, w, h) of a valid segmentation."""
    box: list[float] = coco_masks.toBbox(as_rle(segmentation, *size_hw)).tolist()
    return box


def plain_segmentation(value: Any, size_hw: tuple[int, int]) -> tuple[Any, str]:
    """Return the valid part of a segmentation, or None; and a description of its problem.

    Text is parsed; points as pairs, run lengths in a list, as floats and as the `repr` of bytes are converted.
    """
    if isinstance(value, str):
        value = _parsed(value) or value
    if not value:
        return None, ""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, list):
        return _polygons(value, size_hw)
    if not isinstance(value, dict) or not isinstance(value.get("counts"), (list, str)):
        return None, f"expected polygons or run lengths; got {short_repr(value)}"
    if [_number(side) for side in value.get("size") or ()] != list(size_hw):
        return None, f"its run lengths are for {value.get('size')} (height, width) and the image has {list(size_hw)}"
    counts = value["counts"]
    if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):
        counts = counts[2:-1]
    runs = run_lengths(counts) if isinstance(counts, str) else [_whole(run) for run in counts]
    if runs is None or not all(isinstance(run, int) and run >= 0 for run in runs):
        return None, "its run lengths do not add up to the image"
    if sum(runs) != size_hw[0] * size_hw[1]:
        return None, "its run lengths do not add up to the image"
    return {"size": list(size_hw), "counts": counts if isinstance(counts, str) else runs}, ""


def _polygons(value: list[Any], size_hw: tuple[int, int]) -> tuple[Any, str]:
    polygons = [value] if is_number(value[0]) else value
    if all(_is_pair(point) for point in polygons):  # [[x, y], [x, y], ...]
        polygons = [polygons]
    flat = [
        [number for point in polygon for number in point]
        if isinstance(polygon, list) and polygon and all(_is_pair(point) for point in polygon)
        else polygon
        for polygon in polygons
    ]
    good = [
        polygon
        for polygon in flat
        if isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(is_number(number) for number in polygon)
    ]
    near = [polygon for polygon in good if _is_near(polygon, size_hw)]
    if len(near) < len(good):
        return near or None, "a polygon that reaches farther outside of the image than the image's size"
    return (good, "") if len(good) == len(flat) else (good or None, "a polygon without three points")


def _is_near(polygon: Sequence[float], size_hw: tuple[int, int]) -> bool:
    """Whether a polygon stays near the image: pycocotools takes memory for its perimeter, and crashes from 1e8 on."""
    (height, width), xs, ys = size_hw, polygon[0::2], polygon[1::2]
    return -width <= min(xs) and max(xs) <= 2 * width and -height <= min(ys) and max(ys) <= 2 * height


def run_lengths(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths; return None for an invalid text, which pycocotools does not check.

    A number is a sequence of characters from "0" with five bits each, the lowest first; bit 32 marks that more follow.
    From the fourth number on, the difference to the last but one is stored.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        if shift > MAX_RUN_BITS:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    return runs if shift == 0 else None


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(is_number(item) for item in value)


def _parsed(text: str) -> Any:
    """The value that a text holds: JSON, a Python literal, or numbers with commas; None for other text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return list(value) if isinstance(value, tuple) else value
    return None


def _number(value: Any) -> float | None:
    """A finite number, also from text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if is_number(value) else None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number that fits in a float."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond 1e308
        return False


def is_coordinate(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number that may be a coordinate in pixels."""
    return is_number(value) and abs(value) <= MAX_COORDINATE
