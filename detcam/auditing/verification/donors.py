"""Donors: what surrounds objects that the detector finds, to be transplanted around a missed object of their class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import Box
from detcam.auditing.error_targets import object_box
from detcam.auditing.verification.evidence import RING_WIDTH, control_generator
from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.data.images import as_float

MIN_DONORS = 2
"""Minimum number of donors of a class; with fewer, nothing is transplanted."""
MAX_DONORS = 3
"""Maximum number of donors of a class."""
MAX_CONSIDERED = 60
"""Maximum number of correct detections of a class that are considered as donors, by decreasing score."""
MIN_VISIBLE = 0.75
"""Minimum share of the window of a donor or of its control that lies in the image."""
MAX_SIDE = 256
"""Maximum longer side of a window that is kept, pixels."""
MAX_WINDOW_PIXELS = 2**25
"""Maximum number of pixels of a missed object's window; around a larger one nothing is transplanted."""
CONTROL_POSITIONS = 100
"""Number of random positions of which that whose window overlaps least with those of objects becomes the control."""


@dataclass(frozen=True, eq=False)
class Donor:
    """What surrounds an object that the detector finds.

    A window is a box that is larger than the object's by `RING_WIDTH` of its sides on each side. Its pixels have a
    further channel, which is 1 in the image and 0 beyond its border.

    Attributes:
        surroundings: (C + 1, h, w) float16 in [0, 1], the window of the object.
        control: likewise, the window of a position in the same image without an object; None if there is none.
    """

    surroundings: Tensor
    control: Tensor | None


Donors: TypeAlias = Mapping[int, Sequence[Donor]]
"""The donors of each class, by its index."""


def choose_donors(
    analysis: ErrorAnalysis,
    ground_truths: Sequence[GroundTruth] | Annotations,
    labels: Iterable[int],
    score_threshold: float,
    read: Callable[[int], Tensor],
) -> dict[int, tuple[Donor, ...]]:
    """Choose the donors of some classes: the correct detections with the highest scores, of different images first.

    Args:
        analysis: the matches of the detections.
        ground_truths: the objects of each image.
        labels: class indices.
        score_threshold: minimum score of a donor, in [0, 1].
        read: function from the index of an image to its pixels (C, H, W), float32 in [0, 1] or uint8; an object of one
            that cannot be read (OSError, TypeError or ValueError) is no donor.

    Returns:
        By class index, at most `MAX_DONORS` donors; fewer, or none, if the detector finds fewer objects.
    """
    chosen: dict[int, tuple[Donor, ...]] = {}
    for label in sorted(set(labels)):
        found = _found_objects(analysis, ground_truths, label, score_threshold)
        first_of_image = dict(reversed(found))
        ordered = sorted(found, key=lambda key: first_of_image[key[0]] != key[1])  # keeps the order otherwise
        chosen[label] = tuple(islice(_readable_donors(ordered, ground_truths, read), MAX_DONORS))
    return chosen


def _readable_donors(
    found: Iterable[tuple[int, int]],
    ground_truths: Sequence[GroundTruth] | Annotations,
    read: Callable[[int], Tensor],
) -> Iterator[Donor]:
    for image, index in found:
        try:
            pixels = read(image)
        except (OSError, TypeError, ValueError):
            continue
        yield _donor(pixels, ground_truths[image], index)


def _found_objects(
    analysis: ErrorAnalysis, ground_truths: Sequence[GroundTruth] | Annotations, label: int, score_threshold: float
) -> list[tuple[int, int]]:
    """Image index and index of each object of a class that is found and has surroundings, by decreasing score."""
    ranking = analysis.rankings.get(label)
    if ranking is None:
        return []
    hits = ranking.hits & (ranking.scores >= score_threshold)
    found = []
    for image, detection in ranking.keys[hits][:MAX_CONSIDERED].tolist():
        index = int(analysis.matches[image].ground_truth_index[detection])
        if _is_visible(object_box(ground_truths[image], index), ground_truths[image].image_size_hw):
            found.append((image, index))
    return found


