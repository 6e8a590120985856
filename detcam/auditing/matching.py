"""Which detection found which true object, by COCO's rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from pycocotools import mask as coco_masks
from torch import Tensor

from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections

IouType: TypeAlias = Literal["bbox", "segm"]
"""Whether boxes or masks are compared."""


@dataclass(frozen=True)
class Match:
    """How the D detections of one image met its T true objects.

    Attributes:
        iou: (D, T) float64 in [0, 1], of every detection with every object, whatever their classes; with a crowd
            region, the share of the detection that lies in it.
        truth: (D,) int64, the object that a detection found, or -1.
        detection: (T,) int64, the detection that found an object, or -1; -1 for crowd regions.
        ignored: (D,) bool, neither right nor wrong: in a crowd region, or out of the range of areas.
        dropped: (D,) bool, beyond the most detections that are counted, or of a class that is not judged.
        truth_ignored: (T,) bool, crowd regions and objects out of the range of areas: nobody has to find them.
    """

    iou: np.ndarray
    truth: np.ndarray
    detection: np.ndarray
    ignored: np.ndarray
    dropped: np.ndarray
    truth_ignored: np.ndarray

    @property
    def true_positive(self) -> np.ndarray:
        """(D,) bool."""
        return (self.truth >= 0) & ~self.ignored

    @property
    def false_positive(self) -> np.ndarray:
        """(D,) bool."""
        return (self.truth < 0) & ~self.ignored & ~self.dropped

    @property
    def missed(self) -> np.ndarray:
        """(T,) bool, objects that should have been found and were not."""
        return (self.detection < 0) & ~self.truth_ignored


def overlaps(detections: Detections, truth: GroundTruth, iou_type: IouType = "bbox") -> np.ndarray:
    """Intersection over union of every detection with every true object, computed by pycocotools.

    With a crowd region, the intersection is divided by the detection's area instead.

    Returns:
        (D, T) float64 in [0, 1].

    Raises:
        ValueError: masks are to be compared and there are none, or they are of another size.
    """
    if not len(detections) or not len(truth):
        return np.zeros((len(detections), len(truth)))
    crowd = as_array(truth.crowd).astype(np.uint8)
    if iou_type == "bbox":
        return np.ascontiguousarray(coco_masks.iou(boxes_xywh(detections), truth.boxes_xywh, crowd))
    return np.ascontiguousarray(coco_masks.iou(_rles(detections, truth), truth.rles(), crowd))


def match(
    detections: Detections,
    truth: GroundTruth,
    *,
    iou_threshold: float = 0.5,
    iou_type: IouType = "bbox",
    max_detections: int = 100,
    area_range: tuple[float, float] | None = None,
    judged: Sequence[int] | None = None,
) -> Match:
    """Match one image's detections with its true objects, as pycocotools' ``COCOeval`` does.

    Best score first, each detection takes the free object of its class that it overlaps most, where that reaches the
    threshold; equal overlaps take the last object of the file. A detection left over that lies in a crowd region of its
    class is ignored, and any number may. (An annotation with the id 0 is as good as any other here; pycocotools takes
    a detection that found it for one that found nothing.)

    Args:
        detections: what the model found.
        truth: what is there, with labels in the model's class indices.
        iou_threshold: least overlap, in (0, 1].
        iou_type: whether boxes or masks are compared.
        max_detections: at most so many of each class count; the others are dropped.
        area_range: least and greatest area in pixels: objects outside are ignored, and so are detections outside that
            found nothing. None takes all.
        judged: class indices that count; detections of others are dropped. None: all.
    """
    iou = overlaps(detections, truth, iou_type)
    labels, crowd = as_array(detections.labels), as_array(truth.crowd)
    order = best_first(detections)
    dropped = ~of_labels(labels, judged)
    for label in np.unique(labels):
        dropped[order[labels[order] == label][max_detections:]] = True
    low, high = area_range or (0.0, np.inf)
    areas = as_array(truth.area)
    truth_ignored = crowd | (areas < low) | (areas > high)
    close = (iou >= min(iou_threshold, 1 - 1e-10)) & (labels[:, None] == as_array(truth.labels)[None])
    found, by = take_greedily(iou, close & ~truth_ignored[None], order[~dropped[order]], last=True)
    left = order[~dropped[order] & (found[order] < 0)]
    aside, _ = take_greedily(iou, close & truth_ignored[None], left, last=True, shared=crowd)
    ignored = aside >= 0
    if area_range is not None:
        own = _areas(detections, iou_type)
        ignored |= (found < 0) & ~dropped & ((own < low) | (own > high))
    return Match(iou, np.where(found < 0, aside, found), by, ignored, dropped, truth_ignored)


def take_greedily(
    iou: np.ndarray, close: np.ndarray, order: np.ndarray, *, last: bool, shared: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """In the order given, each detection takes the free object close to it that it overlaps most.

    Args:
        iou: (D, T).
        close: (D, T) bool, the pairs that may be made.
        order: detections' indices, those that may take first.
        last: whether equal overlaps take the last object, or the first.
        shared: (T,) bool, objects that stay free.

    Returns:
        (D,) the object taken or -1; (T,) the detection that took it or -1 (the first, for shared objects).
    """
    found = np.full(len(iou), -1, dtype=np.int64)
    by = np.full(close.shape[1], -1, dtype=np.int64)
    some: np.ndarray = np.logical_or.reduce(close, axis=1)
    for detection in order[some[order]].tolist():
        free = by < 0 if shared is None else (by < 0) | shared
        near = np.flatnonzero(close[detection] & free)
        if not len(near):
            continue
        values = iou[detection, near]
        chosen = near[len(near) - 1 - values[::-1].argmax() if last else values.argmax()]
        found[detection] = chosen
        if by[chosen] < 0:
            by[chosen] = detection
    return found, by


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor, wherever it is, as an array."""
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def of_labels(labels: np.ndarray, judged: Sequence[int] | None) -> np.ndarray:
    """(n,) bool, whether each label is one of those judged; None judges all."""
    return np.ones(len(labels), dtype=bool) if judged is None else np.isin(labels, list(judged))


