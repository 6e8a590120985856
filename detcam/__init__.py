"""Explains object detectors and segmentation networks: which pixels made every box, mask and class.

Names and subpackages are imported when they are first used, so that ``import detcam`` itself imports no torch.
"""

from typing import TYPE_CHECKING

from detcam.methods import CLASSES
from detcam.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from detcam.adapters.base import Adapter, DetectorAdapter
    from detcam.adapters.registry import adapt, register_adapter
    from detcam.auditing.pipeline import Audit, audit
    from detcam.benchmarking.compare import benchmark
    from detcam.benchmarking.result import Benchmark
    from detcam.cam import BaseCAM
    from detcam.detections import Detections, Source
    from detcam.diagnostics import ClassAgnosticWarning, ConvergenceWarning, EmptyMapWarning, ReachWarning
    from detcam.explanation.explain import explain
    from detcam.explanation.result import Explanation, Explanations
    from detcam.factorization import DeepFeatureFactorization
    from detcam.methods import (
        DRISE,
        FEM,
        GCAME,
        KPCA_CAM,
        METHODS,
        ODAM,
        RISE,
        SESS,
        VPS,
        AblationCAM,
        AttentionRollout,
        CheferCAM,
        EigenCAM,
        EigenGradCAM,
        FinerCAM,
        FullGrad,
        GradCAM,
        GradCAMElementWise,
        GradCAMPlusPlus,
        GuidedBackprop,
        GuidedGradCAM,
        HiResCAM,
        LayerCAM,
        LeGrad,
        Occlusion,
        ProbeCAM,
        RandomCAM,
        ReachCAM,
        ReciproCAM,
        RefineCAM,
        ScoreCAM,
        SegEigenCAM,
        SegGradCAM,
        SegHiResCAM,
        SegXResCAM,
        ShapleyCAM,
        Sobel,
        SSGradCAM,
        SSGradCAMPlusPlus,
        XGradCAM,
        get_method,
        register_method,
    )
    from detcam.methods.drise import drise
    from detcam.methods.guided_backprop import GuidedBackpropReLUModel, guided_backprop
    from detcam.methods.sobel import sobel_cam
    from detcam.metrics import register_metric
    from detcam.metrics.base import Metric
    from detcam.outputs import DetectionTarget, DetectorOutput, SegmenterOutput
    from detcam.targets.registry import register_target
    from detcam.utils.version import __version__
    from detcam.visualize.concepts import create_labels_legend, show_factorization_on_image
    from detcam.visualize.overlay import deprocess_image, preprocess_image, show_cam_on_image

_MODULES = {
    "Adapter": "detcam.adapters.base",
    "Audit": "detcam.auditing.pipeline",
    "BaseCAM": "detcam.cam",
    "Benchmark": "detcam.benchmarking.result",
    "ClassAgnosticWarning": "detcam.diagnostics",
    "ConvergenceWarning": "detcam.diagnostics",
    "DeepFeatureFactorization": "detcam.factorization",
    "DetectionTarget": "detcam.outputs",
    "Detections": "detcam.detections",
    "DetectorAdapter": "detcam.adapters.base",
    "DetectorOutput": "detcam.outputs",
    "EmptyMapWarning": "detcam.diagnostics",
    "Explanation": "detcam.explanation.result",
    "Explanations": "detcam.explanation.result",
    "GuidedBackpropReLUModel": "detcam.methods.guided_backprop",
    "METHODS": "detcam.methods",
    "Metric": "detcam.metrics.base",
    "ReachWarning": "detcam.diagnostics",
    "SegmenterOutput": "detcam.outputs",
    "Source": "detcam.detections",
    "__version__": "detcam.utils.version",
    "adapt": "detcam.adapters.registry",
    "audit": "detcam.auditing.pipeline",
    "benchmark": "detcam.benchmarking.compare",
    "create_labels_legend": "detcam.visualize.concepts",
    "deprocess_image": "detcam.visualize.overlay",
    "drise": "detcam.methods.drise",
    "explain": "detcam.explanation.explain",
    "get_method": "detcam.methods",
    "guided_backprop": "detcam.methods.guided_backprop",
    "preprocess_image": "detcam.visualize.overlay",
    "register_adapter": "detcam.adapters.registry",
    "register_method": "detcam.methods",
    "register_metric": "detcam.metrics",
    "register_target": "detcam.targets.registry",
    "show_cam_on_image": "detcam.visualize.overlay",
    "show_factorization_on_image": "detcam.visualize.concepts",
    "sobel_cam": "detcam.methods.sobel",
    **CLASSES,
}
"""The module that defines each public name."""

_SUBMODULES = (
    "adapters",
    "auditing",
    "benchmarking",
    "cam",
    "cli",
    "data",
    "demo",
    "detections",
    "diagnostics",
    "explanation",
    "factorization",
    "geometry",
    "inputs",
    "layers",
    "methods",
    "metrics",
    "models",
    "outputs",
    "perturbation",
    "results",
    "synthetic",
    "targets",
    "testing",
    "trace",
    "utils",
    "visualize",
)
"""Packages and modules that are attributes of the package."""

__getattr__, __dir__ = lazy_attributes(__name__, _MODULES, _SUBMODULES)

__all__ = [
    "__version__",
    "AblationCAM",
    "Adapter",
    "AttentionRollout",
    "Audit",
    "BaseCAM",
    "Benchmark",
    "CheferCAM",
    "ClassAgnosticWarning",
    "ConvergenceWarning",
    "DRISE",
    "DeepFeatureFactorization",
    "DetectionTarget",
    "Detections",
    "DetectorAdapter",
    "DetectorOutput",
    "EigenCAM",
    "EigenGradCAM",
    "EmptyMapWarning",
    "Explanation",
    "Explanations",
    "FEM",
    "FinerCAM",
    "FullGrad",
    "GCAME",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedBackpropReLUModel",
    "GuidedGradCAM",
    "HiResCAM",
    "KPCA_CAM",
    "LayerCAM",
    "LeGrad",
    "METHODS",
    "Metric",
    "ODAM",
    "Occlusion",
    "ProbeCAM",
    "RISE",
    "RandomCAM",
    "ReachCAM",
    "ReachWarning",
    "ReciproCAM",
    "RefineCAM",
    "SESS",
    "SSGradCAM",
    "SSGradCAMPlusPlus",
    "ScoreCAM",
    "SegEigenCAM",
    "SegGradCAM",
    "SegHiResCAM",
    "SegXResCAM",
    "SegmenterOutput",
    "ShapleyCAM",
    "Sobel",
    "Source",
    "VPS",
    "XGradCAM",
    "adapt",
    "audit",
    "benchmark",
    "create_labels_legend",
    "deprocess_image",
    "drise",
    "explain",
    "get_method",
    "guided_backprop",
    "preprocess_image",
    "register_adapter",
    "register_method",
    "register_metric",
    "register_target",
    "show_cam_on_image",
    "show_factorization_on_image",
    "sobel_cam",
]
