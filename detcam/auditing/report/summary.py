"""All that an audit found, in one object: what the report is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from detcam.auditing.analysis import ClassSummary, ErrorAnalysis
from detcam.auditing.case import AuditCase, ErrorGroup
from detcam.auditing.errors import ErrorType
from detcam.auditing.sentences import rests_outside
from detcam.data.annotations import Annotations
from detcam.data.issues import DataIssues
from detcam.utils.files import plain
from detcam.utils.version import __version__

SCHEMA = "detcam/audit"
VERSION = 2


@dataclass(frozen=True)
class ReportSummary:
    """What an audit found.

    Attributes:
        model: the model's name.
        adapter: the family that it was explained as.
        annotations: name of the annotation file.
        image_count: how many images were judged.
        object_count: how many objects there were to find, crowd regions aside.
        iou_threshold: least overlap of a right detection, in (0, 1].
        average_precision: COCO's mean over classes at that overlap, in [0, 1]; NaN where there was nothing to find.
        false_positive_count: how many detections count as wrong.
        false_positive_delta_ap: how much higher average precision would be without them; NaN as above.
        error_counts: how many cases of each type.
        delta_ap_by_type: what mending all errors of a type would add to TIDE's average precision.
        classes: a summary per class.
        category_ids: class index to the annotation file's category id, of the classes whose objects it has.
        settings: what the audit was asked for, by name.
        groups: errors that share a cause, the costliest first.
        cases: every error.
        issues: what was wrong with the data, and what was left out because of it.
        seconds: how long the audit took.
        detcam_version: of detcam.
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
    category_ids: Mapping[int, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[ErrorGroup, ...] = ()
    cases: tuple[AuditCase, ...] = ()
    issues: DataIssues = field(default_factory=DataIssues)
    seconds: float = 0.0
    detcam_version: str = __version__

    def __post_init__(self) -> None:
        known = {case.id for case in self.cases}
        if len(known) < len(self.cases):
            raise ValueError(f"ids of cases must be unique; got {len(self.cases)} cases with {len(known)} ids")
        for group in self.groups:
            strangers = [case for case in group.case_ids if case not in known]
            if strangers:
                raise ValueError(f"group {group.number} names {strangers[0]!r}, which is none of the audit's cases")

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
        settings: Mapping[str, Any] | None = None,
        issues: DataIssues | None = None,
        seconds: float = 0.0,
    ) -> ReportSummary:
        """Put together what was found.

        Args:
            analysis: of the detections.
            annotations: what they were compared with; its problems come first.
            model: the model's name.
            adapter: the family that it was explained as.
            iou_threshold: what the analysis was made with.
            cases: all of the analysis, explained or not.
            groups: errors that share a cause.
            settings: what the audit was asked for: texts, numbers, lists, mappings.
            issues: that the audit itself met.
            seconds: how long the audit took.

        Raises:
            ValueError: two cases have one id, or a group names a case that is not among them.
        """
        wrong = analysis.indices(false_positives_only=True)
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
            object_count=sum(int((~image.crowd).sum()) for image in annotations),
            iou_threshold=iou_threshold,
            average_precision=analysis.average_precision,
            false_positive_count=len(wrong),
            false_positive_delta_ap=analysis.delta_ap_without(wrong),
            error_counts=analysis.counts(),
            delta_ap_by_type=analysis.delta_ap.by_type,
            classes=tuple(analysis.classes[label] for label in sorted(analysis.classes)),
            category_ids=categories,
            settings=dict(settings or {}),
            groups=tuple(groups),
            cases=tuple(cases),
            issues=annotations.issues + (issues or DataIssues()),
            seconds=seconds,
        )

    def headline(self) -> list[str]:
        """The audit in sentences, the most important first."""
        explained = [case for case in self.cases if case.is_false_positive and case.evidence_shares is not None]
        lines = [self._cost()]
        if explained:
            outside = sum(rests_outside(case) for case in explained)
            lines.append(f"{_share(outside, len(explained))} on something outside the box.")
        background = [case for case in explained if case.background_type is not None]
        unlabelled = sum(case.background_type == "missing annotation" for case in background)
        if unlabelled:
            lines.append(
                f"{unlabelled} of {len(background)} detections of nothing may be objects that nobody labelled: look at "
                "them before you call them wrong."
            )
        tested = [case for case in self.cases if case.verdict != "not tested"]
        if tested:
            confirmed = sum(case.verdict == "confirmed" for case in tested)
            lines.append(
                f"{confirmed} of {len(tested)} tested explanations {'is' if confirmed == 1 else 'are'} confirmed."
            )
        return lines

    def _cost(self) -> str:
        if not self.false_positive_count:
            return "No false positives."
        plural = self.false_positive_count != 1
        count = f"{self.false_positive_count} false positive{'s' if plural else ''}"
        least = self.settings.get("score_threshold")
        sure = sum(case.is_false_positive and case.score >= least for case in self.cases) if least else 0
        if least and sure < self.false_positive_count:
            count += f", {sure} of them at a score of {least:g} or more,"
        if not math.isfinite(self.false_positive_delta_ap):
            return f"{count.rstrip(',')}, and no objects to find: average precision is not defined."
        return f"{count} cost{'' if plural else 's'} {_ap(self.false_positive_delta_ap)} AP."

    def to_json(self) -> dict[str, Any]:
        """The summary for ``audit.json``, without the cases' and images' files."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "detcam_version": self.detcam_version,
            "model": self.model,
            "adapter": self.adapter,
            "annotations": self.annotations,
            "image_count": self.image_count,
            "object_count": self.object_count,
            "iou_threshold": plain(self.iou_threshold),
            "average_precision": plain(self.average_precision),
            "false_positive_count": self.false_positive_count,
            "false_positive_delta_ap": plain(self.false_positive_delta_ap),
            "headline": self.headline(),
            "types": [
                {"type": kind, "count": self.error_counts[kind], "delta_ap": plain(self.delta_ap_by_type[kind])}
                for kind in self.error_counts
            ],
            "classes": [plain(asdict(summary)) for summary in self.classes],
            "settings": plain(self.settings),
            "seconds": plain(self.seconds),
            "groups": [group.to_json() for group in self.groups],
            "cases": [case.to_json() for case in self.cases],
            "issues": [plain(asdict(issue)) for issue in self.issues],
        }


def _ap(value: float) -> str:
    if value >= 0.01:
        return f"{value:.2f}"
    return f"{value:.3f}" if value >= 0.001 else "less than 0.001"


def _share(part: int, whole: int) -> str:
    if not part:
        return "None of the explained ones rests"
    if part == whole:
        return "All of the explained ones rest" if whole > 1 else "The one that was explained rests"
    # Rounding must not make all or nothing of what is neither.
    percent = min(max(round(100 * part / whole), 1), 99)
    return f"{percent} % of the explained ones rest"
