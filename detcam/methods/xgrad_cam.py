"""XGradCAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class XGradCAM(BaseCAM):
    r"""Weights each channel by its gradient, averaged over the places with the activation as density.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k w_k A^k\Big),\quad
        w_k = \sum_{ij} \frac{A^k_{ij}}{\sum_{ab} A^k_{ab} + 10^{-7}} \frac{\partial y}{\partial A^k_{ij}}

    Made for activations behind a ReLU; a channel whose sum is near zero, as negative activations allow, gets a
    weight of any size.

    Fu et al., *Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs*, BMVC 2020,
    https://arxiv.org/abs/2008.02312.
    """

    name = "xgradcam"
    paper = "Fu et al., Axiom-based Grad-CAM, BMVC 2020, https://arxiv.org/abs/2008.02312"
    cost = "1 forward, 1 backward a target"
    use = "classification, with weights that make the map's sum follow the score"

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        total = activations.sum((2, 3), keepdim=True)
        return (gradients * activations / (total + 1e-7)).sum((2, 3))
