"""SegEigenCAM."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.cam import BaseCAM
from detcam.utils.pca import first_principal_component


class SegEigenCAM(BaseCAM):
    r"""First principal component of activations weighted by the gradient's magnitude, turned to its stronger side.

    .. math:: L = \mathrm{ReLU}(\pm M v_1), \quad M = \Big|\frac{\partial y}{\partial A}\Big| \odot A

    with M the (hw x C) products centred over places, and the sign that makes the entry of greatest magnitude
    positive.

    Chung and Ying, *Seg-Eigen-CAM: Eigen-Value-Based Visual Explanations for Semantic Segmentation Models*, Applied
    Sciences 15(13), 2025, https://doi.org/10.3390/app15137562.
    """

    name = "segeigencam"
    paper = "Chung and Ying, Seg-Eigen-CAM, Applied Sciences 2025, https://doi.org/10.3390/app15137562"
    cost = "1 forward, 1 backward a target"
    use = "regions: the main component, its sign set by the gradient"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.abs() * activations

    def saliency(self, activations: Tensor, gradients: Tensor) -> Tensor:
        found = first_principal_component(self.contributions(activations, gradients))
        low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
        return torch.where(-low > high, -found, found)
