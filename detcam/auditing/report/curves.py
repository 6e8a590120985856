"""Precision and recall by score threshold, and which classes the errors confuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detcam.auditing.case import AuditCase
from detcam.auditing.case_table import case_columns
from detcam.utils.files import json_number

if TYPE_CHECKING:
    from detcam.auditing.analysis import ErrorAnalysis

THRESHOLDS = np.linspace(0, 1, 101)
MAX_CONFUSED = 12
"""Maximum number of classes in the confusion matrix."""


@dataclass(frozen=True)
class ScoreCurves:
    """Precision and recall of the detections from a score on, all classes together.

    Attributes:
        thresholds: (k,) float64, increasing scores in [0, 1].
        precision: (k,) float64 in [0, 1]; NaN where no detection has the score.
        recall: (k,) float64 in [0, 1]; NaN without objects.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @classmethod
    def from_analysis(cls, analysis: ErrorAnalysis) -> ScoreCurves:
        """Count the true and false positives of an analysis from each threshold on."""
        rankings = list(analysis.rankings.values())
        scores = np.concatenate([ranking.scores for ranking in rankings] or [np.zeros(0)])
        hits = np.concatenate([ranking.hits for ranking in rankings] or [np.zeros(0, dtype=bool)])
        order = np.argsort(scores, kind="stable")
        first = np.searchsorted(scores[order], THRESHOLDS, side="left")
        true_positives = np.concatenate([np.cumsum(hits[order][::-1])[::-1], [0]])[first]
        detections, objects = len(scores) - first, sum(ranking.object_count for ranking in rankings)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = true_positives / detections, true_positives / np.float64(objects)
        return cls(THRESHOLDS, precision, recall)

    @property
    def f1(self) -> np.ndarray:
        """(k,) float64, harmonic mean of precision and recall; 0 where both are 0."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=total * 0, where=total > 0)

    def to_json(self) -> dict[str, Any]:
        """Convert to the entry of ``audit.json``."""
        curves = {"thresholds": self.thresholds, "precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {name: [json_number(value) for value in values] for name, values in curves.items()}


def confusions(cases: Sequence[AuditCase], score_threshold: float) -> dict[str, Any]:
    """Count errors by true and predicted class, for the classes with the most errors.

    Args:
        cases: all errors; false positives below the threshold are left out.
        score_threshold: minimum score of a relevant detection.

    Returns:
        ``names`` of the classes, and ``cells``: lists of true class, predicted class and number, as indices in `names`.
        The true class of a background error and the predicted class of a missed object is -1. Errors in which the two
        are the same are duplicates and errors of location.
    """
    pairs: Counter[tuple[str | None, str | None]] = Counter()
    for index in np.flatnonzero(case_columns(cases).is_relevant(score_threshold)).tolist():
        case = cases[index]
        if case.type == "missed":
            pairs[case.name, None] += 1
        else:
            is_background = case.type == "background" or case.ground_truth is None
            pairs[None if is_background or case.ground_truth is None else case.ground_truth.name, case.name] += 1
    totals: Counter[str] = Counter()
    for pair, count in pairs.items():
        for name in set(pair) - {None}:
            totals[str(name)] += count
    names = [name for name, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:MAX_CONFUSED]]
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)} | {None: -1}
    cells = [[numbers[true], numbers[predicted], count] for (true, predicted), count in pairs.items()
             if true in numbers and predicted in numbers]  # fmt: skip
    return {"names": names, "cells": cells, "class_count": len(totals)}
