"""The methods: one file each, one registry."""

from __future__ import annotations

from detcam.cam import BaseCAM
from detcam.methods.ablation_cam import AblationCAM
from detcam.methods.eigen_cam import EigenCAM
from detcam.methods.eigen_grad_cam import EigenGradCAM
from detcam.methods.grad_cam import GradCAM
from detcam.methods.grad_cam_elementwise import GradCAMElementWise
from detcam.methods.grad_cam_plusplus import GradCAMPlusPlus
from detcam.methods.hires_cam import HiResCAM
from detcam.methods.layer_cam import LayerCAM
from detcam.methods.odam import ODAM
from detcam.methods.reach_cam import ReachCAM
from detcam.methods.xgrad_cam import XGradCAM

METHODS: dict[str, type[BaseCAM]] = {
    method.name: method
    for method in (
        GradCAM,
        HiResCAM,
        GradCAMElementWise,
        GradCAMPlusPlus,
        XGradCAM,
        LayerCAM,
        EigenCAM,
        EigenGradCAM,
        ODAM,
        AblationCAM,
        ReachCAM,
    )
}
"""Every method by its name."""


def get_method(name: str) -> type[BaseCAM]:
    """A method class by its name; case, ``-`` and ``_`` do not matter, and ``++`` reads as ``plusplus``.

    Raises:
        ValueError: no such method.
    """
    wanted = name.lower().replace("++", "plusplus").replace("-", "").replace("_", "")
    if wanted not in METHODS:
        raise ValueError(f"expected one of the methods {', '.join(METHODS)}; got {name!r}")
    return METHODS[wanted]


__all__ = [
    "METHODS",
    "ODAM",
    "AblationCAM",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "ReachCAM",
    "XGradCAM",
    "get_method",
]
