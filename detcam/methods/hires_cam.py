"""HiResCAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class HiResCAM(BaseCAM):
    r"""Gradient times activation, place by place; sums to the score where what follows the layer is linear.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \frac{\partial y}{\partial A^k} \odot A^k\Big)

    Draelos and Carin, *Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks*, 2020, https://arxiv.org/abs/2011.08891.
    """

    name = "hirescam"
    paper = "Draelos and Carin, HiResCAM, 2020, https://arxiv.org/abs/2011.08891"
    cost = "1 forward, 1 backward a target"
    use = "boxes and masks: keeps the place, exact where a linear head follows"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients * activations
