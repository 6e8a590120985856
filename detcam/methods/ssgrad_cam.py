"""SSGrad-CAM."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.cam import BaseCAM


def space_map(gradients: Tensor) -> Tensor:
    """The gradient's magnitude (n, C, h, w) divided by its maximum over each channel, in [0, 1]."""
    magnitude = gradients.abs()
    maximum = magnitude.amax((2, 3), keepdim=True)
    return magnitude / maximum.clamp(min=torch.finfo(gradients.dtype).tiny)


class SSGradCAM(BaseCAM):
    r"""Grad-CAM with each channel multiplied by a space map of the score's sensitivity.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k\, S^k \odot A^k\Big),\quad
        \alpha_k = \frac{1}{hw} \sum_{ij} g^k_{ij},\quad S^k = \frac{|g^k|}{\max_{ij} |g^k_{ij}|},\quad
        g^k = \frac{\partial y}{\partial A^k}

    with :math:`A^k` channel k of the target layer's activation, of height h and width w, y the target's score, and
    :math:`S^k` the space map.

    Yamauchi and Ishikawa, *Spatial Sensitive Grad-CAM: Visual Explanations for Object Detection by Incorporating
    Spatial Sensitivity*, ICIP 2022, https://doi.org/10.1109/ICIP46576.2022.9897350.

    Use it for boxes, to compare with the paper; `ODAM` is the default.
    """

    name = "ssgradcam"
    paper = (
        "Yamauchi and Ishikawa, Spatial Sensitive Grad-CAM, ICIP 2022, https://doi.org/10.1109/ICIP46576.2022.9897350"
    )
    cost = "1 forward, 1 backward per target"
    use = "boxes: Grad-CAM with spatial weights"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.mean((2, 3), keepdim=True) * space_map(gradients) * activations
