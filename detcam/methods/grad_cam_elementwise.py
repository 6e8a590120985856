"""GradCAM, element by element."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class GradCAMElementWise(BaseCAM):
    r"""Gradient times activation with the negative products of each channel cut before the sum.

    .. math:: L = \sum_k \mathrm{ReLU}\Big(\frac{\partial y}{\partial A^k} \odot A^k\Big)

    This is the method of that name in ``pytorch_grad_cam``. The paper that it goes back to cuts after the sum,
    which is `HiResCAM`: here a channel that speaks against the target cannot cancel one that speaks for it.

    After Pillai and Pirsiavash, *Explainable Models with Consistent Interpretations*, AAAI 2021,
    https://www.csee.umbc.edu/~hpirsiav/papers/gc_aaai21.pdf.
    """

    name = "gradcamelementwise"
    paper = "after Pillai and Pirsiavash, Explainable Models with Consistent Interpretations, AAAI 2021"
    cost = "1 forward, 1 backward a target"
    use = "boxes, and fine maps at early layers; leaves out what speaks against"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (gradients * activations).clamp(min=0)
