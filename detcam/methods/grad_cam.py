"""Grad-CAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class GradCAM(BaseCAM):
    r"""Weights each channel by the spatial mean of its gradient.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big),\quad
        \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial y}{\partial A^k_{ij}}

    with :math:`A^k` channel k of the target layer's activation, of height h and width w, and y the target's score.

    Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization*,
    ICCV 2017, https://arxiv.org/abs/1610.02391.

    Use it for classification. It localizes boxes poorly, because its weights are spatial means; use `ODAM` for boxes.
    """

    name = "gradcam"
    paper = "Selvaraju et al., Grad-CAM, ICCV 2017, https://arxiv.org/abs/1610.02391"
    cost = "1 forward, 1 backward per target"
    use = "classification; localizes boxes poorly, as its weights are spatial means"

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.mean((2, 3))
