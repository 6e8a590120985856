r"""Detection errors by the six types of TIDE.

Bolya et al., *TIDE: A General Toolbox for Identifying Object Detection Errors*, ECCV 2020, arXiv:2008.08115. With
the maximum IoU with ground-truth objects of the same class and of other classes, and thresholds :math:`t_f` and
:math:`t_b`:

* classification: :math:`IoU_{other} \ge t_f`: correct location, wrong class;
* localization: :math:`t_b \le IoU_{same} \le t_f`: correct class, wrong location;
* both: :math:`t_b \le IoU_{other} \le t_f`, and no better IoU;
* duplicate: :math:`IoU_{same} \ge t_f`, but a detection with a higher score is matched with the object;
* background: no IoU above :math:`t_b`;
* missed: an object that is not matched, and would not be if the errors above were corrected.

If several apply, the first of localization, classification, duplicate, background, both is assigned. The published tool
differs from COCO in some details, which this module follows so that the counts agree:

* at most 100 detections of an image count, all classes together (COCO: of each class);
* among objects with equal IoU, a detection takes the first (COCO: the last);
* a detection is ignored if more than the threshold of it lies in a crowd region (COCO: at least the threshold);
* ignored detections are errors of some type as well; `DetectionError.is_false_positive` tells which errors count
  against COCO's average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from detcam.auditing.matching import Match, is_evaluated, match_greedily, order_by_score, to_array
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections

ErrorType: TypeAlias = Literal["classification", "localization", "both", "duplicate", "background", "missed"]
ERROR_TYPES: tuple[ErrorType, ...] = ("classification", "localization", "both", "duplicate", "background", "missed")


@dataclass(frozen=True)
class DetectionError:
    """A wrong detection or a missed object, as matching finds it.

    It refers to images, detections and objects by index. `AuditCase` is the same error with its explanation.

    Attributes:
        image_index: index of the image in the lists that were compared.
        image_id: id of the image in the annotation file.
        type: error type.
        detection_index: index of the detection in its image; None for a missed object.
        ground_truth_index: index of the object concerned: the one overlapped most, or missed; None if there is none.
        duplicate_of: for a duplicate, index of the detection that is matched with the object; else None.
        label: class index of the detection, or of the missed object.
        score: score of the detection in [0, 1]; None for a missed object.
        iou_same_class: maximum IoU with an object of its class (crowd regions excluded), in [0, 1]; for a missed
            object, with a detection of its class.
        iou_other_class: the same with other classes.
        is_false_positive: whether the detection counts as a false positive in COCO's average precision; False for
            missed objects, detections in crowd regions, and detections beyond the maximum number.
        iou: IoU with the object concerned, in [0, 1]; for a missed object, the maximum with any detection.
    """

    image_index: int
    image_id: int | str
    type: ErrorType
    detection_index: int | None
    ground_truth_index: int | None
    duplicate_of: int | None
    label: int
    score: float | None
    iou_same_class: float
    iou_other_class: float
    is_false_positive: bool
    iou: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class ImageErrors:
    """The errors of one image, with the data that TIDE's oracle needs to correct them.

    Attributes:
        errors: n errors: of detections by decreasing score, then the missed objects.
        in_ranking: (n,) bool, whether an error is a detection that counts in TIDE's average precision.
        becomes_correct: (n,) bool, whether a detection with the correct class and location would be matched, being the
            first of those that would be matched with the same object.
        ranked: (k,) int64, the detections in TIDE's average precision, by decreasing score.
        hits: (k,) bool, whether each of them is a true positive.
        unmatched_objects: (u,) int64, indices of the evaluated objects without a match, also those that a corrected
            detection would match.
    """

    errors: tuple[DetectionError, ...]
    in_ranking: np.ndarray
    becomes_correct: np.ndarray
    ranked: np.ndarray
    hits: np.ndarray
    unmatched_objects: np.ndarray


@dataclass(frozen=True)
class _ErrorTyper:
    """Assigns TIDE's error types in one image.

    Attributes:
        iou: (D, T) with the objects that are no crowd regions.
        same_class: (D, T) bool.
        is_matched: (T,) bool, whether each object is matched.
        iou_threshold: :math:`t_f`.
        background_threshold: :math:`t_b`.
    """

    iou: np.ndarray
    same_class: np.ndarray
    is_matched: np.ndarray
    iou_threshold: float
    background_threshold: float

    def error_type(self, detection: int) -> tuple[ErrorType, int | None]:
        """The error type of an unmatched detection, and the index of the object concerned."""
        iou = self.iou[detection]
        if not len(iou):
            return "background", None
        same, other = iou * self.same_class[detection], iou * ~self.same_class[detection]
        best_same, best_other, best = int(same.argmax()), int(other.argmax()), int(iou.argmax())
        if self.background_threshold <= same[best_same] <= self.iou_threshold:
            return "localization", best_same
        if other[best_other] >= self.iou_threshold:
            return "classification", best_other
        matched = same * self.is_matched
        if matched.max() >= self.iou_threshold:
            return "duplicate", int(matched.argmax())
        kind: ErrorType = "background" if iou[best] <= self.background_threshold else "both"
        return kind, best if iou[best] > 0 else None


def find_errors(
    image_index: int,
    detections: Detections,
    ground_truth: GroundTruth,
    matched: Match,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
    max_detections: int = 100,
    labels: Sequence[int] | None = None,
) -> ImageErrors:
    """Find the errors of one image and assign their types.

    Args:
        image_index: index of the image, stored in the errors.
        detections: the model's detections.
        ground_truth: the objects.
        matched: COCO's matching of the two.
        iou_threshold: :math:`t_f`, minimum IoU of a true positive.
        background_threshold: :math:`t_b`, maximum IoU of a background error.
        max_detections: maximum number of detections per image.
        labels: class indices to evaluate; None evaluates all. An object of another class is never missed, but a
            detection on it is a classification error, or both.
    """
    detected_labels, true_labels = to_array(detections.labels), to_array(ground_truth.labels)
    crowd = to_array(ground_truth.crowd)
    objects = np.flatnonzero(~crowd)
    iou = matched.iou[:, objects]
    same_class = detected_labels[:, None] == true_labels[None, objects]
    order = order_by_score(detections)
    order = order[is_evaluated(detected_labels[order], labels)][:max_detections]
    hit, matched_by = match_greedily(iou, same_class & (iou >= iou_threshold), order, prefer_last=False)
    same_class_as_crowd = (detected_labels[:, None] == true_labels[None]) & crowd[None]
    in_crowd = ((matched.iou > iou_threshold) & same_class_as_crowd).any(1)
    evaluated = is_evaluated(true_labels[objects], labels)
    typer = _ErrorTyper(iou, same_class, matched_by >= 0, iou_threshold, background_threshold)
    iou_same, iou_other = _maximum(iou * same_class, 1), _maximum(iou * ~same_class, 1)
    errors, becomes_correct = [], []
    corrected: set[int] = set()
    for detection in order[hit[order] < 0].tolist():
        kind, column = typer.error_type(detection)
        is_free = column is not None and bool(evaluated[column]) and matched_by[column] < 0
        correctable = kind in ("classification", "localization") and is_free
        becomes_correct.append(correctable and column not in corrected)
        corrected |= {column} if correctable and column is not None else set()
        error = DetectionError(
            image_index=image_index,
            image_id=ground_truth.image_id,
            type=kind,
            detection_index=detection,
            ground_truth_index=None if column is None else int(objects[column]),
            duplicate_of=int(matched_by[column]) if kind == "duplicate" and column is not None else None,
            label=int(detected_labels[detection]),
            score=float(detections.scores[detection]),
            iou_same_class=float(iou_same[detection]),
            iou_other_class=float(iou_other[detection]),
            is_false_positive=bool(matched.false_positive[detection]),
            iou=0.0 if column is None else float(iou[detection, column]),
        )
        errors.append(error)
    in_ranking = [error.detection_index is not None and not in_crowd[error.detection_index] for error in errors]
    unmatched = np.flatnonzero((matched_by < 0) & evaluated)
    missed = [column for column in unmatched.tolist() if column not in corrected]
    errors += _missed(image_index, ground_truth, objects[missed], iou[order][:, missed], same_class[order][:, missed])
    ranked = order[(hit[order] >= 0) | ~in_crowd[order]]
    padding = [False] * len(missed)
    return ImageErrors(
        errors=tuple(errors),
        in_ranking=np.array(in_ranking + padding, dtype=bool),
        becomes_correct=np.array(becomes_correct + padding, dtype=bool),
        ranked=ranked,
        hits=hit[ranked] >= 0,
        unmatched_objects=objects[unmatched],
    )


def _missed(
    image_index: int, ground_truth: GroundTruth, missed: np.ndarray, iou: np.ndarray, same_class: np.ndarray
) -> list[DetectionError]:
    iou_same, iou_other = _maximum(iou * same_class, 0), _maximum(iou * ~same_class, 0)
    return [
        DetectionError(
            image_index=image_index,
            image_id=ground_truth.image_id,
            type="missed",
            detection_index=None,
            ground_truth_index=int(index),
            duplicate_of=None,
            label=int(ground_truth.labels[index]),
            score=None,
            iou_same_class=float(iou_same[column]),
            iou_other_class=float(iou_other[column]),
            is_false_positive=False,
            iou=max(float(iou_same[column]), float(iou_other[column])),
        )
        for column, index in enumerate(missed)
    ]


def _maximum(values: np.ndarray, axis: int) -> np.ndarray:
    """The maximum along an axis; 0 if the axis is empty."""
    return values.max(axis=axis, initial=0.0)
