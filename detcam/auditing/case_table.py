"""The errors of an audit as cases that are made when they are read, so that memory does not grow with them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import AuditCase, GroundTruthObject
from detcam.auditing.error_targets import object_box
from detcam.auditing.errors import ERROR_TYPES, DetectionError
from detcam.auditing.sentences import case_sentence
from detcam.data.annotations import FIRST_UNKNOWN_LABEL, Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, class_name

MISSED = ERROR_TYPES.index("missed")
MAX_CASES_IN_MEMORY = 10_000
"""Unexplained cases that are kept, since a report reads each of them several times; about 2 kB each."""


@dataclass(frozen=True)
class CaseColumns:
    """What orders and counts n cases.

    Attributes:
        score: (n,) float64 in [0, 1].
        is_missed: (n,) bool, whether the case is a missed object.
        is_false_positive: (n,) bool.
        is_explained: (n,) bool, whether the case has a heatmap.
    """

    score: np.ndarray
    is_missed: np.ndarray
    is_false_positive: np.ndarray
    is_explained: np.ndarray

    def is_relevant(self, score_threshold: float) -> np.ndarray:
        """(n,) bool, whether a case is a missed object, or a detection with at least the threshold's score."""
        return self.is_missed | (self.score >= score_threshold)


class CaseTable(Sequence[AuditCase]):
    """The errors of an analysis as cases.

    Explained cases are kept, and the `MAX_CASES_IN_MEMORY` others that were made last. Of the rest the table keeps the
    boxes, 16 bytes each, beside what the analysis has.

    Args:
        analysis: the errors.
        ground_truths: objects of each image.
        boxes: (n, 4) float32, box of each error: pixels of the image, half-open.
        explained: cases that were explained, by index, also those that got no heatmap.

    Attributes:
        explained: the same, by increasing index.
    """

    def __init__(
        self,
        analysis: ErrorAnalysis,
        ground_truths: Sequence[GroundTruth] | Annotations,
        boxes: np.ndarray,
        explained: Mapping[int, AuditCase] | None = None,
    ) -> None:
        self.explained = dict(sorted((explained or {}).items()))
        self._analysis, self._ground_truths, self._boxes = analysis, ground_truths, boxes
        self._made: OrderedDict[int, AuditCase] = OrderedDict()

    @classmethod
    def of(
        cls,
        analysis: ErrorAnalysis,
        detections: Sequence[Detections],
        ground_truths: Sequence[GroundTruth] | Annotations,
    ) -> CaseTable:
        """Return the errors of an analysis, none of them explained.

        Args:
            analysis: the errors, image by image.
            detections: detections of each image, which are read once, in order.
            ground_truths: objects of each image.
        """
        columns = analysis.errors.columns
        boxes = np.zeros((len(columns), 4), dtype=np.float32)
        ends = np.searchsorted(columns["image_index"], np.arange(len(ground_truths)), side="right")
        start = 0
        for image, end in enumerate(ends.tolist()):
            of_image, rows = columns[start:end], np.arange(start, end)
            is_missed = of_image["detection_index"] < 0
            for missed, name in ((False, "detection_index"), (True, "ground_truth_index")):
                chosen = is_missed == missed
                if chosen.any():
                    found = ground_truths[image].boxes_xyxy if missed else detections[image].boxes_xyxy
                    boxes[rows[chosen]] = found.cpu().numpy()[of_image[name][chosen]]
            start = end
        return cls(analysis, ground_truths, boxes)

    def with_explained(self, explained: Mapping[int, AuditCase]) -> CaseTable:
        """Return the same cases, those given by index in the place of others."""
        return CaseTable(self._analysis, self._ground_truths, self._boxes, self.explained | dict(explained))

    def __len__(self) -> int:
        return len(self._boxes)

    @overload
    def __getitem__(self, index: int) -> AuditCase: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[AuditCase, ...]: ...

    def __getitem__(self, index: int | slice) -> AuditCase | tuple[AuditCase, ...]:
        """Return an explained case, or make one of an error that is not explained."""
        if isinstance(index, slice):
            return tuple(self[number] for number in range(len(self))[index])
        index = range(len(self))[index]
        if index in self.explained:
            return self.explained[index]
        case = self._made.get(index)
        if case is None:
            case = make_case(self._analysis, index, self._boxes[index].tolist(), self._ground_truths)
            self._made[index] = case
            if len(self._made) > MAX_CASES_IN_MEMORY:
                self._made.popitem(last=False)
        return case

    def __reduce__(self) -> tuple[type[CaseTable], tuple[object, ...]]:
        """Pickle and copy without the cases that can be made again."""
        return type(self), (self._analysis, self._ground_truths, self._boxes, self.explained)

    def __iter__(self) -> Iterator[AuditCase]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def ids(self) -> Iterator[str]:
        """Yield the id of each case."""
        columns, image_ids = self._analysis.errors.columns, self._analysis.image_ids
        names = ("image_index", "detection_index", "ground_truth_index")
        for image, detection, truth in zip(*(columns[name].tolist() for name in names), strict=True):
            yield _case_id(image_ids[image], detection, truth)

    def columns(self) -> CaseColumns:
        """Return what orders and counts the cases."""
        errors = self._analysis.errors.columns
        score, is_explained = np.nan_to_num(errors["score"], nan=0.0), np.zeros(len(self), dtype=bool)
        for index, case in self.explained.items():
            score[index], is_explained[index] = case.score, bool(case.method)
        return CaseColumns(score, errors["type"] == MISSED, errors["is_false_positive"], is_explained)


