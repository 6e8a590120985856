"""Contract checks for methods, adapters, metrics and targets of your own.

Each check raises an AssertionError that says which rule does not hold. The package's own tests run the same checks on
every built-in method, adapter, metric and target.

Example:
    >>> from detcam import GradCAM
    >>> from detcam.testing import check_method
    >>> check_method(GradCAM)
"""

from detcam.testing.adapters import check_adapter as check_adapter
from detcam.testing.methods import check_method as check_method
from detcam.testing.metrics import check_metric as check_metric
from detcam.testing.models import tiny_classifier as tiny_classifier
from detcam.testing.models import tiny_detector as tiny_detector
from detcam.testing.models import tiny_segmenter as tiny_segmenter
from detcam.testing.state import ModelState as ModelState
from detcam.testing.targets import check_target as check_target
