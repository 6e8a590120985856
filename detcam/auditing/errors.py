r"""Why each detection is wrong: the six error types of TIDE.

Bolya et al., *TIDE: A General Toolbox for Identifying Object Detection Errors*, ECCV 2020, arXiv:2008.08115. With
overlaps against the true objects of the same class and of the others, and thresholds :math:`t_f` and :math:`t_b`:

* classification: :math:`IoU_{other} \ge t_f`: right place, wrong class;
* localization: :math:`t_b \le IoU_{same} \le t_f`: right class, wrong place;
* both: :math:`t_b \le IoU_{other} \le t_f`, and nothing better;
* duplicate: :math:`IoU_{same} \ge t_f`, and a better detection has the object;
* background: no overlap above :math:`t_b`;
* missed: an object that no detection found and no correction of the types above would find.

Where several fit, the first of localization, classification, duplicate, background, both is taken. The published tool
differs from COCO in some corners, and so does this module, in order to count alike:

* at most 100 detections of an image count, all classes together (COCO: of each class);
* among objects that overlap alike, a detection takes the first (COCO: the last);
* a detection is ignored where more than the threshold of it lies in a crowd region (COCO: that or more);
* ignored detections are errors of some type too; `DetectionError.is_false_positive` says which errors count against
  COCO's average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from detcam.auditing.matching import Match, as_array, best_first, of_labels, take_greedily
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections

ErrorType: TypeAlias = Literal["classification", "localization", "both", "duplicate", "background", "missed"]
ERROR_TYPES: tuple[ErrorType, ...] = ("classification", "localization", "both", "duplicate", "background", "missed")


@dataclass(frozen=True)
class DetectionError:
    """One detection that is wrong, or one object that was missed.

    Attributes:
        image: the image's position in the lists that were compared.
        image_id: its id in the annotation file.
        type: which kind of error.
        detection: index of the detection in its image; None for a missed object.
        truth: index of the true object concerned: the one overlapped (most), or missed; None where there is none.
        winner: for a duplicate, index of the detection that has the object; else None.
        label: class index of the detection, or of the missed object.
        score: the detection's score in [0, 1]; None for a missed object.
        iou_same_class: greatest overlap with a true object of its class (crowd regions aside), in [0, 1]; for a
            missed object, with a detection of its class.
        iou_other_class: the same with other classes.
        is_false_positive: whether the detection counts as wrong in COCO's average precision; False for missed
            objects, for detections in crowd regions, and for those beyond the most that count.
    """

    image: int
    image_id: int | str
    type: ErrorType
    detection: int | None
    truth: int | None
    winner: int | None
    label: int
    score: float | None
    iou_same_class: float
    iou_other_class: float
    is_false_positive: bool


@dataclass(frozen=True)
class ImageErrors:
    """The errors of one image, and what TIDE needs to know to mend them.

    Attributes:
        cases: n errors: of detections, best score first, then the missed objects.
        in_ranking: (n,) bool, whether a case is a detection that takes part in TIDE's average precision.
        becomes_right: (n,) bool, whether a detection would find a free object if its class or place were right, and
            is the best-scored one that would.
        ranked: (k,) int64, the detections in TIDE's average precision, best first.
        hits: (k,) bool, whether each of them is right.
        unfound: (u,) int64, the objects that no detection found, also those that a mended one would.
    """

    cases: tuple[DetectionError, ...]
    in_ranking: np.ndarray
    becomes_right: np.ndarray
    ranked: np.ndarray
    hits: np.ndarray
    unfound: np.ndarray


@dataclass(frozen=True)
class _View:
    """One image as TIDE sees it: (D, T') overlaps with the objects that are no crowd regions."""

    iou: np.ndarray
    same: np.ndarray
    taken: np.ndarray
    iou_threshold: float
    background_threshold: float

    def name(self, d: int) -> tuple[ErrorType, int | None]:
        """The error type of a detection that found nothing, and the object concerned."""
        if not self.iou.shape[1]:
            return "background", None
        own, other = self.iou[d] * self.same[d], self.iou[d] * ~self.same[d]
        best_own, best_other, best = int(own.argmax()), int(other.argmax()), int(self.iou[d].argmax())
        if self.background_threshold <= own[best_own] <= self.iou_threshold:
            return "localization", best_own
        if other[best_other] >= self.iou_threshold:
            return "classification", best_other
        used = own * self.taken
        if used.max() >= self.iou_threshold:
            return "duplicate", int(used.argmax())
        kind: ErrorType = "background" if self.iou[d, best] <= self.background_threshold else "both"
        return kind, best if self.iou[d, best] > 0 else None


def find_errors(
    image: int,
    detections: Detections,
    truth: GroundTruth,
    matched: Match,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
    max_detections: int = 100,
    judged: Sequence[int] | None = None,
) -> ImageErrors:
    """Name every error of one image.

    Args:
        image: the image's position, for the cases.
        detections: what the model found.
        truth: what is there.
        matched: COCO's matching of the two.
        iou_threshold: :math:`t_f`, least overlap of a right detection.
        background_threshold: :math:`t_b`, greatest overlap of a detection of nothing.
        max_detections: at most so many of the image count.
        judged: class indices that count; None: all.
    """
    labels, true_labels, crowd = as_array(detections.labels), as_array(truth.labels), as_array(truth.crowd)
    plain = np.flatnonzero(~crowd)
    iou = matched.iou[:, plain]
    same = labels[:, None] == true_labels[None, plain]
    order = best_first(detections)
    order = order[of_labels(labels[order], judged)][:max_detections]
    found, by = take_greedily(iou, same & (iou >= iou_threshold), order, last=False)
    in_crowd = ((matched.iou > iou_threshold) & (labels[:, None] == true_labels[None]) & crowd[None]).any(1)
    view = _View(iou, same, by >= 0, iou_threshold, background_threshold)
    wrong = matched.false_positive
    own, other = _best(iou * same, 1), _best(iou * ~same, 1)
    cases, becomes_right = [], []
    mended: set[int] = set()
    for d in order[found[order] < 0].tolist():
        kind, at = view.name(d)
        free = kind in ("classification", "localization") and at is not None and by[at] < 0
        becomes_right.append(free and at not in mended)
        mended |= {at} if free and at is not None else set()
        case = DetectionError(
            image=image,
            image_id=truth.image_id,
            type=kind,
            detection=d,
            truth=None if at is None else int(plain[at]),
            winner=int(by[at]) if kind == "duplicate" and at is not None else None,
            label=int(labels[d]),
            score=float(detections.scores[d]),
            iou_same_class=float(own[d]),
            iou_other_class=float(other[d]),
            is_false_positive=bool(wrong[d]),
        )
        cases.append(case)
    missed = [at for at in np.flatnonzero(by < 0).tolist() if at not in mended]
    in_ranking = [case.detection is not None and not in_crowd[case.detection] for case in cases]
    cases += _missed(image, truth, plain[missed], iou[order][:, missed], same[order][:, missed])
    ranked = order[(found[order] >= 0) | ~in_crowd[order]]
    none = [False] * len(missed)
    return ImageErrors(
        cases=tuple(cases),
        in_ranking=np.array(in_ranking + none, dtype=bool),
        becomes_right=np.array(becomes_right + none, dtype=bool),
        ranked=ranked,
        hits=found[ranked] >= 0,
        unfound=plain[by < 0],
    )


def _missed(
    image: int, truth: GroundTruth, missed: np.ndarray, iou: np.ndarray, same: np.ndarray
) -> list[DetectionError]:
    own, other = _best(iou * same, 0), _best(iou * ~same, 0)
    return [
        DetectionError(
            image=image,
            image_id=truth.image_id,
            type="missed",
            detection=None,
            truth=int(at),
            winner=None,
            label=int(truth.labels[at]),
            score=None,
            iou_same_class=float(own[column]),
            iou_other_class=float(other[column]),
            is_false_positive=False,
        )
        for column, at in enumerate(missed)
    ]


def _best(values: np.ndarray, axis: int) -> np.ndarray:
    """The greatest value along an axis; 0 where there is none."""
    best: np.ndarray = values.max(axis=axis, initial=0.0)
    return best
