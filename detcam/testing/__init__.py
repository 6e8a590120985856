"""Contract checks for methods, adapters, metrics and targets of your own.

Each check raises an AssertionError that says which rule does not hold. The package's own tests run the same checks on
every built-in method, adapter, metric and target.

Example:
    >>> from detcam import GradCAM
    >>> from detcam.testing import check_method
    >>> check_method(GradCAM)
"""

from detcam.testing.adapters import check_adapter
from detcam.testing.methods import check_method
from detcam.testing.metrics import check_metric
from detcam.testing.models import tiny_classifier, tiny_detector, tiny_segmenter
from detcam.testing.state import ModelState
from detcam.testing.targets import check_target

__all__ = [
    "ModelState",
    "check_adapter",
    "check_method",
    "check_metric",
    "check_target",
    "tiny_classifier",
    "tiny_detector",
    "tiny_segmenter",
]
