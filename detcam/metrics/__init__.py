"""Metrics: the quality of a heatmap as a number. One module per family, one registry."""

from __future__ import annotations

from typing import TypeVar

from detcam.metrics.base import Metric, MetricSummary, MetricWarning, summarize
from detcam.metrics.cam_mult_image import CamMultImageConfidenceChange, DropInConfidence, IncreaseInConfidence
from detcam.metrics.complexity import ADCC, ARCC, Coherency, Complexity, Entropy, Sparseness
from detcam.metrics.cost import Cost, WorkCount, count_work, measure_cost
from detcam.metrics.curves import Curve, CurveSettings, Deletion, Insertion, InsertionMinusDeletion, score_curves
from detcam.metrics.localization import Compactness, EnergyPointingGame, HeatmapIoU, ObjectDiscrimination, PointingGame
from detcam.metrics.metric_input import MetricImage, MetricInput, read_metric_input
from detcam.metrics.perturbation_confidence import (
    AveragerAcrossThresholds,
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveLeastRelevantFirstAverage,
    RemoveMostRelevantFirst,
    RemoveMostRelevantFirstAverage,
)
from detcam.metrics.region_size import DestroyingRegion, SufficientRegion
from detcam.metrics.road import (
    NoisyLinearImputer,
    ROADCombined,
    ROADLeastRelevantFirst,
    ROADLeastRelevantFirstAverage,
    ROADMostRelevantFirst,
    ROADMostRelevantFirstAverage,
)
from detcam.metrics.sanity import RandomizationCheck, independence, randomization, reproducibility
from detcam.metrics.scoring import ScoredImage
from detcam.metrics.stability import StabilityCheck
from detcam.metrics.target_regions import TargetRegions, ground_truth_regions
from detcam.utils.registry import Registry

__all__ = [
    "ADCC",
    "ARCC",
    "METRICS",
    "AveragerAcrossThresholds",
    "CamMultImageConfidenceChange",
    "Coherency",
    "Compactness",
    "Complexity",
    "Cost",
    "Curve",
    "CurveSettings",
    "Deletion",
    "DestroyingRegion",
    "DropInConfidence",
    "EnergyPointingGame",
    "Entropy",
    "HeatmapIoU",
    "IncreaseInConfidence",
    "Insertion",
    "InsertionMinusDeletion",
    "Metric",
    "MetricImage",
    "MetricInput",
    "MetricSummary",
    "MetricWarning",
    "NoisyLinearImputer",
    "ObjectDiscrimination",
    "PerturbationConfidenceMetric",
    "PointingGame",
    "ROADCombined",
    "ROADLeastRelevantFirst",
    "ROADLeastRelevantFirstAverage",
    "ROADMostRelevantFirst",
    "ROADMostRelevantFirstAverage",
    "RandomizationCheck",
    "RemoveLeastRelevantFirst",
    "RemoveLeastRelevantFirstAverage",
    "RemoveMostRelevantFirst",
    "RemoveMostRelevantFirstAverage",
    "ScoredImage",
    "Sparseness",
    "StabilityCheck",
    "SufficientRegion",
    "TargetRegions",
    "WorkCount",
    "count_work",
    "ground_truth_regions",
    "independence",
    "measure_cost",
    "randomization",
    "read_metric_input",
    "register_metric",
    "reproducibility",
    "score_curves",
    "summarize",
]

MetricType = TypeVar("MetricType", bound=type[Metric])

_BUILTIN: tuple[type[Metric], ...] = (
    Deletion,
    Insertion,
    InsertionMinusDeletion,
    SufficientRegion,
    DestroyingRegion,
    ROADCombined,
    ROADMostRelevantFirst,
    ROADMostRelevantFirstAverage,
    ROADLeastRelevantFirst,
    ROADLeastRelevantFirstAverage,
    RemoveMostRelevantFirstAverage,
    RemoveLeastRelevantFirstAverage,
    CamMultImageConfidenceChange,
    DropInConfidence,
    IncreaseInConfidence,
    Complexity,
    Sparseness,
    Entropy,
    Coherency,
    ADCC,
    ARCC,
    PointingGame,
    EnergyPointingGame,
    HeatmapIoU,
    ObjectDiscrimination,
    Compactness,
    RandomizationCheck,
    StabilityCheck,
)

METRICS: Registry[type[Metric]] = Registry("metric", "detcam.metrics", {metric.name: metric for metric in _BUILTIN})
"""Every metric class by name; each can be constructed without arguments."""


def register_metric(metric: MetricType) -> MetricType:
    """Add a metric to the registry; a decorator for subclasses of `Metric`.

    Benchmarks and the command line then accept the metric by its `name`. A package can register metrics without an
    import through the entry point group ``detcam.metrics``.

    Args:
        metric: a subclass of `Metric` that can be constructed without arguments.

    Returns:
        The class, unchanged.

    Raises:
        TypeError: not a subclass of `Metric`.
        ValueError: another metric has this name.

    Example:
        >>> from detcam.metrics import METRICS, Metric, register_metric
        >>> @register_metric
        ... class MaximumHeat(Metric):
        ...     name, range, higher_is_better = "maximum_heat", (0.0, 1.0), True
        ...
        ...     def value(self, image):
        ...         return image.heatmaps.amax((1, 2))
        >>> "maximum_heat" in METRICS
        True
    """
    if not (isinstance(metric, type) and issubclass(metric, Metric)):
        raise TypeError(f"expected a subclass of Metric; got {metric!r:.60}")
    METRICS.register(getattr(metric, "name", ""), metric)
    return metric
