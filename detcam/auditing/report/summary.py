"""The results of an audit, from which the report is generated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detcam.auditing.analysis import ClassSummary, ErrorAnalysis
from detcam.auditing.case import AuditCase, ErrorGroup
from detcam.auditing.case_table import case_columns, case_ids, explained_cases
from detcam.auditing.errors import ErrorType
from detcam.auditing.grouping.assignment import Assignment
from detcam.auditing.grouping.hierarchy import CauseNode, causes_to_json
from detcam.auditing.grouping.inventory import CauseShare
from detcam.auditing.report.curves import ScoreCurves
from detcam.auditing.sentences import endings, has_other_class, is_outside, what_ends
from detcam.data.annotations import Annotations
from detcam.data.issues import DataIssues
from detcam.utils.console import plural
from detcam.utils.files import json_value
from detcam.utils.version import __version__

AUDIT_SCHEMA = "detcam/audit"
AUDIT_VERSION = 4


HEADER = (
    *("detcam_version", "model", "adapter", "annotations", "image_count", "object_count", "iou_threshold"),
    *("average_precision", "false_positive_count", "false_positive_delta_ap", "tide_average_precision"),
)
"""Fields that ``audit.json`` begins with, under the same names."""


@dataclass(frozen=True)
class ReportSummary:
    """Results of an audit.

    Attributes:
        model: name of the model.
        adapter: family of the adapter.
        annotations: name of the annotation file.
        image_count: number of evaluated images.
        object_count: number of ground-truth objects, without crowd regions.
        iou_threshold: minimum IoU of a true positive, in (0, 1].
        average_precision: COCO average precision at that threshold, mean over classes, in [0, 1]; NaN without objects.
        false_positive_count: number of false positives.
        false_positive_delta_ap: increase of average precision when all false positives are corrected; NaN without
            objects.
        error_counts: number of cases of each type.
        delta_ap_by_type: increase of TIDE's average precision when the errors of a type are corrected.
        classes: summary of each class.
        tide_average_precision: TIDE's mean over classes, to which `delta_ap_by_type` refers, in [0, 1]; NaN if unknown.
        category_ids: class index to category id of the annotation file, for the classes with objects.
        settings: settings of the audit, by name.
        groups: explained errors with a common cause, at least two in a group; largest delta AP first, then most
            confirmed effect, then highest score.
        causes: hierarchy of the causes of the explained errors.
        assignment: the unexplained errors, with the explained ones that resemble them; None if there are too few.
        inventory: shares of the kinds of evidence among all errors from the score threshold on; empty if it was not
            estimated.
        curves: precision and recall by score; None if they are unknown.
        cases: all errors; those without an explanation may be made when they are read.
        issues: issues with the data, and what was skipped because of them.
        seconds: duration of the audit.
        detcam_version: version of detcam.
    """

    model: str
    adapter: str
    annotations: str
    image_count: int
    object_count: int
    iou_threshold: float
    average_precision: float
    false_positive_count: int
    false_positive_delta_ap: float
    error_counts: Mapping[ErrorType, int]
    delta_ap_by_type: Mapping[ErrorType, float]
    classes: tuple[ClassSummary, ...]
    tide_average_precision: float = math.nan
    category_ids: Mapping[int, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[ErrorGroup, ...] = ()
    causes: tuple[CauseNode, ...] = ()
    assignment: Assignment | None = None
    inventory: tuple[CauseShare, ...] = ()
    curves: ScoreCurves | None = None
    cases: Sequence[AuditCase] = ()
    issues: DataIssues = field(default_factory=DataIssues)
    seconds: float = 0.0
    detcam_version: str = __version__

    def __post_init__(self) -> None:
        # Numbers in the place of ids, since these would take most of the memory of a large audit.
        known = np.unique(np.fromiter(map(hash, case_ids(self.cases)), dtype=np.int64))
        if len(known) < len(self.cases):
            raise ValueError(f"expected unique case ids, got {len(self.cases)} cases with {len(known)} ids")
        for group in self.groups:
            unknown = _unknown(group.case_ids, known)
            if unknown:
                raise ValueError(f"group {group.number} refers to {unknown[0]!r}, which is not a case of the audit")
        for cause in self.causes:
            unknown = _unknown(cause.case_ids, known)
            if unknown:
                raise ValueError(f"cause {cause.name!r} refers to {unknown[0]!r}, which is not a case of the audit")

    @classmethod
    def from_analysis(
        cls,
        analysis: ErrorAnalysis,
        annotations: Annotations,
        *,
        model: str,
        adapter: str,
        iou_threshold: float,
        cases: Sequence[AuditCase],
        groups: Sequence[ErrorGroup] = (),
        causes: Sequence[CauseNode] = (),
        assignment: Assignment | None = None,
        inventory: Sequence[CauseShare] = (),
        settings: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> ReportSummary:
        """Combine the results of an audit.

        Args:
            analysis: error analysis of the detections.
            annotations: annotations that the detections were compared with.
            model: name of the model.
            adapter: family of the adapter.
            iou_threshold: IoU threshold of the analysis.
            cases: all errors of the analysis, explained or not.
            groups: explained errors with a common cause.
            causes: hierarchy of the causes of the explained errors.
            assignment: the unexplained errors, with the explained ones that resemble them.
            inventory: shares of the kinds of evidence among all errors from the score threshold on.
            settings: settings of the audit: strings, numbers, lists, mappings.
            seconds: duration of the audit.

        Raises:
            ValueError: case ids are not unique, or a group refers to an unknown case.
        """
        false_positives = analysis.indices(false_positives_only=True)
        categories = {
            label: category
            for image in annotations
            for label, category in zip(image.labels.tolist(), image.category_ids.tolist(), strict=True)
        }
        return cls(
            model=model,
            adapter=adapter,
            annotations=annotations.path.name,
            image_count=len(annotations),
            object_count=sum(summary.objects for summary in analysis.classes.values()),
            iou_threshold=iou_threshold,
            average_precision=analysis.average_precision,
            false_positive_count=len(false_positives),
            false_positive_delta_ap=analysis.delta_ap_of(false_positives),
            error_counts=analysis.counts(),
            delta_ap_by_type=analysis.delta_ap.by_type,
            classes=tuple(analysis.classes[label] for label in sorted(analysis.classes)),
            tide_average_precision=analysis.delta_ap.average_precision,
            category_ids=categories,
            settings=dict(settings or {}),
            groups=tuple(groups),
            causes=tuple(causes),
            assignment=assignment,
            inventory=tuple(inventory),
            curves=ScoreCurves.from_analysis(analysis),
            cases=cases,
            issues=annotations.issues,
            seconds=seconds,
        )

    @property
    def score_threshold(self) -> float:
        """Minimum score of a relevant detection; 0 if the settings have none."""
        return float(self.settings.get("score_threshold", 0.0))

    def headline(self) -> list[str]:
        """Summarize the audit in sentences, the most important first."""
        if self.settings.get("unlabeled"):
            return unlabeled_headline(self.cases, self.score_threshold)
        return headline(self.cases, self.false_positive_delta_ap, self.score_threshold)

    def to_json(self) -> dict[str, Any]:
        """Convert to the content of ``audit.json``, without its lists of cases and images."""
        return {
            "schema": AUDIT_SCHEMA,
            "version": AUDIT_VERSION,
            **{name: json_value(getattr(self, name)) for name in HEADER},
            "headline": self.headline(),
            "types": [
                {"type": kind, "count": self.error_counts[kind], "delta_ap": json_value(self.delta_ap_by_type[kind])}
                for kind in self.error_counts
            ],
            "classes": json_value(self.classes),
            "settings": json_value(self.settings),
            "seconds": json_value(self.seconds),
            "groups": [group.to_json() for group in self.groups],
            "causes": causes_to_json(self.causes),
            "assignment": None if self.assignment is None else json_value(self.assignment.to_json()),
            "inventory": [share.to_json() for share in self.inventory],
            "curves": None if self.curves is None else self.curves.to_json(),
            "issues": json_value(list(self.issues)),
        }


def _unknown(ids: Sequence[str], known: np.ndarray) -> list[str]:
    """The ids whose hashes are not among the known ones."""
    hashes = np.fromiter(map(hash, ids), dtype=np.int64)
    return [name for name, is_known in zip(ids, np.isin(hashes, known).tolist(), strict=True) if not is_known]


def headline(cases: Sequence[AuditCase], false_positive_delta_ap: float, score_threshold: float) -> list[str]:
    """Summarize an audit in sentences, the most important first.

    Args:
        cases: all errors.
        false_positive_delta_ap: increase of average precision when all false positives are corrected; NaN without
            objects.
        score_threshold: minimum score of the errors that count in the first sentence.
    """
    columns = case_columns(cases)
    above = int((columns.is_false_positive & (columns.score >= score_threshold)).sum())
    below = int(columns.is_false_positive.sum()) - above
    lines = [_count_false_positives(above, below, false_positive_delta_ap, score_threshold)]
    false_positives = [case for case in explained_cases(cases).values() if case.is_false_positive]
    tested = [case for case in false_positives if case.verdict != "not tested"]
    if tested:
        confirmed = [case for case in tested if case.confirmed]
        strong = sum(case.verdict == "strong" for case in confirmed)
        verb = "has a confirmed cause" if len(confirmed) == 1 else "have a confirmed cause"
        lines.append(f"{len(confirmed)} of {len(tested)} explained false positives {verb}, {strong} of them strongly.")
        ending = [what_ends(case) for case in confirmed if is_outside(case)]
        outside = len(ending)
        if outside:
            what = "detection" if set(ending) == {"detection"} else "error"
            lies, ends = ("lies", f"the {what} ends") if outside == 1 else ("lie", f"the {what}s end")
            which = "It" if len(confirmed) == 1 else f"{outside} of these {len(confirmed)}"
            which = f"All {outside}" if outside == len(confirmed) > 1 else which
            lines.append(f"{which} {lies} outside the box: {ends} without a region outside.")
    background = [case for case in false_positives if case.type == "background"]
    unannotated = sum(case.background_type == "missing annotation" for case in background)
    if unannotated:
        lines.append(
            f"{unannotated} of {len(background)} explained background errors may be missing annotations: check "
            "them before you count them as errors."
        )
    return lines


def unlabeled_headline(cases: Sequence[AuditCase], score_threshold: float) -> list[str]:
    """Summarize an audit without annotations in sentences.

    Args:
        cases: all detections.
        score_threshold: minimum score of the detections that count.
    """
    relevant = int((case_columns(cases).score >= score_threshold).sum())
    lines = [f"{plural(relevant, 'detection')} with a score of at least {score_threshold:g}, no annotations."]
    rated = [case for case in explained_cases(cases).values() if math.isfinite(case.trust)]
    if rated:
        outside = [case for case in rated if is_outside(case)]
        others = sum(has_other_class(case) for case in rated)
        low = sum(case.trust < 0.5 for case in rated)
        found = f"{len(rated)} {'is' if len(rated) == 1 else 'are'} explained"
        if outside:
            found += f"; {len(outside)} {endings(outside)} without a region outside the box, which is confirmed"
        if others:
            have, their = ("has", "its") if others == 1 else ("have", "their")
            found += f"; {others} {have} another class without {their} surroundings"
        these = "it" if low == 1 else "these"
        first = f"{low} {'has' if low == 1 else 'have'} a trust below 0.5: look at {these} first."
        lines.append(f"{found}. {first if low else 'None has a trust below 0.5.'}")
    return lines


def _count_false_positives(above: int, below: int, delta_ap: float, score_threshold: float) -> str:
    """The sentence on the number of false positives from the threshold on, and the cost of all of them."""
    if not above + below:
        return "No false positives."
    with_score = f" with a score of at least {score_threshold:g}" if score_threshold else ""
    counted = f"{plural(above, 'false positive') if above else 'No false positives'}{with_score}"
    if not math.isfinite(delta_ap):
        return f"{counted}. Average precision is undefined, because there are no ground-truth objects."
    cost = f"average precision by {_ap(delta_ap)}"
    if not below:
        return f"{counted} reduce{'s' if above == 1 else ''} {cost}."
    others = f"the {below} with lower scores" if below > 1 else "the one with a lower score"
    if not above:
        return f"{counted}; {others} reduce{'s' if below == 1 else ''} {cost}."
    return f"{counted}. Together with {others}, {'they reduce' if above > 1 else 'it reduces'} {cost}."


def _ap(value: float) -> str:
    if value >= 0.01:
        return f"{value:.2f}"
    return f"{value:.3f}" if value >= 0.001 else "less than 0.001"
