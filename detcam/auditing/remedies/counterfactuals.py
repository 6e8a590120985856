"""Counterfactual training images: evidence filled, or transplanted into other images, with unchanged labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch

from detcam.auditing.case import AuditCase, Box
from detcam.auditing.report.report_data import ReportData, ReportImage, ReportObject
from detcam.auditing.sentences import rests_on_light
from detcam.perturbation.fills import EvenLightFill, Fill, SurroundingsFill
from detcam.utils.batching import group_by
from detcam.utils.opencv import cv2

Kind: TypeAlias = Literal["original", "filled", "transplanted"]
MAX_TRIES = 60
"""Random positions that are tried for a transplant."""
DEFAULT_TRANSPLANTS = 3
"""Images into which the evidence of each case is transplanted."""
MAX_VERTICAL_SHIFT = 0.1
"""Maximum vertical shift of a background error's evidence relative to the image's height: size and surroundings of most
things depend on where they are between sky and foreground."""
MIN_CONTRAST = 32
"""Minimum difference from the surroundings, of 255, at which a pixel is pasted as it is."""
MAX_COVERED = 0.5
"""Maximum share of an object that a fill may cover: the object has to remain visible."""


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """An image of a training set that remedies write.

    Attributes:
        kind: ``"original"``; ``"filled"``, without the evidence; ``"transplanted"``, with that of another image.
        image: the image of the report that it was made from.
        pixels: (H, W, 3) uint8 RGB.
        objects: its objects.
        case_ids: the cases whose evidence was filled or transplanted, or that occur in the original.
    """

    kind: Kind
    image: ReportImage
    pixels: np.ndarray
    objects: tuple[ReportObject, ...]
    case_ids: tuple[str, ...]


def make_counterfactuals(
    data: ReportData, cases: Sequence[AuditCase], transplants: int = DEFAULT_TRANSPLANTS, seed: int = 0
) -> Iterator[TrainingImage]:
    """Make the training images of some cases with confirmed evidence.

    Per image: the original, in which the evidence appears and the labels say what is there, and the same without the
    evidence of all cases. Per case: other images with its evidence, at a position without an object, or, if the error
    concerns an object, beside another object of that class at the same relative position.

    Args:
        data: the report.
        cases: cases of one group.
        transplants: number of images into which the evidence of each case is transplanted.
        seed: seed of images and positions.
    """
    random = np.random.default_rng(seed)
    for image_id, members in group_by(cases, lambda case: case.image_id).items():
        image = data.images.get(image_id)
        if image is None:
            continue
        pixels = data.pixels(image)
        ids = tuple(case.id for case in members)
        yield TrainingImage("original", image, pixels, image.objects, ids)
        masks = {case.id: mask for case in members if (mask := data.evidence(case)) is not None}
        filled = [
            case.id
            for case in members
            if case.id in masks and not case.needs_context and not _hides_object(masks[case.id], image)
        ]
        if filled:
            without = pixels
            for fill in (EvenLightFill(), SurroundingsFill()):
                parts = [masks[case.id] for case in members if case.id in filled and _fill_of(case) is type(fill)]
                if parts:
                    without = fill_pixels(without, grown(np.any(parts, axis=0)), fill)
            yield TrainingImage("filled", image, without, image.objects, tuple(filled))
        for case in members if transplants else ():
            if case.id in masks and case.type != "missed":
                yield from _transplant(data, case, pixels, masks[case.id], transplants, random)


def _fill_of(case: AuditCase) -> type[Fill]:
    """The fill that removes the evidence of a case; a region of light that fades slowly is filled with that light."""
    return EvenLightFill if rests_on_light(case) else SurroundingsFill


def fill_pixels(pixels: np.ndarray, region: np.ndarray, fill: Fill | None = None) -> np.ndarray:
    """Fill a region (H, W) bool of an image, by default with a blur of its surroundings."""
    tensor = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    filled = (fill or SurroundingsFill())(tensor, torch.from_numpy(region)[None])[0]
    return filled.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def grown(mask: np.ndarray) -> np.ndarray:
    """Grow a region by a quarter of its mean radius, so that no rim of the evidence remains."""
    radius = max(1, round(0.25 * float(np.sqrt(mask.sum() / np.pi))))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0


def _hides_object(mask: np.ndarray, image: ReportImage) -> bool:
    """Whether the region covers most of an object, which then would not be there any more."""
    return any(not item.crowd and _covered(mask, item.box_xyxy) > MAX_COVERED for item in image.objects)


def _covered(mask: np.ndarray, box: Box) -> float:
    left, top, right, bottom = (max(round(value), 0) for value in box)
    part = mask[top:bottom, left:right]
    return float(part.mean()) if part.size else 0.0


def _transplant(
    data: ReportData, case: AuditCase, pixels: np.ndarray, mask: np.ndarray, count: int, random: np.random.Generator
) -> Iterator[TrainingImage]:
    """The evidence of a case in at most `count` other images."""
    region = grown(mask)
    others = [image for image in data.images.values() if image.image_id != case.image_id]
    made = 0
    for index in random.permutation(len(others)).tolist():
        if made == count:
            return
        target = others[index]
        shift = _find_shift(case, region, target, random)
        if shift is not None:
            pasted = paste_region(pixels, region, data.pixels(target), shift)
            yield TrainingImage("transplanted", target, pasted, target.objects, (case.id,))
            made += 1


def _find_shift(
    case: AuditCase, region: np.ndarray, target: ReportImage, random: np.random.Generator
) -> tuple[int, int] | None:
    """How far to move the region, right and down, into another image; None if there is no position."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    patch = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    height, width = target.size_hw
    has_object = case.ground_truth is not None and case.type != "background"
    if has_object and case.ground_truth is not None:
        name, truth = case.ground_truth.name, case.ground_truth.box_xyxy
        anchors = [item.box_xyxy for item in target.objects if item.name == name and not item.crowd]
        for index in random.permutation(len(anchors)).tolist():
            right, down = (round(float(value)) for value in _center(anchors[index]) - _center(truth))
            moved = _moved(patch, right, down)
            others = [item.box_xyxy for item in target.objects if item.box_xyxy != anchors[index]]
            if _is_inside(moved, height, width) and not _touches(moved, others):
                return right, down
        return None
    # The box of the false positive moves with its evidence: an object there would make it right.
    left, top, right_edge, bottom = case.box_xyxy
    hull = (min(patch[0], left), min(patch[1], top), max(patch[2], right_edge), max(patch[3], bottom))
    if hull[2] - hull[0] > width or hull[3] - hull[1] > height:
        return None
    same_height = (hull[1] + hull[3]) / 2 * (height / case.image_size_hw[0] - 1)
    limit = MAX_VERTICAL_SHIFT * height
    highest, lowest = max(same_height - limit, -hull[1]), min(same_height + limit, height - hull[3])
    for _ in range(MAX_TRIES if highest <= lowest else 0):
        right = round(random.uniform(0, width - (hull[2] - hull[0])) - hull[0])
        down = round(random.uniform(highest, lowest))
        if _is_inside(_moved(patch, right, down), height, width) and not _touches(
            _moved(hull, right, down), [item.box_xyxy for item in target.objects]
        ):
            return right, down
    return None


