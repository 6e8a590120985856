"""Explain object detectors and segmentation networks: which pixels made the detector fire there?"""

from importlib.metadata import PackageNotFoundError, version

from detcam.adapters import adapt
from detcam.auditing import Audit, audit
from detcam.benchmarking import Benchmark, benchmark
from detcam.detections import Detections, Source
from detcam.diagnostics import ClassAgnosticWarning, CompletenessWarning, EmptyMapWarning, ReachWarning
from detcam.explanation.explain import Explanation, Explanations, explain
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
)
from detcam.methods.drise import drise
from detcam.methods.guided_backprop import GuidedBackpropReLUModel, guided_backprop
from detcam.methods.sobel import sobel_cam
from detcam.visualize.concepts import create_labels_legend, show_factorization_on_image
from detcam.visualize.overlay import deprocess_image, preprocess_image, show_cam_on_image

try:
    __version__ = version("detcam")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "FEM",
    "GCAME",
    "KPCA_CAM",
    "DRISE",
    "METHODS",
    "ODAM",
    "RISE",
    "SESS",
    "VPS",
    "AblationCAM",
    "Audit",
    "AttentionRollout",
    "Benchmark",
    "CheferCAM",
    "ClassAgnosticWarning",
    "CompletenessWarning",
    "DeepFeatureFactorization",
    "Detections",
    "EigenCAM",
    "EigenGradCAM",
    "EmptyMapWarning",
    "Explanation",
    "Explanations",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedBackpropReLUModel",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "LeGrad",
    "Occlusion",
    "RandomCAM",
    "ReciproCAM",
    "ProbeCAM",
    "ReachCAM",
    "ReachWarning",
    "RefineCAM",
    "SSGradCAM",
    "SSGradCAMPlusPlus",
    "ScoreCAM",
    "SegEigenCAM",
    "SegGradCAM",
    "SegHiResCAM",
    "SegXResCAM",
    "ShapleyCAM",
    "Sobel",
    "Source",
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
    "show_cam_on_image",
    "show_factorization_on_image",
    "sobel_cam",
]
