"""HiResCAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class HiResCAM(BaseCAM):
    r"""Element-wise product of gradient and activation, summed over channels.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \frac{\partial y}{\partial A^k} \odot A^k\Big)

    with :math:`A^k` channel k of the target layer's activation and y the target's score. The signed map sums to the
    score, up to a bias, if the layers after the target layer are linear.

    Draelos and Carin, *Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks*, 2020, https://arxiv.org/abs/2011.08891.

    Use it for boxes and masks, and wherever the position of the evidence matters.
    """

    name = "hirescam"
    paper = "Draelos and Carin, HiResCAM, 2020, https://arxiv.org/abs/2011.08891"
    cost = "1 forward, 1 backward per target"
    use = "boxes and masks: preserves position, exact before a linear head"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients * activations
