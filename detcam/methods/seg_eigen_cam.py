"""Seg-Eigen-CAM."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.cam import BaseCAM
from detcam.utils.pca import first_principal_component


class SegEigenCAM(BaseCAM):
    r"""First principal component of the activations weighted by the gradient's magnitude, with corrected sign.

    .. math:: L = \mathrm{ReLU}(\pm M v_1), \quad M = \Big|\frac{\partial y}{\partial A}\Big| \odot A

    with A the activation of the target layer, y the target's score, M the (hw x C) products centered over positions,
    :math:`v_1` the first right singular vector, and the sign that makes the entry of largest magnitude positive.

    Chung and Ying, *Seg-Eigen-CAM: Eigen-Value-Based Visual Explanations for Semantic Segmentation Models*, Applied
    Sciences 15(13), 2025, https://doi.org/10.3390/app15137562.

    Use it for semantic segmentation, with a `MaskTarget`.
    """

    name = "segeigencam"
    paper = "Chung and Ying, Seg-Eigen-CAM, Applied Sciences 2025, https://doi.org/10.3390/app15137562"
    cost = "1 forward, 1 backward per target"
    use = "semantic segmentation: main component of gradient-weighted activations"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.abs() * activations

    def saliency(self, activations: Tensor, gradients: Tensor) -> Tensor:
        component = first_principal_component(self.contributions(activations, gradients))
        low, high = component.amin((1, 2), keepdim=True), component.amax((1, 2), keepdim=True)
        return torch.where(-low > high, -component, component)
