"""Causes of errors in two audits of the same images: new, gone, grown or shrunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from detcam.auditing.case import AuditCase, BackgroundType, EvidenceLocation
from detcam.auditing.comparison.bootstrap import Bootstrapped
from detcam.auditing.comparison.paired import corrected_threshold, interval, sign_flip_p_value
from detcam.auditing.comparison.record import AuditRecord
from detcam.auditing.errors import ErrorType
from detcam.auditing.sentences import LOCATION_PHRASES

CauseStatus: TypeAlias = Literal["new", "gone", "grown", "shrunk", "no significant change"]


@dataclass(frozen=True, order=True)
class Cause:
    """What the explained errors of a cause have in common: the properties by which an audit forms its groups.

    The groups of an audit are clusters of a network's features, which another network does not share; causes can be
    compared between models.

    Attributes:
        type: TIDE's error type.
        name: class name of the detections, or of the missed objects.
        true_name: class name of the objects concerned; empty for background errors.
        background_type: type of a background error; empty for others.
        evidence_location: location of the confirmed evidence; empty for a missing annotation.
        failure_stage: of missed objects; else empty.
    """

    type: ErrorType
    name: str
    true_name: str
    background_type: BackgroundType | Literal[""]
    evidence_location: EvidenceLocation | Literal[""]
    failure_stage: str

    @classmethod
    def of(cls, case: AuditCase) -> Cause | None:
        """The cause of a case; None if it is neither confirmed nor a possible missing annotation."""
        is_unannotated = case.background_type == "missing annotation"
        if not case.confirmed and not is_unannotated:
            return None
        has_object = case.ground_truth is not None and case.type not in ("background", "missed")
        return cls(
            type=case.type,
            name=case.name,
            true_name=case.ground_truth.name if has_object and case.ground_truth else "",
            background_type=case.background_type or "",
            evidence_location="" if is_unannotated or case.evidence_location is None else case.evidence_location,
            failure_stage=case.failure_stage if case.type == "missed" else "",
        )

    @property
    def sentence(self) -> str:
        """The cause in words."""
        if self.background_type == "missing annotation":
            return f"{self.name}: possibly missing annotations"
        error = {
            "background": "background errors",
            "classification": f"detections on {self.true_name}",
            "localization": "localization errors",
            "both": f"errors of class and location on {self.true_name}",
            "duplicate": "duplicates",
            "missed": f"missed objects ({self.failure_stage})" if self.failure_stage else "missed objects",
        }[self.type]
        detail = f" ({self.background_type})" if self.background_type else ""
        phrase = LOCATION_PHRASES[self.evidence_location] if self.evidence_location else "unknown"
        if self.type == "background" and self.evidence_location == "ground truth":
            phrase = "on an overlapping object"
        return f"{self.name}: {error}{detail}, evidence {phrase.format(name=self.name)}"


@dataclass(frozen=True)
class CauseChange:
    """The errors of a cause in two audits.

    Attributes:
        cause: the cause.
        status: ``"grown"`` or ``"shrunk"`` if the p-value is below the corrected threshold, ``"new"`` or ``"gone"`` if
            in addition the other audit has no such error; else ``"no significant change"``.
        old_count: number of its explained errors in the old audit.
        new_count: the same in the new audit.
        difference_interval: 95 % interval of ``new_count - old_count`` by a paired bootstrap over images.
        p_value: of the sign-flip test over images, before the correction for several causes.
        old_delta_ap: increase of the old average precision without these errors; NaN where it is undefined.
        new_delta_ap: the same for the new average precision.
        delta_ap_interval: 95 % interval of ``new_delta_ap - old_delta_ap``.
        old_ids: ids of the cases in the old audit.
        new_ids: ids of the cases in the new audit.
    """

    cause: Cause
    status: CauseStatus
    old_count: int
    new_count: int
    difference_interval: tuple[float, float]
    p_value: float
    old_delta_ap: float
    new_delta_ap: float
    delta_ap_interval: tuple[float, float]
    old_ids: tuple[str, ...]
    new_ids: tuple[str, ...]


def compare_causes(old: Bootstrapped, new: Bootstrapped) -> list[CauseChange]:
    """Compare the number of errors of each cause, and what they cost.

    Args:
        old: the old audit.
        new: the new audit, with weights of the same images.

    Returns:
        Changes, the significant ones first, by decreasing difference of the counts.
    """
    members = [cases_by_cause(side.record) for side in (old, new)]
    changes = []
    for cause in dict.fromkeys([*members[0], *members[1]]):
        cases = members[0].get(cause, []), members[1].get(cause, [])
        difference = new.count_by_image(cases[1]) - old.count_by_image(cases[0])
        costs = old.delta_ap(cases[0]), new.delta_ap(cases[1])
        changes.append(
            CauseChange(
                cause=cause,
                status="no significant change",
                old_count=len(cases[0]),
                new_count=len(cases[1]),
                difference_interval=interval(old.weights[1:].astype(np.float64) @ difference),
                p_value=sign_flip_p_value(difference),
                old_delta_ap=float(costs[0][0]),
                new_delta_ap=float(costs[1][0]),
                delta_ap_interval=interval(costs[1][1:] - costs[0][1:]),
                old_ids=tuple(case.id for case in cases[0]),
                new_ids=tuple(case.id for case in cases[1]),
            )
        )
    smallest = [_smallest_p_value(change, members) for change in changes]
    threshold = corrected_threshold(smallest)
    changes = [replace(change, status=_status(change, threshold)) for change in changes]
    return sorted(
        changes,
        key=lambda change: (
            change.status == "no significant change",
            -abs(change.new_count - change.old_count),
            change.cause,
        ),
    )


def cases_by_cause(record: AuditRecord) -> dict[Cause, list[AuditCase]]:
    """The explained errors of each cause, which a comparison counts."""
    causes: dict[Cause, list[AuditCase]] = {}
    for case in record.cases:
        cause = Cause.of(case) if case.method and record.counts(case) else None
        if cause is not None:
            causes.setdefault(cause, []).append(case)
    return causes


def _smallest_p_value(change: CauseChange, members: Sequence[Mapping[Cause, Sequence[AuditCase]]]) -> float:
    """The p-value if all images with errors of the cause changed in the same direction."""
    images = {repr(case.image_id) for part in members for case in part.get(change.cause, [])}
    return min(1.0, 2.0 ** (1 - len(images)))


def _status(change: CauseChange, threshold: float) -> CauseStatus:
    if change.p_value > threshold:
        return "no significant change"
    if change.new_count > change.old_count:
        return "new" if change.old_count == 0 else "grown"
    return "gone" if change.new_count == 0 else "shrunk"
