"""GradCAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class GradCAM(BaseCAM):
    r"""Weights each channel by the mean of its gradient over the map.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big),\quad
        \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial y}{\partial A^k_{ij}}

    Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization*,
    ICCV 2017, https://arxiv.org/abs/1610.02391.
    """

    name = "gradcam"
    paper = "Selvaraju et al., Grad-CAM, ICCV 2017, https://arxiv.org/abs/1610.02391"
    cost = "1 forward, 1 backward a target"
    use = "classification; on boxes it loses the place, as its weights are spatial means"

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.mean((2, 3))