def best_first(detections: Detections) -> np.ndarray:
    """(D,) int64: detections' indices by falling score, equal scores in their order."""
    return np.argsort(-as_array(detections.scores).astype(np.float64), kind="stable")


def boxes_xywh(detections: Detections) -> np.ndarray:
    """(D, 4) float64, left, top, width, height: what a COCO results file holds."""
    boxes = as_array(detections.boxes_xyxy).astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def paired(
    detections: Sequence[Detections], truths: Sequence[GroundTruth]
) -> Iterator[tuple[int, Detections, GroundTruth]]:
    """Position, detections and true objects of each image, checked.

    Raises:
        ValueError: not as many of one as of the other, or of images of another size.
    """
    if len(detections) != len(truths):
        raise ValueError(f"expected the detections of {len(truths)} images, one entry each; got {len(detections)}")
    for position, (found, truth) in enumerate(zip(detections, truths, strict=True)):
        if tuple(found.image_size_hw) != tuple(truth.image_size_hw):
            raise ValueError(
                f"image {position} ({truth.file_name}) is {truth.image_size_hw} (height, width) and its detections "
                f"are of an image of {found.image_size_hw}; give both in the same order"
            )
        yield position, found, truth


def _rles(detections: Detections, truth: GroundTruth) -> list[dict[str, object]]:
    if detections.masks is None:
        raise ValueError('these detections have no masks; compare boxes: iou_type="bbox"')
    if tuple(detections.masks.shape[1:]) != tuple(truth.image_size_hw):
        raise ValueError(
            f"expected masks of the image's size {truth.image_size_hw}; got {tuple(detections.masks.shape[1:])}"
        )
    masks: list[dict[str, object]] = coco_masks.encode(
        np.asfortranarray(as_array(detections.masks).astype(np.uint8).transpose(1, 2, 0))
    )
    return masks


def _areas(detections: Detections, iou_type: IouType) -> np.ndarray:
    if iou_type == "segm" and detections.masks is not None:
        return as_array(detections.masks.flatten(1).sum(1)).astype(np.float64)
    return boxes_xywh(detections)[:, 2:].prod(1)