def paste_region(source: np.ndarray, region: np.ndarray, target: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """Paste what a region (H, W) bool of an image shows, relative to its surroundings, into another image.

    Pixels that differ clearly from the fill of the region are pasted as they are. Of the others, the difference is
    added, so that no patch of other water, grass or light shows where the region comes from.

    Args:
        source: (H, W, 3) uint8.
        region: the region in the source.
        target: (H', W', 3) uint8.
        shift: how far the region moves, right and down.
    """
    right, down = shift
    rows, columns = np.nonzero(region)
    top, bottom, left, end = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    patch = source[top:bottom, left:end].astype(np.float32)
    difference = patch - fill_pixels(source, region)[top:bottom, left:end]
    contrast = np.abs(difference).max(-1, keepdims=True)
    opaque = np.clip(2 * contrast / max(float(contrast.max()) / 2, MIN_CONTRAST) - 1, 0, 1)
    alpha = cv2.GaussianBlur(region[top:bottom, left:end].astype(np.float32), (0, 0), 0.8)
    alpha = np.where(region[top:bottom, left:end], alpha, 0)[..., None]
    result = target.copy()
    window = result[top + down : bottom + down, left + right : end + right]
    change = opaque * (patch - window) + (1 - opaque) * difference
    window[:] = np.rint(window + alpha * change).clip(0, 255).astype(np.uint8)
    return result


def _center(box: Box) -> np.ndarray:
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def _moved(box: Sequence[float], right: int, down: int) -> Box:
    return box[0] + right, box[1] + down, box[2] + right, box[3] + down


def _is_inside(box: Box, height: int, width: int) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height


def _touches(box: Box, others: Sequence[Box]) -> bool:
    return any(
        min(box[2], other[2]) > max(box[0], other[0]) and min(box[3], other[3]) > max(box[1], other[1])
        for other in others
    )
