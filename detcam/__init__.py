"""Explains object detectors and segmentation networks: which pixels made every box, mask and class.

Names and subpackages are imported when they are first used, so that ``import detcam`` itself imports no torch.
"""

from typing import TYPE_CHECKING

from detcam.methods import METHOD_MODULES
from detcam.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from detcam.adapters.base import Adapter as Adapter
    from detcam.adapters.detection import DetectorAdapter as DetectorAdapter
    from detcam.adapters.registry import adapt as adapt
    from detcam.adapters.registry import register_adapter as register_adapter
    from detcam.auditing.comparison.comparison import AuditComparison as AuditComparison
    from detcam.auditing.comparison.comparison import compare_audits as compare_audits
    from detcam.auditing.pipeline import audit as audit
    from detcam.auditing.remedies.remedies import Repair as Repair
    from detcam.auditing.remedies.remedies import repair as repair
    from detcam.auditing.result import Audit as Audit
    from detcam.benchmarking.compare import benchmark as benchmark
    from detcam.benchmarking.result import Benchmark as Benchmark
    from detcam.cam import BaseCAM as BaseCAM
    from detcam.detections import Detections as Detections
    from detcam.detections import Source as Source
    from detcam.diagnostics import ClassAgnosticWarning as ClassAgnosticWarning
    from detcam.diagnostics import ConvergenceWarning as ConvergenceWarning
    from detcam.diagnostics import EmptyMapWarning as EmptyMapWarning
    from detcam.diagnostics import ReachWarning as ReachWarning
    from detcam.diagnostics import SamplingWarning as SamplingWarning
    from detcam.explanation.explain import explain as explain
    from detcam.explanation.methods_grid import plot_methods as plot_methods
    from detcam.explanation.result import Explanation as Explanation
    from detcam.explanation.result import Explanations as Explanations
    from detcam.factorization import DeepFeatureFactorization as DeepFeatureFactorization
    from detcam.methods import DRISE as DRISE
    from detcam.methods import FEM as FEM
    from detcam.methods import GCAME as GCAME
    from detcam.methods import KPCA_CAM as KPCA_CAM
    from detcam.methods import METHODS as METHODS
    from detcam.methods import ODAM as ODAM
    from detcam.methods import RISE as RISE
    from detcam.methods import SESS as SESS
    from detcam.methods import VPS as VPS
    from detcam.methods import VXCODE as VXCODE
    from detcam.methods import AblationCAM as AblationCAM
    from detcam.methods import AttentionRollout as AttentionRollout
    from detcam.methods import CheferCAM as CheferCAM
    from detcam.methods import EigenCAM as EigenCAM
    from detcam.methods import EigenGradCAM as EigenGradCAM
    from detcam.methods import FinerCAM as FinerCAM
    from detcam.methods import FullGrad as FullGrad
    from detcam.methods import GradCAM as GradCAM
    from detcam.methods import GradCAMElementWise as GradCAMElementWise
    from detcam.methods import GradCAMPlusPlus as GradCAMPlusPlus
    from detcam.methods import GuidedBackprop as GuidedBackprop
    from detcam.methods import GuidedGradCAM as GuidedGradCAM
    from detcam.methods import HiResCAM as HiResCAM
    from detcam.methods import LayerCAM as LayerCAM
    from detcam.methods import LeGrad as LeGrad
    from detcam.methods import Occlusion as Occlusion
    from detcam.methods import PhaseWin as PhaseWin
    from detcam.methods import ProbeCAM as ProbeCAM
    from detcam.methods import RandomCAM as RandomCAM
    from detcam.methods import ReachCAM as ReachCAM
    from detcam.methods import ReciproCAM as ReciproCAM
    from detcam.methods import RefineCAM as RefineCAM
    from detcam.methods import ScoreCAM as ScoreCAM
    from detcam.methods import SegEigenCAM as SegEigenCAM
    from detcam.methods import SegGradCAM as SegGradCAM
    from detcam.methods import SegHiResCAM as SegHiResCAM
    from detcam.methods import SegXResCAM as SegXResCAM
    from detcam.methods import ShapleyCAM as ShapleyCAM
    from detcam.methods import Sobel as Sobel
    from detcam.methods import SSGradCAM as SSGradCAM
    from detcam.methods import SSGradCAMPlusPlus as SSGradCAMPlusPlus
    from detcam.methods import XGradCAM as XGradCAM
    from detcam.methods import get_method as get_method
    from detcam.methods import register_method as register_method
    from detcam.methods.drise import drise as drise
    from detcam.methods.guided_backprop import GuidedBackpropReLUModel as GuidedBackpropReLUModel
    from detcam.methods.guided_backprop import guided_backprop as guided_backprop
    from detcam.methods.sobel import sobel_cam as sobel_cam
    from detcam.metrics import register_metric as register_metric
    from detcam.metrics.base import Metric as Metric
    from detcam.outputs import DetectionTarget as DetectionTarget
    from detcam.outputs import DetectorOutput as DetectorOutput
    from detcam.segmenter_output import SegmenterOutput as SegmenterOutput
    from detcam.targets.registry import register_target as register_target
    from detcam.utils.version import __version__ as __version__
    from detcam.visualize.concepts import create_labels_legend as create_labels_legend
    from detcam.visualize.concepts import show_factorization_on_image as show_factorization_on_image
    from detcam.visualize.overlay import deprocess_image as deprocess_image
    from detcam.visualize.overlay import preprocess_image as preprocess_image
    from detcam.visualize.overlay import show_cam_on_image as show_cam_on_image

