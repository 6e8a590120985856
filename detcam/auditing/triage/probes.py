"""Signals of how much trust a detection deserves, from a few further forward passes and without annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter
from detcam.adapters.detection import DetectorAdapter
from detcam.auditing.conformal import MIN_CORRECT, typicality
from detcam.detections import Detections
from detcam.perturbation.fills import RingFill, SurroundingsFill
from detcam.utils.filters import blur

MIN_IOU = 0.5
"""Minimum IoU of a detection in a changed image with the detection that is looked for."""
MARGIN = 0.1
"""Margin of the box that remains when its surroundings are filled, relative to its sides."""
RING_WIDTHS = (0.5, 1.0)
"""Widths of the rings around the box that are filled to see on what the class rests, relative to the box's sides. What
surrounds an object may reach further than the narrow one; the wide one may cover other objects."""
SHIFT = 3
"""Pixels by which an image is moved to see whether its detections are stable."""
CONFIDENT_SHARE = 0.5
"""Share of the detections of a class, by decreasing score, that others are compared with."""


def best_overlapping_score(detections: Detections, box: Tensor, label: int) -> float:
    """The highest score of a detection of the class that overlaps a box (4,); 0 if there is none."""
    same = detections.labels == label
    if not bool(same.any()):
        return 0.0
    overlap = box_iou(box[None].float(), detections.boxes_xyxy[same].float())[0]
    return float((detections.scores[same] * (overlap >= MIN_IOU)).max())


def score_stability(
    adapter: Adapter, image: Tensor, boxes: Tensor, labels: Sequence[int], scores: Sequence[float]
) -> list[float]:
    """Measure how much of its score each detection keeps under changes that should not matter.

    The image is mirrored, moved by `SHIFT` pixels, made brighter and darker, and blurred a little.

    Args:
        adapter: the detector.
        image: (3, H, W) float32 in [0, 1].
        boxes: (n, 4) xyxy pixels.
        labels: class index of each detection.
        scores: score of each detection.

    Returns:
        Mean of the remaining scores relative to the score, in [0, 1].
    """
    width = image.shape[-1]
    moved = torch.roll(image, (SHIFT, SHIFT), (-2, -1))
    variants = [image.flip(-1), moved, (image * 1.2).clamp(0, 1), image * 0.8, blur(image, 0.8)]
    mirrored = boxes.clone()
    mirrored[:, [0, 2]] = width - boxes[:, [2, 0]]
    expected = [mirrored, boxes + SHIFT, boxes, boxes, boxes]
    found = adapter.predict(variants)
    return [
        float(
            np.mean(
                [
                    min(best_overlapping_score(each, where[index], labels[index]) / max(scores[index], 1e-9), 1.0)
                    for each, where in zip(found, expected, strict=True)
                ]
            )
        )
        for index in range(len(boxes))
    ]


def own_content(
    adapter: Adapter, image: Tensor, boxes: Tensor, labels: Sequence[int], scores: Sequence[float]
) -> list[float]:
    """Measure how far the content of each detection's box, with a margin of `MARGIN`, suffices for the detection.

    Returns:
        Per detection, the score that remains when all around its box is filled, relative to the score, in [0, 1].
    """
    fill, result = SurroundingsFill(), []
    for box, label, score in zip(boxes, labels, scores, strict=True):  # one image each: large images have many boxes
        (found,) = adapter.predict([fill(image[None], ~_grown_box(box, MARGIN, image)[None])[0]])
        result.append(min(best_overlapping_score(found, box, label) / max(score, 1e-9), 1.0))
    return result


def own_class(
    adapter: Adapter,
    image: Tensor,
    boxes: Tensor,
    labels: Sequence[int],
    scores: Sequence[float],
    score_threshold: float,
) -> list[float]:
    """Measure how far the class of each detection remains if a ring around its box is filled.

    The box is not changed, and neither is what is far away: if all of it is filled, correct detections change as well.

    Args:
        adapter: the detector.
        image: (3, H, W) float32 in [0, 1].
        boxes: (n, 4) xyxy pixels.
        labels: class index of each detection.
        scores: score of each detection.
        score_threshold: minimum score of a detection, in (0, 1).

    Returns:
        The score that remains, relative to the score, in [0, 1], if the object is detected with another class instead,
        with every fill of a ring of one of `RING_WIDTHS`; else 1. A detection that merely vanishes counts as 1: small
        objects do so without anything around them.
    """
    result = []
    for box, label, score in zip(boxes, labels, scores, strict=True):
        inside = _grown_box(box, 0.0, image)
        rings = [_grown_box(box, width, image) & ~inside for width in RING_WIDTHS]
        rings = [ring for ring in rings if bool(ring.any())]
        own, other = [0.0] * len(rings), [1.0] * len(rings)
        for fill in (RingFill(), SurroundingsFill()):
            undecided = [row for row in range(len(rings)) if own[row] <= other[row]]  # most keep their class at once
            filled = [fill(image[None], rings[row][None])[0] for row in undecided]
            for row, found in zip(undecided, adapter.predict(filled) if filled else [], strict=True):
                own[row] = max(own[row], best_overlapping_score(found, box, label))
                other[row] = min(other[row], _best_other_score(found, box, label))
        remaining = [
            each / max(score, 1e-9)
            for each, rival in zip(own, other, strict=True)
            if rival >= max(each, score_threshold)
        ]
        result.append(min([1.0, *remaining]))
    return result


def _best_other_score(detections: Detections, box: Tensor, label: int) -> float:
    """The highest score of a detection of another class that overlaps a box (4,); 0 if there is none."""
    others = detections.labels[detections.labels != label].unique().tolist()
    return max((best_overlapping_score(detections, box, other) for other in others), default=0.0)


def _grown_box(box: Tensor, margin: float, image: Tensor) -> Tensor:
    """The pixels (H, W) bool of an image (C, H, W) in a box (4,) with a margin relative to its sides."""
    height, width = image.shape[-2:]
    left, top, right, bottom = box.tolist()
    side_x, side_y = margin * (right - left), margin * (bottom - top)
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    return ((rows >= top - side_y) & (rows < bottom + side_y))[:, None] & (
        (columns >= left - side_x) & (columns < right + side_x)
    )


def self_typicality(
    features: Mapping[tuple[int, int], np.ndarray], scores: Mapping[tuple[int, int], float]
) -> dict[tuple[int, int], float]:
    """Compare the detections of one class with its own confident ones.

    The half with the highest scores takes the place of the correct detections in
    `detcam.auditing.conformal.typicality`.

    Args:
        features: (D,) features by image index and detection index.
        scores: scores of the same detections.

    Returns:
        Typicality in [0, 1]; NaN with too few detections.
    """
    keys = [key for key in features if key in scores]
    if len(keys) < 2 * MIN_CORRECT:
        return dict.fromkeys(keys, float("nan"))
    values = np.array([scores[key] for key in keys])
    confident = np.zeros(len(keys), dtype=bool)
    confident[np.argsort(-values, kind="stable")[: round(CONFIDENT_SHARE * len(keys))]] = True
    table = np.stack([features[key] for key in keys])
    images = np.array([image for image, _ in keys])
    return dict(zip(keys, typicality(table, values, confident, images).tolist(), strict=True))


def probing_adapter(adapter: Adapter) -> Adapter:
    """The detector with a threshold so low that falling scores remain visible."""
    return adapter.with_score_threshold(0.01) if isinstance(adapter, DetectorAdapter) else adapter
