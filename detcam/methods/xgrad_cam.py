"""XGradCAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class XGradCAM(BaseCAM):
    r"""Weights each channel by its gradient averaged with the activation as density.

    .. math:: w_k = \sum_{ij} \frac{A^k_{ij}}{\sum_{ab} A^k_{ab}} \frac{\partial y}{\partial A^k_{ij}},\quad
        L = \mathrm{ReLU}\Big(\sum_k w_k A^k\Big)

    Fu et al., *Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs*, BMVC 2020,
    https://arxiv.org/abs/2008.02312.
    """

    name = "xgradcam"
    paper = "Fu et al., Axiom-based Grad-CAM, BMVC 2020, https://arxiv.org/abs/2008.02312"

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        total = activations.sum((2, 3), keepdim=True)
        return (gradients * activations / (total + 1e-7)).sum((2, 3))
