"""Matching of detections with ground-truth objects by COCO's rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from pycocotools import mask as coco_masks
from torch import Tensor

from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections

IouType: TypeAlias = Literal["bbox", "segm"]
"""Whether boxes or masks are compared."""


@dataclass(frozen=True)
class Match:
    """Matching of the D detections of an image with its T ground-truth objects.

    Attributes:
        iou: (D, T) float64 in [0, 1], IoU of every detection with every object, of any class; for a crowd region, the
            fraction of the detection that lies in it.
        ground_truth_index: (D,) int64, index of the object that a detection is matched with, or -1.
        detection_index: (T,) int64, index of the detection that an object is matched with, or -1; -1 for crowd regions.
        ignored: (D,) bool, neither true nor false positive: in a crowd region, or outside the area range.
        dropped: (D,) bool, beyond `max_detections`, or of a class that is not evaluated.
        ground_truth_ignored: (T,) bool, crowd regions, objects outside the area range, and objects of a class that is
            not evaluated.
    """

    iou: np.ndarray
    ground_truth_index: np.ndarray
    detection_index: np.ndarray
    ignored: np.ndarray
    dropped: np.ndarray
    ground_truth_ignored: np.ndarray

    @property
    def true_positive(self) -> np.ndarray:
        """(D,) bool, whether each detection is a true positive."""
        return (self.ground_truth_index >= 0) & ~self.ignored

    @property
    def false_positive(self) -> np.ndarray:
        """(D,) bool, whether each detection is a false positive."""
        return (self.ground_truth_index < 0) & ~self.ignored & ~self.dropped

    @property
    def missed(self) -> np.ndarray:
        """(T,) bool, whether each object is a false negative."""
        return (self.detection_index < 0) & ~self.ground_truth_ignored


def overlaps(detections: Detections, ground_truth: GroundTruth, iou_type: IouType = "bbox") -> np.ndarray:
    """Compute the IoU of every detection with every ground-truth object with pycocotools.

    For a crowd region, the intersection is divided by the detection's area instead of the union.

    Args:
        detections: D detections of an image.
        ground_truth: T objects of the same image.
        iou_type: whether boxes or masks are compared.

    Returns:
        (D, T) float64 in [0, 1].

    Raises:
        ValueError: `iou_type` is ``"segm"`` and the detections have no masks, or masks of another size.
    """
    if not len(detections) or not len(ground_truth):
        return np.zeros((len(detections), len(ground_truth)))
    crowd = to_array(ground_truth.crowd).astype(np.uint8)
    if iou_type == "bbox":
        return np.ascontiguousarray(coco_masks.iou(boxes_xywh(detections), ground_truth.boxes_xywh, crowd))
    return np.ascontiguousarray(coco_masks.iou(_rles(detections, ground_truth), ground_truth.rles(), crowd))


def match(
    detections: Detections,
    ground_truth: GroundTruth,
    *,
    iou_threshold: float = 0.5,
    iou_type: IouType = "bbox",
    max_detections: int = 100,
    area_range: tuple[float, float] | None = None,
    labels: Sequence[int] | None = None,
) -> Match:
    """Match the detections of one image with its ground truth, as pycocotools' ``COCOeval`` does.

    In order of decreasing score, each detection takes the unmatched object of its class with the highest IoU, if the
    IoU reaches the threshold; among equal IoUs, the last object of the file. Remaining detections in a crowd region of
    their class are ignored. Unlike pycocotools, an annotation with the id 0 is matched as any other.

    Args:
        detections: the model's detections.
        ground_truth: the objects, with labels in the model's class indices.
        iou_threshold: minimum IoU of a match, in (0, 1].
        iou_type: whether boxes or masks are compared.
        max_detections: maximum number of detections per class; further ones are dropped.
        area_range: minimum and maximum area in pixels: objects outside are ignored, and so are unmatched detections
            outside. None means no limits.
        labels: class indices to evaluate; detections of other classes are dropped, and objects of other classes are
            ignored. None evaluates all.

    Returns:
        For each detection the index of its object, and for each object that of its detection.

    Raises:
        ValueError: as `overlaps`.
    """
    iou = overlaps(detections, ground_truth, iou_type)
    detected_labels, crowd = to_array(detections.labels), to_array(ground_truth.crowd)
    order = order_by_score(detections)
    dropped = ~is_evaluated(detected_labels, labels)
    for label in np.unique(detected_labels):
        dropped[order[detected_labels[order] == label][max_detections:]] = True
    min_area, max_area = area_range or (0.0, np.inf)
    areas = to_array(ground_truth.area)
    true_labels = to_array(ground_truth.labels)
    ground_truth_ignored = crowd | (areas < min_area) | (areas > max_area) | ~is_evaluated(true_labels, labels)
    allowed = (iou >= min(iou_threshold, 1 - 1e-10)) & (detected_labels[:, None] == true_labels[None])
    counted = order[~dropped[order]]
    matched, matched_by = match_greedily(iou, allowed & ~ground_truth_ignored[None], counted, prefer_last=True)
    unmatched = counted[matched[counted] < 0]
    ignored_match, _ = match_greedily(
        iou, allowed & ground_truth_ignored[None], unmatched, prefer_last=True, reusable=crowd
    )
    ignored = ignored_match >= 0
    if area_range is not None:
        detected_areas = _areas(detections, iou_type)
        ignored |= (matched < 0) & ~dropped & ((detected_areas < min_area) | (detected_areas > max_area))
    return Match(iou, np.where(matched < 0, ignored_match, matched), matched_by, ignored, dropped, ground_truth_ignored)


def match_greedily(
    iou: np.ndarray, allowed: np.ndarray, order: np.ndarray, *, prefer_last: bool, reusable: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Match each detection, in the order given, with the free object of highest IoU.

    Args:
        iou: (D, T).
        allowed: (D, T) bool, the pairs that may be matched.
        order: indices of the detections to match.
        prefer_last: whether the last or the first of objects with equal IoU is taken.
        reusable: (T,) bool, objects that may be matched more than once.

    Returns:
        (D,) index of each detection's object or -1; (T,) index of each object's (first) detection or -1.
    """
    matched = np.full(len(iou), -1, dtype=np.int64)
    matched_by = np.full(allowed.shape[1], -1, dtype=np.int64)
    has_candidates: np.ndarray = np.logical_or.reduce(allowed, axis=1)
    for detection in order[has_candidates[order]].tolist():
        free = matched_by < 0 if reusable is None else (matched_by < 0) | reusable
        candidates = np.flatnonzero(allowed[detection] & free)
        if not len(candidates):
            continue
        values = iou[detection, candidates]
        best = candidates[len(candidates) - 1 - values[::-1].argmax() if prefer_last else values.argmax()]
        matched[detection] = best
        if matched_by[best] < 0:
            matched_by[best] = detection
    return matched, matched_by


