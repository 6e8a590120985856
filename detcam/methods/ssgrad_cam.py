"""SSGrad-CAM."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.cam import BaseCAM


def space_map(gradients: Tensor) -> Tensor:
    """How much the score minds each place of each channel: the gradient's magnitude over its greatest, in [0, 1]."""
    magnitude = gradients.abs()
    greatest = magnitude.amax((2, 3), keepdim=True)
    return magnitude / greatest.clamp(min=torch.finfo(gradients.dtype).tiny)


class SSGradCAM(BaseCAM):
    r"""GradCAM with each channel's activation kept to the places that the score minds: an instance's own map.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k\, S^k \odot A^k\Big),\quad
        \alpha_k = \frac{1}{hw} \sum_{ij} g^k_{ij},\quad S^k = \frac{|g^k|}{\max_{ij} |g^k_{ij}|},\quad
        g^k = \frac{\partial y}{\partial A^k}

    Yamauchi and Ishikawa, *Spatial Sensitive Grad-CAM: Visual Explanations for Object Detection by Incorporating
    Spatial Sensitivity*, ICIP 2022, https://doi.org/10.1109/ICIP46576.2022.9897350.
    """

    name = "ssgradcam"
    paper = (
        "Yamauchi and Ishikawa, Spatial Sensitive Grad-CAM, ICIP 2022, https://doi.org/10.1109/ICIP46576.2022.9897350"
    )
    cost = "1 forward, 1 backward a target"
    use = "boxes: Grad-CAM weighted by place"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.mean((2, 3), keepdim=True) * space_map(gradients) * activations
