"""The explanation methods, one module each, and their registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from detcam.utils.lazy import lazy_attributes
from detcam.utils.registry import Registry, normalized

if TYPE_CHECKING:
    from detcam.cam import BaseCAM
    from detcam.methods.ablation_cam import AblationCAM as AblationCAM
    from detcam.methods.attention_rollout import AttentionRollout as AttentionRollout
    from detcam.methods.chefer_cam import CheferCAM as CheferCAM
    from detcam.methods.drise import DRISE as DRISE
    from detcam.methods.eigen_cam import EigenCAM as EigenCAM
    from detcam.methods.eigen_grad_cam import EigenGradCAM as EigenGradCAM
    from detcam.methods.fem import FEM as FEM
    from detcam.methods.finer_cam import FinerCAM as FinerCAM
    from detcam.methods.full_grad import FullGrad as FullGrad
    from detcam.methods.g_came import GCAME as GCAME
    from detcam.methods.grad_cam import GradCAM as GradCAM
    from detcam.methods.grad_cam_elementwise import GradCAMElementWise as GradCAMElementWise
    from detcam.methods.grad_cam_plusplus import GradCAMPlusPlus as GradCAMPlusPlus
    from detcam.methods.guided_backprop import GuidedBackprop as GuidedBackprop
    from detcam.methods.guided_grad_cam import GuidedGradCAM as GuidedGradCAM
    from detcam.methods.hires_cam import HiResCAM as HiResCAM
    from detcam.methods.kpca_cam import KPCA_CAM as KPCA_CAM
    from detcam.methods.layer_cam import LayerCAM as LayerCAM
    from detcam.methods.legrad import LeGrad as LeGrad
    from detcam.methods.occlusion import Occlusion as Occlusion
    from detcam.methods.odam import ODAM as ODAM
    from detcam.methods.phase_win import PhaseWin as PhaseWin
    from detcam.methods.probe_cam import ProbeCAM as ProbeCAM
    from detcam.methods.random_cam import RandomCAM as RandomCAM
    from detcam.methods.reach_cam import ReachCAM as ReachCAM
    from detcam.methods.recipro_cam import ReciproCAM as ReciproCAM
    from detcam.methods.refine_cam import RefineCAM as RefineCAM
    from detcam.methods.rise import RISE as RISE
    from detcam.methods.score_cam import ScoreCAM as ScoreCAM
    from detcam.methods.seg_eigen_cam import SegEigenCAM as SegEigenCAM
    from detcam.methods.seg_grad_cam import SegGradCAM as SegGradCAM
    from detcam.methods.seg_hires_cam import SegHiResCAM as SegHiResCAM
    from detcam.methods.seg_xres_cam import SegXResCAM as SegXResCAM
    from detcam.methods.sess import SESS as SESS
    from detcam.methods.shapley_cam import ShapleyCAM as ShapleyCAM
    from detcam.methods.sobel import Sobel as Sobel
    from detcam.methods.ssgrad_cam import SSGradCAM as SSGradCAM
    from detcam.methods.ssgrad_cam_plusplus import SSGradCAMPlusPlus as SSGradCAMPlusPlus
    from detcam.methods.vps import VPS as VPS
    from detcam.methods.vxcode import VXCODE as VXCODE
    from detcam.methods.xgrad_cam import XGradCAM as XGradCAM

MethodType = TypeVar("MethodType", bound="type[BaseCAM]")

METHOD_MODULES = {
    "GradCAM": "detcam.methods.grad_cam",
    "HiResCAM": "detcam.methods.hires_cam",
    "GradCAMElementWise": "detcam.methods.grad_cam_elementwise",
    "GradCAMPlusPlus": "detcam.methods.grad_cam_plusplus",
    "XGradCAM": "detcam.methods.xgrad_cam",
    "LayerCAM": "detcam.methods.layer_cam",
    "EigenCAM": "detcam.methods.eigen_cam",
    "EigenGradCAM": "detcam.methods.eigen_grad_cam",
    "ODAM": "detcam.methods.odam",
    "AblationCAM": "detcam.methods.ablation_cam",
    "ScoreCAM": "detcam.methods.score_cam",
    "RISE": "detcam.methods.rise",
    "DRISE": "detcam.methods.drise",
    "VPS": "detcam.methods.vps",
    "PhaseWin": "detcam.methods.phase_win",
    "VXCODE": "detcam.methods.vxcode",
    "Occlusion": "detcam.methods.occlusion",
    "ReciproCAM": "detcam.methods.recipro_cam",
    "ReachCAM": "detcam.methods.reach_cam",
    "ProbeCAM": "detcam.methods.probe_cam",
    "LeGrad": "detcam.methods.legrad",
    "CheferCAM": "detcam.methods.chefer_cam",
    "AttentionRollout": "detcam.methods.attention_rollout",
    "FEM": "detcam.methods.fem",
    "FinerCAM": "detcam.methods.finer_cam",
    "FullGrad": "detcam.methods.full_grad",
    "GCAME": "detcam.methods.g_came",
    "KPCA_CAM": "detcam.methods.kpca_cam",
    "RandomCAM": "detcam.methods.random_cam",
    "RefineCAM": "detcam.methods.refine_cam",
    "SESS": "detcam.methods.sess",
    "SegEigenCAM": "detcam.methods.seg_eigen_cam",
    "SegGradCAM": "detcam.methods.seg_grad_cam",
    "SegHiResCAM": "detcam.methods.seg_hires_cam",
    "SegXResCAM": "detcam.methods.seg_xres_cam",
    "ShapleyCAM": "detcam.methods.shapley_cam",
    "SSGradCAM": "detcam.methods.ssgrad_cam",
    "SSGradCAMPlusPlus": "detcam.methods.ssgrad_cam_plusplus",
    "GuidedBackprop": "detcam.methods.guided_backprop",
    "GuidedGradCAM": "detcam.methods.guided_grad_cam",
    "Sobel": "detcam.methods.sobel",
}
"""The module of each built-in method, in the order of the tables."""


def _check(name: str, method: type[BaseCAM]) -> None:
    """Raise if an entry of the registry is not a method, or if it has another name."""
    from detcam.cam import BaseCAM

    if not isinstance(method, type) or not issubclass(method, BaseCAM):
        raise TypeError(f"expected a subclass of detcam.BaseCAM as the method {name!r}; got {method!r:.60}")
    if normalized(name) != normalized(method.name):
        raise ValueError(f"expected {method.__name__} under its name {method.name!r}; got {name!r}")


METHODS: Registry[type[BaseCAM]] = Registry(
    "method",
    "detcam.methods",
    {name.lower().replace("_", ""): f"{module}:{name}" for name, module in METHOD_MODULES.items()},
    check=_check,
)
"""The methods by name. A class is imported on first use."""


def register_method(method: MethodType) -> MethodType:
    """Add a method to the registry under its `name`; use as a decorator.

    The method then works by name in `detcam.explain`, `detcam.audit`, `detcam.benchmark` and on the command line. A
    package registers a method by an entry point of the group ``detcam.methods`` instead.

    Args:
        method: a concrete subclass of `BaseCAM`.

    Returns:
        The class, unchanged.

    Raises:
        TypeError: `method` is not a subclass of `BaseCAM`.
        ValueError: another method has that name.

    Example:
        >>> from detcam import BaseCAM, get_method, register_method
        >>> @register_method
        ... class MeanGradientCAM(BaseCAM):
        ...     name = "meangradientcam"
        ...
        ...     def weights(self, activations, gradients):
        ...         return gradients.mean((2, 3))
        >>> get_method("MeanGradientCAM").name
        'meangradientcam'
    """
    METHODS.register(getattr(method, "name", ""), method)
    return method


def get_method(name: str) -> type[BaseCAM]:
    """Return a method class by its name.

    Args:
        name: the method's `name`. Case, ``-`` and ``_`` are ignored, and ``++`` reads as ``plusplus``.

    Returns:
        The class; call it with a model or an adapter.

    Raises:
        ValueError: no method has that name; the message names the closest ones.

    Example:
        >>> from detcam import get_method
        >>> get_method("grad-cam++").__name__
        'GradCAMPlusPlus'
    """
    return METHODS.find(name)


__getattr__, __dir__ = lazy_attributes(__name__, METHOD_MODULES)

__all__ = sorted({*METHOD_MODULES, "METHODS", "get_method", "register_method"})