def to_array(tensor: Tensor | np.ndarray) -> np.ndarray:
    """Convert a tensor on any device to an array."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()


class ScoredLabels(NamedTuple):
    """What counts and costs need of the detections of an image; 12 bytes a detection.

    Attributes:
        labels: (N,) int64.
        scores: (N,) float32.
    """

    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, detections: Detections) -> ScoredLabels:
        """Copy labels and scores."""
        return cls(to_array(detections.labels).copy(), to_array(detections.scores).copy())


def is_evaluated(labels: np.ndarray, evaluated: Sequence[int] | None) -> np.ndarray:
    """(n,) bool, whether each label is among the evaluated ones; None evaluates all."""
    return np.ones(len(labels), dtype=bool) if evaluated is None else np.isin(labels, list(evaluated))


def order_by_score(detections: Detections) -> np.ndarray:
    """(D,) int64, indices by decreasing score; equal scores keep their order."""
    return np.argsort(-to_array(detections.scores).astype(np.float64), kind="stable")


def boxes_xywh(detections: Detections) -> np.ndarray:
    """(D, 4) float64, left, top, width, height, as in COCO results files."""
    boxes = to_array(detections.boxes_xyxy).astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def paired_images(
    detections: Sequence[Detections], ground_truths: Sequence[GroundTruth] | Annotations
) -> Iterator[tuple[int, Detections, GroundTruth]]:
    """Iterate over index, detections and ground truth of each image.

    Raises:
        ValueError: the lists differ in length, or the entries in image size.
    """
    if len(detections) != len(ground_truths):
        raise ValueError(f"expected one Detections for each of the {len(ground_truths)} images; got {len(detections)}")
    for index, (detected, ground_truth) in enumerate(zip(detections, ground_truths, strict=True)):
        if tuple(detected.image_size_hw) != tuple(ground_truth.image_size_hw):
            raise ValueError(
                f"image {index} ({ground_truth.file_name}) has size {ground_truth.image_size_hw} (height, width), but "
                f"its detections are of an image of size {detected.image_size_hw}; give both in the same order"
            )
        yield index, detected, ground_truth


def _rles(detections: Detections, ground_truth: GroundTruth) -> list[dict[str, object]]:
    if detections.masks is None:
        raise ValueError('these detections have no masks; compare boxes: iou_type="bbox"')
    if tuple(detections.masks.shape[1:]) != tuple(ground_truth.image_size_hw):
        raise ValueError(
            f"expected masks of the image's size {ground_truth.image_size_hw}; got {tuple(detections.masks.shape[1:])}"
        )
    return coco_masks.encode(np.asfortranarray(to_array(detections.masks).astype(np.uint8).transpose(1, 2, 0)))


def _areas(detections: Detections, iou_type: IouType) -> np.ndarray:
    if iou_type == "segm" and detections.masks is not None:
        return to_array(detections.masks.flatten(1).sum(1)).astype(np.float64)
    return boxes_xywh(detections)[:, 2:].prod(1)
