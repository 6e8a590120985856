"""Seg-XRes-CAM."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from detcam.adapters.base import ModelLike
from detcam.cam import BaseCAM
from detcam.layers import LayersLike
from detcam.trace import ReshapeTransform


class SegXResCAM(BaseCAM):
    r"""Gradient pooled over windows times activation: between Grad-CAM and HiResCAM.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \mathrm{up}\Big(\mathrm{pool}_s
        \Big(\frac{\partial y}{\partial A^k}\Big)\Big) \odot A^k\Big)

    with :math:`A^k` channel k of the target layer's activation, y the target's score, and the pooled gradient repeated
    over each window of s x s cells. For segmentation the target is a `MaskTarget`, as in `SegGradCAM`.

    Hasany, Petitjean and Meriaudeau, *Seg-XRes-CAM: Explaining Spatially Local Regions in Image Segmentation*, CVPR
    Workshops 2023,
    https://openaccess.thecvf.com/content/CVPR2023W/XAI4CV/html/Hasany_Seg-XRes-CAM_Explaining_Spatially_Local_Regions_in_Image_Segmentation_CVPRW_2023_paper.html.

    Use it for a class over a region, if the smoothness of the map should be adjustable.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        pool_size: side s of a window, in cells; 1 is `HiResCAM`.
        pool_mode: ``max`` or ``mean``; the mean over windows as large as the map is `GradCAM`.
    """

    name = "segxrescam"
    paper = "Hasany et al., Seg-XRes-CAM, CVPR Workshops 2023 (XAI4CV)"
    cost = "1 forward, 1 backward per target"
    use = "a class over a region: between Seg-Grad-CAM and Seg-HiRes-CAM, set by the pool size"
    explains_volumes = False

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
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
        # Windows are cropped at the far borders.
        pooled = pool(gradients, (min(size, height), min(size, width)), size, ceil_mode=True)
        weights = pooled.repeat_interleave(size, 2).repeat_interleave(size, 3)[:, :, :height, :width]
        return weights * activations
