"""Seg-XRes-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter
from detcam.cam import BaseCAM
from detcam.trace import ReshapeTransform


class SegXResCAM(BaseCAM):
    r"""Between GradCAM and HiResCAM: the gradient is pooled over windows, not over the whole map or not at all.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \mathrm{up}\Big(\mathrm{pool}_s
        \Big(\frac{\partial y}{\partial A^k}\Big)\Big) \odot A^k\Big)

    with the pooled gradient repeated over each window of s x s places. For segmentation the target is a `MaskTarget`,
    as in Seg-Grad-CAM.

    Hasany, Petitjean and Meriaudeau, *Seg-XRes-CAM: Explaining Spatially Local Regions in Image Segmentation*, CVPR
    Workshops 2023,
    https://openaccess.thecvf.com/content/CVPR2023W/XAI4CV/html/Hasany_Seg-XRes-CAM_Explaining_Spatially_Local_Regions_in_Image_Segmentation_CVPRW_2023_paper.html.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        pool_size: side s of a window, in cells; 1 is HiResCAM.
        pool_mode: ``max`` or ``mean``; the mean over windows as large as the map is GradCAM.
    """

    name = "segxrescam"
    paper = "Hasany et al., Seg-XRes-CAM, CVPR Workshops 2023 (XAI4CV)"
    cost = "1 forward, 1 backward a target"
    use = "a class over a region: between Seg-Grad-CAM and Seg-HiRes-CAM by pool size"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        pool_size: int = 2,
        pool_mode: Literal["max", "mean"] = "max",
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if pool_size < 1:
            raise ValueError(f"expected pool_size of at least 1; got {pool_size}")
        if pool_mode not in ("max", "mean"):
            raise ValueError(f"expected pool_mode to be max or mean; got {pool_mode!r}")
        self.pool_size = pool_size
        self.pool_mode = pool_mode

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        height, width = gradients.shape[-2:]
        size = self.pool_size
        pool = F.max_pool2d if self.pool_mode == "max" else F.avg_pool2d
        pooled = pool(gradients, (min(size, height), min(size, width)), size, ceil_mode=True)  # cut at the border
        spread = pooled.repeat_interleave(size, 2).repeat_interleave(size, 3)
        return spread[:, :, :height, :width] * activations
