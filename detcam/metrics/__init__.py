"""Metrics: the quality of a heatmap as a number. One module per family, one registry."""

from __future__ import annotations

from typing import TypeVar

from detcam.metrics.base import Metric as Metric
from detcam.metrics.base import MetricSummary as MetricSummary
from detcam.metrics.base import MetricWarning as MetricWarning
from detcam.metrics.base import summarize as summarize
from detcam.metrics.cam_mult_image import CamMultImageConfidenceChange as CamMultImageConfidenceChange
from detcam.metrics.cam_mult_image import DropInConfidence as DropInConfidence
from detcam.metrics.cam_mult_image import IncreaseInConfidence as IncreaseInConfidence
from detcam.metrics.complexity import ADCC as ADCC
from detcam.metrics.complexity import ARCC as ARCC
from detcam.metrics.complexity import Coherency as Coherency
from detcam.metrics.complexity import Complexity as Complexity
from detcam.metrics.complexity import Entropy as Entropy
from detcam.metrics.complexity import Sparseness as Sparseness
from detcam.metrics.cost import Cost as Cost
from detcam.metrics.cost import WorkCount as WorkCount
from detcam.metrics.cost import count_work as count_work
from detcam.metrics.cost import measure_cost as measure_cost
from detcam.metrics.curves import Curve as Curve
from detcam.metrics.curves import CurveSettings as CurveSettings
from detcam.metrics.curves import Deletion as Deletion
from detcam.metrics.curves import Insertion as Insertion
from detcam.metrics.curves import InsertionMinusDeletion as InsertionMinusDeletion
from detcam.metrics.curves import score_curves as score_curves
from detcam.metrics.localization import Compactness as Compactness
from detcam.metrics.localization import EnergyPointingGame as EnergyPointingGame
from detcam.metrics.localization import HeatmapIoU as HeatmapIoU
from detcam.metrics.localization import ObjectDiscrimination as ObjectDiscrimination
from detcam.metrics.localization import PointingGame as PointingGame
from detcam.metrics.metric_input import MetricImage as MetricImage
from detcam.metrics.metric_input import MetricInput as MetricInput
from detcam.metrics.metric_input import read_metric_input as read_metric_input
from detcam.metrics.perturbation_confidence import AveragerAcrossThresholds as AveragerAcrossThresholds
from detcam.metrics.perturbation_confidence import PerturbationConfidenceMetric as PerturbationConfidenceMetric
from detcam.metrics.perturbation_confidence import RemoveLeastRelevantFirst as RemoveLeastRelevantFirst
from detcam.metrics.perturbation_confidence import RemoveLeastRelevantFirstAverage as RemoveLeastRelevantFirstAverage
from detcam.metrics.perturbation_confidence import RemoveMostRelevantFirst as RemoveMostRelevantFirst
from detcam.metrics.perturbation_confidence import RemoveMostRelevantFirstAverage as RemoveMostRelevantFirstAverage
from detcam.metrics.region_size import DestroyingRegion as DestroyingRegion
from detcam.metrics.region_size import SufficientRegion as SufficientRegion
from detcam.metrics.road import NoisyLinearImputer as NoisyLinearImputer
from detcam.metrics.road import ROADCombined as ROADCombined
from detcam.metrics.road import ROADLeastRelevantFirst as ROADLeastRelevantFirst
from detcam.metrics.road import ROADLeastRelevantFirstAverage as ROADLeastRelevantFirstAverage
from detcam.metrics.road import ROADMostRelevantFirst as ROADMostRelevantFirst
from detcam.metrics.road import ROADMostRelevantFirstAverage as ROADMostRelevantFirstAverage
from detcam.metrics.sanity import RandomizationCheck as RandomizationCheck
from detcam.metrics.sanity import independence as independence
from detcam.metrics.sanity import randomization as randomization
from detcam.metrics.sanity import reproducibility as reproducibility
from detcam.metrics.scoring import ScoredImage as ScoredImage
from detcam.metrics.stability import StabilityCheck as StabilityCheck
from detcam.metrics.target_regions import TargetRegions as TargetRegions
from detcam.metrics.target_regions import ground_truth_regions as ground_truth_regions
from detcam.utils.registry import Registry

MetricType = TypeVar("MetricType", bound=type[Metric])

BUILTIN_METRICS: tuple[type[Metric], ...] = (
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

METRICS: Registry[type[Metric]] = Registry(
    "metric", "detcam.metrics", {metric.name: metric for metric in BUILTIN_METRICS}
)
"""Every metric class by name; each can be constructed without arguments."""


def register_metric(metric: MetricType) -> MetricType:
    """Add a metric to the registry; a decorator for subclasses of `Metric`.

    Benchmarks and the command line then accept the metric by its `name`. A package can register metrics without an
    import through the entry point group ``detcam.metrics``.

    Args:
        metric: a subclass of `Metric` that can be constructed without arguments.

    Returns:
        the class, unchanged.

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
