"""The result of an audit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import AuditCase, ErrorGroup
from detcam.auditing.case_table import explained_cases
from detcam.auditing.exports.data_frame import cases_frame
from detcam.auditing.exports.fiftyone_dataset import fiftyone_dataset
from detcam.auditing.grouping.assignment import Assignment
from detcam.auditing.grouping.hierarchy import CauseNode
from detcam.auditing.grouping.inventory import CauseShare
from detcam.auditing.report.notebook import notebook_html
from detcam.auditing.triage import least_trusted_first
from detcam.data.issues import DataIssues
from detcam.explanation.explain import DEFAULT_SCORE_THRESHOLD
from detcam.utils.console import plural
from detcam.utils.files import with_home


@dataclass(frozen=True, repr=False)
class Audit:
    """Result of an audit.

    Attributes:
        analysis: the errors found by matching, with counts and costs.
        cases: the same errors in the same order, with explanations where they were made; those without are made
            when they are read.
        groups: explained errors with similar evidence, at least two in a group, by decreasing cost.
        causes: the hierarchy of causes of the explained errors, which begins with the kinds of evidence.
        assignment: the unexplained errors, with the explained ones that resemble them, and the error of their
            assignment to kinds of evidence; None if too few are explained.
        inventory: shares of the kinds of evidence among all errors from the score threshold on, with intervals; empty
            unless the explained errors are random samples.
        issues: issues of the data, and what was left out because of them.
        report: path of the report's ``index.html``, or None.
        seconds: duration.
        timings: seconds spent ``detecting``, ``matching``, ``explaining``, ``comparing``, ``writing`` and ``grouping``,
            without those of an earlier, interrupted run.
        score_threshold: minimum score of a relevant detection: see `AuditSettings`.
        is_unlabeled: whether there were no annotations: the cases are detections.
    """

    analysis: ErrorAnalysis
    cases: Sequence[AuditCase]
    groups: tuple[ErrorGroup, ...]
    causes: tuple[CauseNode, ...]
    assignment: Assignment | None = field(repr=False)
    inventory: tuple[CauseShare, ...]
    issues: DataIssues
    report: Path | None
    seconds: float
    timings: Mapping[str, float] = field(default_factory=dict)
    score_threshold: float = DEFAULT_SCORE_THRESHOLD
    is_unlabeled: bool = False

    def __repr__(self) -> str:
        report = "" if self.report is None else f", report: {self.report}"
        value = self.analysis.average_precision
        precision = f"average precision {'undefined' if math.isnan(value) else f'{value:.3f}'}"
        noun = "detection" if self.is_unlabeled else "error"
        kinds = ", ".join(f"{cause.name}: {len(cause)}" for cause in self.causes)
        kinds = f" ({kinds})" if kinds else ""
        return (
            f"Audit({plural(len(self.cases), noun)}, {len(self.explained)} explained, {len(self.confirmed)} "
            f"confirmed, {plural(len(self.groups), 'group')}{kinds}, "
            f"{'no annotations' if self.is_unlabeled else precision}{report})"
        )

    def _repr_html_(self) -> str:
        options = {"is_unlabeled": self.is_unlabeled}
        return notebook_html(self.analysis, self.cases, self.causes, self.score_threshold, self.report, **options)

    @property
    def explained(self) -> list[AuditCase]:
        """The cases with a heatmap."""
        return [case for case in explained_cases(self.cases).values() if case.method]

    def to_pandas(self) -> Any:
        """Convert the cases to a pandas data frame, one row each, with boxes and ground truth as columns.

        Raises:
            ImportError: pandas is not installed.
        """
        return cases_frame(self.cases)

    def to_fiftyone(
        self, name: str | None = None, *, images: str | Path | None = None, persistent: bool = False
    ) -> Any:
        """Convert the report to a FiftyOne dataset: errors, objects, evidence, heatmaps, and a view for each group.

        Each image of an explained error is a sample. ``errors`` has its errors, with type, verdict and kind of evidence
        as tags; ``ground_truth`` its objects, those that are missed with a tag; ``evidence`` the regions that the
        errors need, as masks; ``heatmap``, ``heatmap_2``, ... the heatmaps by decreasing score.

        Args:
            name: name of the dataset; None lets FiftyOne choose one.
            images: folder of the original images; None takes those of the report.
            persistent: whether the dataset outlives the session.

        Returns:
            The ``fiftyone.Dataset``.

        Raises:
            ImportError: FiftyOne is not installed.
            ValueError: the audit has no report, or a dataset of that name exists.
        """
        if self.report is None:
            raise ValueError("expected an audit with a report; run it with a folder: detcam.audit(..., out=...)")
        folder = None if images is None else with_home(images)
        return fiftyone_dataset(self.report.parent, folder, name, persistent=persistent)

    @property
    def least_trusted(self) -> list[AuditCase]:
        """The explained detections of an audit without annotations, by increasing trust."""
        return least_trusted_first(self.explained)

    @property
    def confirmed(self) -> list[AuditCase]:
        """The cases whose evidence is confirmed as the cause."""
        return [case for case in self.explained if case.confirmed]
