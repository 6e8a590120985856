"""XGrad-CAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class XGradCAM(BaseCAM):
    r"""Weights each channel by the mean of its gradient, weighted by the normalized activation.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k w_k A^k\Big),\quad
        w_k = \sum_{ij} \frac{A^k_{ij}}{\sum_{ab} A^k_{ab} + 10^{-7}} \frac{\partial y}{\partial A^k_{ij}}

    with :math:`A^k` channel k of the target layer's activation and y the target's score. The method assumes activations
    after a ReLU: negative activations can make a channel's sum vanish and its weight arbitrarily large.

    Fu et al., *Axiom-based Grad-CAM: Toward Accurate Visualization and Explanation of CNNs*, BMVC 2020,
    https://arxiv.org/abs/2008.02312.

    Use it for classification if the sum of the map should follow the score.
    """

    name = "xgradcam"
    paper = "Fu et al., Axiom-based Grad-CAM, BMVC 2020, https://arxiv.org/abs/2008.02312"
    cost = "1 forward, 1 backward per target"
    use = "classification, with weights that make the map's sum follow the score"

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        total = activations.sum((2, 3), keepdim=True)
        return (gradients * activations / (total + 1e-7)).sum((2, 3))
