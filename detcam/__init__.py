"""Explain object detectors and segmentation networks: which pixels made the detector fire there?"""

from importlib.metadata import PackageNotFoundError, version

from detcam.adapters import adapt
from detcam.detections import Detections, Source
from detcam.explain import Explanation, Explanations, explain
from detcam.honesty import ClassAgnosticWarning, CompletenessWarning, EmptyMapWarning, ReachWarning
from detcam.methods import (
    METHODS,
    ODAM,
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ReachCAM,
    XGradCAM,
    get_method,
)
from detcam.visualize import deprocess_image, preprocess_image, show_cam_on_image

try:
    __version__ = version("detcam")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "METHODS",
    "ODAM",
    "AblationCAM",
    "ClassAgnosticWarning",
    "CompletenessWarning",
    "Detections",
    "EigenCAM",
    "EigenGradCAM",
    "EmptyMapWarning",
    "Explanation",
    "Explanations",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "ReachCAM",
    "ReachWarning",
    "Source",
    "XGradCAM",
    "adapt",
    "deprocess_image",
    "explain",
    "get_method",
    "preprocess_image",
    "show_cam_on_image",
]