_MODULES = {
    "Adapter": "detcam.adapters.base",
    "Audit": "detcam.auditing.result",
    "AuditComparison": "detcam.auditing.comparison.comparison",
    "BaseCAM": "detcam.cam",
    "Benchmark": "detcam.benchmarking.result",
    "ClassAgnosticWarning": "detcam.diagnostics",
    "ConvergenceWarning": "detcam.diagnostics",
    "DeepFeatureFactorization": "detcam.factorization",
    "DetectionTarget": "detcam.outputs",
    "Detections": "detcam.detections",
    "DetectorAdapter": "detcam.adapters.detection",
    "DetectorOutput": "detcam.outputs",
    "EmptyMapWarning": "detcam.diagnostics",
    "Explanation": "detcam.explanation.result",
    "Explanations": "detcam.explanation.result",
    "GuidedBackpropReLUModel": "detcam.methods.guided_backprop",
    "Metric": "detcam.metrics.base",
    "ReachWarning": "detcam.diagnostics",
    "SamplingWarning": "detcam.diagnostics",
    "SegmenterOutput": "detcam.segmenter_output",
    "Repair": "detcam.auditing.remedies.remedies",
    "Source": "detcam.detections",
    "__version__": "detcam.utils.version",
    "adapt": "detcam.adapters.registry",
    "audit": "detcam.auditing.pipeline",
    "benchmark": "detcam.benchmarking.compare",
    "compare_audits": "detcam.auditing.comparison.comparison",
    "create_labels_legend": "detcam.visualize.concepts",
    "deprocess_image": "detcam.visualize.overlay",
    "drise": "detcam.methods.drise",
    "explain": "detcam.explanation.explain",
    "guided_backprop": "detcam.methods.guided_backprop",
    "plot_methods": "detcam.explanation.methods_grid",
    "preprocess_image": "detcam.visualize.overlay",
    "repair": "detcam.auditing.remedies.remedies",
    "register_adapter": "detcam.adapters.registry",
    "register_metric": "detcam.metrics",
    "register_target": "detcam.targets.registry",
    "show_cam_on_image": "detcam.visualize.overlay",
    "show_factorization_on_image": "detcam.visualize.concepts",
    "sobel_cam": "detcam.methods.sobel",
    **METHOD_MODULES,
    **dict.fromkeys(("METHODS", "get_method", "register_method"), "detcam.methods"),
}
"""The module that defines each public name."""

__getattr__, __dir__ = lazy_attributes(__name__, _MODULES)

__all__ = sorted(_MODULES)  # type checkers read the block above
