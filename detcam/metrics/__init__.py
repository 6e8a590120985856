"""The metrics: what is good about a heatmap, in numbers. One file per family, one registry."""

from __future__ import annotations

from detcam.metrics.base import (
    Metric,
    MetricInput,
    MetricSummary,
    MetricWarning,
    read_metric_input,
    read_truth,
    summarize,
)
from detcam.metrics.cam_mult_image import CamMultImageConfidenceChange, DropInConfidence, IncreaseInConfidence
from detcam.metrics.complexity import ADCC, ARCC, Coherency, Complexity, Entropy, Sparseness
from detcam.metrics.cost import count_work, measure_cost
from detcam.metrics.curves import Curve, CurveSettings, Deletion, Insertion, InsertionMinusDeletion, score_curves
from detcam.metrics.localization import Compactness, EnergyPointingGame, HeatmapIoU, ObjectDiscrimination, PointingGame
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
from detcam.metrics.stability import StabilityCheck
from detcam.metrics.target_regions import TargetRegions, ground_truth_regions

METRICS: dict[str, type[Metric]] = {
    metric.name: metric
    for metric in (
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
}
"""Every metric by name; each can be made without arguments."""

__all__ = [
    "ADCC",
    "ARCC",
    "METRICS",
    "AveragerAcrossThresholds",
    "CamMultImageConfidenceChange",
    "Coherency",
    "Compactness",
    "Complexity",
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
    "MetricWarning",
    "NoisyLinearImputer",
    "ObjectDiscrimination",
    "PerturbationConfidenceMetric",
    "PointingGame",
    "MetricInput",
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
    "Sparseness",
    "StabilityCheck",
    "SufficientRegion",
    "MetricSummary",
    "TargetRegions",
    "count_work",
    "independence",
    "measure_cost",
    "randomization",
    "read_metric_input",
    "read_truth",
    "reproducibility",
    "score_curves",
    "summarize",
    "ground_truth_regions",
]