def explained_cases(cases: Sequence[AuditCase]) -> dict[int, AuditCase]:
    """Return the cases that were explained by index, in order, also those that got no heatmap."""
    if isinstance(cases, CaseTable):
        return cases.explained
    return {
        index: case
        for index, case in enumerate(cases)
        if case.method or case.verdict != "not tested" or case.evidence_kind is not None or math.isfinite(case.trust)
    }


def case_columns(cases: Sequence[AuditCase]) -> CaseColumns:
    """Return what orders and counts cases."""
    if isinstance(cases, CaseTable):
        return cases.columns()
    return CaseColumns(
        np.array([case.score for case in cases], dtype=np.float64),
        np.array([case.type == "missed" for case in cases], dtype=bool),
        np.array([case.is_false_positive for case in cases], dtype=bool),
        np.array([bool(case.method) for case in cases], dtype=bool),
    )


def case_ids(cases: Sequence[AuditCase]) -> Iterator[str]:
    """Yield the id of each case."""
    return cases.ids() if isinstance(cases, CaseTable) else (case.id for case in cases)


def unexplained_case(
    analysis: ErrorAnalysis,
    index: int,
    detections: Sequence[Detections],
    ground_truths: Sequence[GroundTruth] | Annotations,
) -> AuditCase:
    """Convert an error to a case without an explanation.

    Args:
        analysis: the errors.
        index: index of the error in the analysis.
        detections: detections of each image.
        ground_truths: objects of each image.
    """
    error = analysis[index]
    if error.detection_index is None:
        box = list(object_box(ground_truths[error.image_index], error.ground_truth_index or 0))
    else:
        box = detections[error.image_index].boxes_xyxy[error.detection_index].tolist()
    return make_case(analysis, index, box, ground_truths)


def make_case(
    analysis: ErrorAnalysis, index: int, box: Sequence[float], ground_truths: Sequence[GroundTruth] | Annotations
) -> AuditCase:
    """Convert an error, whose box is known, to a case without an explanation; arguments as in `unexplained_case`."""
    error = analysis[index]
    ground_truth = ground_truths[error.image_index]
    left, top, right, bottom = box
    case = AuditCase(
        id=_case_id(error.image_id, error.detection_index, error.ground_truth_index),
        image_id=error.image_id,
        file_name=ground_truth.file_name,
        image_size_hw=ground_truth.image_size_hw,
        type=error.type,
        label=error.label,
        name=class_name(analysis.names, error.label),
        score=error.score or 0.0,
        box_xyxy=(left, top, right, bottom),
        is_false_positive=error.is_false_positive,
        ground_truth=_concerned_object(analysis, error, ground_truth),
        delta_ap=float(analysis.delta_ap_by_error[index]) if _affects_precision(analysis, index) else math.nan,
    )
    return replace(case, sentence=case_sentence(case))


def _case_id(image_id: int | str, detection_index: int | None, ground_truth_index: int | None) -> str:
    """The id of a case: of a missed object if it has no detection, whose index is None or negative."""
    if detection_index is None or detection_index < 0:
        return f"image-{image_id}-missed-{ground_truth_index}"
    return f"image-{image_id}-detection-{detection_index}"


def _affects_precision(analysis: ErrorAnalysis, index: int) -> bool:
    """Whether the class of an error, or its true class, has objects, without which average precision is undefined."""
    labels = {int(analysis.errors.columns["label"][index]), int(analysis.corrected_labels[index])}
    return any(not math.isnan(analysis.classes[label].average_precision) for label in labels & analysis.classes.keys())


def _concerned_object(
    analysis: ErrorAnalysis, error: DetectionError, ground_truth: GroundTruth
) -> GroundTruthObject | None:
    index = error.ground_truth_index
    if index is None:
        return None
    label = int(ground_truth.labels[index])
    name = class_name(analysis.names, label)
    box, annotation_id = object_box(ground_truth, index), int(ground_truth.ids[index])
    is_known = label < FIRST_UNKNOWN_LABEL
    return GroundTruthObject(box, label, name, error.iou, annotation_id, is_known, analysis.iou_type)
