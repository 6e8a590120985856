"""One-to-one matching of the errors of two audits of the same images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy.optimize import linear_sum_assignment

from detcam.auditing.case import AuditCase
from detcam.auditing.comparison.record import AuditRecord
from detcam.utils.batching import group_by

Change: TypeAlias = Literal["fixed", "new", "unchanged"]
MIN_IOU = 0.5
"""Minimum IoU of the boxes of two errors that are the same error."""
SAME_TYPE_BONUS = 0.25
"""Added to the IoU of errors of the same type, so that these are matched rather than others at the same position."""


@dataclass(frozen=True)
class ErrorPair:
    """An error in two audits of the same images.

    Attributes:
        change: ``"fixed"``: in the old audit only; ``"new"``: in the new audit only; ``"unchanged"``: in both.
        old: the case in the old audit; of a new error, the false positive below the score threshold there, or None.
        new: the case in the new audit; of a fixed error, the false positive below the score threshold there, or None.
        iou: IoU of the two boxes, in [0, 1]; 0 if one is None.
    """

    change: Change
    old: AuditCase | None
    new: AuditCase | None
    iou: float

    @property
    def shown(self) -> AuditCase:
        """The case of the new audit, or of the old one if the error is fixed."""
        case = self.old if self.change == "fixed" else self.new
        if case is None:
            raise ValueError(f"expected the case of a {self.change} error; got None")
        return case


def pair_errors(old: AuditRecord, new: AuditRecord) -> list[ErrorPair]:
    """Match the errors of two audits one to one.

    Errors match if they are on the same image and of the same class, both false positives or both missed objects, with
    boxes of an IoU of at least `MIN_IOU`. Among all matchings of an image, the one of the largest total IoU is taken.
    False positives below the score threshold do not count as errors; they are matched with the remaining errors to show
    what became of these.

    Args:
        old: the old audit.
        new: the new audit.

    Returns:
        Fixed, new and unchanged errors, image by image.
    """
    sides = [group_by(record.cases, _key) for record in (old, new)]
    pairs: list[ErrorPair] = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        pairs += _pair_alike(old, new, sides[0].get(key, []), sides[1].get(key, []))
    return pairs


def _key(case: AuditCase) -> tuple[str, str, bool]:
    return repr(case.image_id), case.name, case.type == "missed"


def _pair_alike(
    old: AuditRecord, new: AuditRecord, old_cases: Sequence[AuditCase], new_cases: Sequence[AuditCase]
) -> Iterable[ErrorPair]:
    """Pairs of the errors of one image, class and kind."""
    old_errors, old_others = _split(old, old_cases)
    new_errors, new_others = _split(new, new_cases)
    matched = _assign(old_errors, new_errors)
    for i, j, iou in matched:
        yield ErrorPair("unchanged", old_errors[i], new_errors[j], iou)
    fixed = [case for i, case in enumerate(old_errors) if i not in {pair[0] for pair in matched}]
    added = [case for j, case in enumerate(new_errors) if j not in {pair[1] for pair in matched}]
    rest = {i: (new_others[j], iou) for i, j, iou in _assign(fixed, new_others)}
    for i, case in enumerate(fixed):
        yield ErrorPair("fixed", case, *rest.get(i, (None, 0.0)))
    before = {j: (old_others[i], iou) for i, j, iou in _assign(old_others, added)}
    for j, case in enumerate(added):
        other, iou = before.get(j, (None, 0.0))
        yield ErrorPair("new", other, case, iou)


def _split(record: AuditRecord, cases: Sequence[AuditCase]) -> tuple[list[AuditCase], list[AuditCase]]:
    """The errors that count, and the false positives below the score threshold."""
    errors = [case for case in cases if record.counts(case)]
    return errors, [case for case in cases if case.is_false_positive and not record.counts(case)]


def _assign(first: Sequence[AuditCase], second: Sequence[AuditCase]) -> list[tuple[int, int, float]]:
    """Matched indices with their IoU: the assignment of the largest total."""
    if not first or not second:
        return []
    iou = box_iou(np.array([case.box_xyxy for case in first]), np.array([case.box_xyxy for case in second]))
    same = np.array([[one.type == other.type for other in second] for one in first])
    gain = np.where(iou >= MIN_IOU, iou + SAME_TYPE_BONUS * same, 0.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(i, j, float(iou[i, j])) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if gain[i, j] > 0]


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the IoU (n, m) of boxes (n, 4) and (m, 4), xyxy."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    extent = (np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clip(min=0)
    overlap = extent.prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(-1) for boxes in (first, second)]
    return overlap / np.maximum(areas[0][:, None] + areas[1][None] - overlap, 1e-12)
