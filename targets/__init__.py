"""Targets: callables from one image's model output to the scalar that is explained."""

from detcam.outputs import BaseTarget, DetectionTarget
from detcam.targets.box import QUANTITIES, BoxTarget, FasterRCNNBoxScoreTarget, SuppressionTarget
from detcam.targets.classes import (
    BinaryClassifierOutputTarget,
    ClassifierOutputReST,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
    ClassTarget,
    FinerWeightedTarget,
    RawScoresOutputTarget,
    SoftmaxOutputTarget,
    reads_raw_output,
)
from detcam.targets.conversion import as_box_targets
from detcam.targets.edges import EdgesTarget
from detcam.targets.embedding import DifferenceFromConceptTarget, SimilarityToConceptTarget
from detcam.targets.mask import InstanceMaskTarget, MaskErrorTarget, MaskTarget, SemanticSegmentationTarget
from detcam.targets.registry import TARGETS, BoxFunctionTarget, FunctionTarget, register_target, with_quantity

__all__ = [
    "QUANTITIES",
    "TARGETS",
    "BaseTarget",
    "BinaryClassifierOutputTarget",
    "BoxFunctionTarget",
    "BoxTarget",
    "ClassTarget",
    "ClassifierOutputReST",
    "ClassifierOutputSoftmaxTarget",
    "ClassifierOutputTarget",
    "DetectionTarget",
    "DifferenceFromConceptTarget",
    "EdgesTarget",
    "FasterRCNNBoxScoreTarget",
    "FinerWeightedTarget",
    "FunctionTarget",
    "InstanceMaskTarget",
    "MaskErrorTarget",
    "MaskTarget",
    "RawScoresOutputTarget",
    "SemanticSegmentationTarget",
    "SimilarityToConceptTarget",
    "SoftmaxOutputTarget",
    "SuppressionTarget",
    "reads_raw_output",
    "register_target",
    "as_box_targets",
    "with_quantity",
]