def _is_visible(box: Box, image_size_hw: tuple[int, int]) -> bool:
    """Whether enough of the window of a box lies in the image."""
    height, width = image_size_hw
    left, top, right, bottom = window(box)
    visible = (min(right, width) - max(left, 0)) * (min(bottom, height) - max(top, 0))
    return visible >= MIN_VISIBLE * (right - left) * (bottom - top)


def window(box: Box) -> tuple[int, int, int, int]:
    """The window of a box, whole pixels; it may extend beyond the image."""
    left, top, right, bottom = box
    dx, dy = RING_WIDTH * (right - left), RING_WIDTH * (bottom - top)
    return math.floor(left - dx), math.floor(top - dy), math.ceil(right + dx), math.ceil(bottom + dy)


def _donor(image: Tensor, ground_truth: GroundTruth, index: int) -> Donor:
    box = object_box(ground_truth, index)
    generator = control_generator(f"{ground_truth.image_id} {index}")
    position = _free_position(box, ground_truth, generator)
    return Donor(cut_window(image, box), None if position is None else cut_window(image, position))


def _free_position(box: Box, ground_truth: GroundTruth, generator: torch.Generator) -> Box | None:
    """A position of a box's size, in the image and off all objects, with the least overlap with their windows.

    None if there is none whose window lies in the image by `MIN_VISIBLE`.
    """
    height, width = ground_truth.image_size_hw
    size = torch.tensor([box[2] - box[0], box[3] - box[1]])
    room = torch.tensor([width, height]) - size
    if bool((room < 0).any()):
        return None
    corners = torch.rand(CONTROL_POSITIONS, 2, generator=generator) * room
    positions = torch.cat([corners, corners + size], 1)
    objects = ground_truth.boxes_xyxy.float()
    windows = torch.tensor([window(object_box(ground_truth, index)) for index in range(len(objects))]).float()
    visible = [_is_visible((x1, y1, x2, y2), (height, width)) for x1, y1, x2, y2 in positions.tolist()]
    free = (_intersections(positions, objects).sum(1) == 0) & torch.tensor(visible)
    if not bool(free.any()):
        return None
    overlap = _intersections(positions, windows.view(-1, 4)).sum(1).where(free, torch.tensor(math.inf))
    x1, y1, x2, y2 = positions[int(overlap.argmin())].tolist()
    return x1, y1, x2, y2


def _intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """(K, L) areas of the intersections of boxes (K, 4) with others (L, 4)."""
    corner = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = torch.minimum(boxes[:, None, 2:], others[None, :, 2:]) - corner
    return sides.clamp(min=0).prod(2)


def cut_window(image: Tensor, box: Box) -> Tensor:
    """The window (C + 1, h, w) float16 of a box in an image (C, H, W), float32 or uint8."""
    left, top, right, bottom = window(box)
    height, width = image.shape[-2:]
    pixels = torch.zeros(len(image) + 1, bottom - top, right - left)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    inner = pixels[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    inner[:-1], inner[-1] = as_float(image[:, rows, columns]), 1
    factor = MAX_SIDE / max(pixels.shape[-2:])
    if factor < 1:
        size = [max(round(side * factor), 1) for side in pixels.shape[-2:]]
        pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    return pixels.half()


def paste_window(image: Tensor, box: Box, surroundings: Tensor) -> Tensor:
    """An image (C, H, W) with the window of a donor, resized to that of a box; the box itself is painted over as well.

    Args:
        image: (C, H, W), float32 in [0, 1] or uint8.
        box: the box.
        surroundings: (C + 1, h, w), a window as in `Donor`.
    """
    left, top, right, bottom = window(box)
    height, width = image.shape[-2:]
    size = (bottom - top, right - left)
    pixels = F.interpolate(surroundings[None].float(), size, mode="bilinear", antialias=True, align_corners=False)[0]
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    pixels = pixels[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    result = image.clone() if image.is_floating_point() else as_float(image)
    target = result[:, rows, columns]
    target[:] = torch.where(pixels[-1:] > 0.5, pixels[:-1] / pixels[-1:].clamp(min=0.5), target)
    return result
