"""Causes of errors in two audits of the same images: new, gone, grown or shrunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from detcam.auditing.case import AuditCase
from detcam.auditing.comparison.bootstrap import Bootstrapped, paired_delta_ap
from detcam.auditing.comparison.paired import corrected_threshold, interval, sign_flip_p_value
from detcam.auditing.comparison.record import AuditRecord
from detcam.auditing.grouping.evidence_kind import OUTSIDE_KINDS, evidence_kind
from detcam.auditing.grouping.hierarchy import Cause
from detcam.utils.batching import group_by

CauseStatus: TypeAlias = Literal["new", "gone", "grown", "shrunk", "no significant change"]
MIN_FORM_OVERLAP = 0.5
"""Minimum overlap of the forms of evidence of two groups that are the same cause, although one of them is called, say,
a mark and the other surroundings."""


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
        old_delta_ap: increase of the old average precision when these errors are corrected; NaN if their classes
            have no objects.
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
    share_names(members)
    changes = []
    for cause in dict.fromkeys([*members[0], *members[1]]):
        cases = members[0].get(cause, []), members[1].get(cause, [])
        difference = new.count_by_image(cases[1]) - old.count_by_image(cases[0])
        costs = paired_delta_ap((old, new), cases)
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


def share_names(members: Sequence[dict[Cause, list[AuditCase]]]) -> None:
    """Give groups of the same form of evidence the same name in both audits, in place.

    Whether evidence outside the box is called a mark, the image border, surroundings, or object and surroundings is a
    majority vote of its group, so that two audits may name one cause differently. A group whose cause one audit alone
    has takes the name of the other's group of the same classes whose cases have most of their forms in common with it,
    if that is at least `MIN_FORM_OVERLAP`: the new audit's name, if each alone has its own.

    Args:
        members: cases by cause of the old and of the new audit.
    """
    for own, other in (members, members[::-1]):
        for cause in [cause for cause in own if cause.kind in OUTSIDE_KINDS and cause not in other]:
            rivals = [
                (rival, _form_shares(cases))
                for rival in other
                if rival.kind in OUTSIDE_KINDS and rival.classes == cause.classes
                for cases in _groups(other[rival])
            ]
            for cases in _groups(own.pop(cause)) if rivals else ():
                shares = _form_shares(cases)
                overlap, name = max((_overlap(shares, theirs), rival) for rival, theirs in rivals)
                own.setdefault(name if overlap >= MIN_FORM_OVERLAP else cause, []).extend(cases)


def _groups(cases: Sequence[AuditCase]) -> list[list[AuditCase]]:
    return list(group_by(cases, lambda case: case.group).values())


def _form_shares(cases: Sequence[AuditCase]) -> dict[str | None, float]:
    """Shares of the kinds of evidence of single cases, before the vote of their group."""
    return {kind: count / len(cases) for kind, count in Counter(evidence_kind(case) for case in cases).items()}


def _overlap(first: Mapping[str | None, float], second: Mapping[str | None, float]) -> float:
    return sum(min(share, second.get(kind, 0.0)) for kind, share in first.items())


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
