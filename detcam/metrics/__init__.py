"""The metrics: what is good about a heatmap, in numbers. One file per family, one registry."""

from __future__ import annotations

from detcam.metrics.base import Metric, MetricWarning, Question, Summary, read_question, read_truth, summarize
from detcam.metrics.curves import (
    Curve,
    CurveSettings,
    Deletion,
    DestroyingRegion,
    Insertion,
    InsertionMinusDeletion,
    SufficientRegion,
    curves,
)

METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (Deletion, Insertion, InsertionMinusDeletion, SufficientRegion, DestroyingRegion)
}
"""Every metric by name; each can be made without arguments."""

__all__ = [
    "METRICS",
    "Curve",
    "CurveSettings",
    "Deletion",
    "DestroyingRegion",
    "Insertion",
    "InsertionMinusDeletion",
    "Metric",
    "MetricWarning",
    "Question",
    "SufficientRegion",
    "Summary",
    "curves",
    "read_question",
    "read_truth",
    "summarize",
]
