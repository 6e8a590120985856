"""The methods: one file each, one registry."""

from __future__ import annotations

from detcam.cam import BaseCAM
from detcam.methods.ablation_cam import AblationCAM
from detcam.methods.attention_rollout import AttentionRollout
from detcam.methods.chefer_cam import CheferCAM
from detcam.methods.drise import DRISE
from detcam.methods.eigen_cam import EigenCAM
from detcam.methods.eigen_grad_cam import EigenGradCAM
from detcam.methods.fem import FEM
from detcam.methods.finer_cam import FinerCAM
from detcam.methods.full_grad import FullGrad
from detcam.methods.g_came import GCAME
from detcam.methods.grad_cam import GradCAM
from detcam.methods.grad_cam_elementwise import GradCAMElementWise
from detcam.methods.grad_cam_plusplus import GradCAMPlusPlus
from detcam.methods.guided_backprop import GuidedBackprop
from detcam.methods.guided_grad_cam import GuidedGradCAM
from detcam.methods.hires_cam import HiResCAM
from detcam.methods.kpca_cam import KPCA_CAM
from detcam.methods.layer_cam import LayerCAM
from detcam.methods.legrad import LeGrad
from detcam.methods.occlusion import Occlusion
from detcam.methods.odam import ODAM
from detcam.methods.probe_cam import ProbeCAM
from detcam.methods.random_cam import RandomCAM
from detcam.methods.reach_cam import ReachCAM
from detcam.methods.recipro_cam import ReciproCAM
from detcam.methods.refine_cam import RefineCAM
from detcam.methods.rise import RISE
from detcam.methods.score_cam import ScoreCAM
from detcam.methods.seg_eigen_cam import SegEigenCAM
from detcam.methods.seg_grad_cam import SegGradCAM
from detcam.methods.seg_hires_cam import SegHiResCAM
from detcam.methods.seg_xres_cam import SegXResCAM
from detcam.methods.sess import SESS
from detcam.methods.shapley_cam import ShapleyCAM
from detcam.methods.sobel import Sobel
from detcam.methods.ssgrad_cam import SSGradCAM
from detcam.methods.ssgrad_cam_plusplus import SSGradCAMPlusPlus
from detcam.methods.vps import VPS
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
        ScoreCAM,
        RISE,
        DRISE,
        VPS,
        Occlusion,
        ReciproCAM,
        ReachCAM,
        ProbeCAM,
        LeGrad,
        CheferCAM,
        AttentionRollout,
        FEM,
        FinerCAM,
        FullGrad,
        GCAME,
        KPCA_CAM,
        RandomCAM,
        RefineCAM,
        SESS,
        SegEigenCAM,
        SegGradCAM,
        SegHiResCAM,
        SegXResCAM,
        ShapleyCAM,
        SSGradCAM,
        SSGradCAMPlusPlus,
        GuidedBackprop,
        GuidedGradCAM,
        Sobel,
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
    "AttentionRollout",
    "CheferCAM",
    "EigenCAM",
    "EigenGradCAM",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "LeGrad",
    "Occlusion",
    "ProbeCAM",
    "RandomCAM",
    "ReciproCAM",
    "ReachCAM",
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
    "XGradCAM",
    "get_method",
]
