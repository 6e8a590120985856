"""Element-wise Grad-CAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class GradCAMElementWise(BaseCAM):
    r"""Positive part of the product of gradient and activation, summed over channels.

    .. math:: L = \sum_k \mathrm{ReLU}\Big(\frac{\partial y}{\partial A^k} \odot A^k\Big)

    with :math:`A^k` channel k of the target layer's activation and y the target's score. This is the method of that
    name in ``pytorch_grad_cam``. The paper rectifies after the sum, which is `HiResCAM`; here, negative evidence in one
    channel does not cancel positive evidence in another.

    After Pillai and Pirsiavash, *Explainable Models with Consistent Interpretations*, AAAI 2021,
    https://www.csee.umbc.edu/~hpirsiav/papers/gc_aaai21.pdf.

    Use it for boxes, and for fine maps at early layers.
    """

    name = "gradcamelementwise"
    paper = "after Pillai and Pirsiavash, Explainable Models with Consistent Interpretations, AAAI 2021"
    cost = "1 forward, 1 backward per target"
    use = "boxes, and fine maps at early layers; ignores negative evidence"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (gradients * activations).clamp(min=0)
