"""Explain object detectors and segmentation networks: which pixels made the detector fire there?"""

from importlib.metadata import PackageNotFoundError, version

from detcam.adapters import adapt
from detcam.detections import Detections, Source
from detcam.honesty import ClassAgnosticWarning, EmptyMapWarning, ReachWarning
from detcam.methods import (
    METHODS,
    ODAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
    get_method,
)

try:
    __version__ = version("detcam")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
