"""G-CAME."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detcam.cam import BaseCAM
from detcam.results import Measured, Pass


class GCAME(BaseCAM):
    r"""Channels weighted by their gradient, each seen through a Gaussian around the place that the score minds most.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \big(\alpha^+_k G(c^+_k, \sigma^+_k)
        + \alpha^-_k G(c^-_k, \sigma^-_k)\big) \odot A^k\Big),\quad
        \sigma_k = \Big|\log |\alpha_k| \cdot \log \sqrt{\tfrac{HW}{hw}}\Big| \cdot
        \frac{3}{\lfloor (\sqrt{hw} - 1) / 2 \rfloor}

    with the means over the map of the positive and of the negative part of the gradient, each centred where that
    part is greatest, and a Gaussian scaled to [0, 1], at least one cell wide. At the last layer of a dense head's class
    branch, where the score reads one cell, one of the two parts is 0, and this is the paper's formula for one-stage
    detectors; the authors sum over the branch's layers. For two-stage detectors their code adds the magnitude of the
    negative part, around the place where it is weakest, cuts each channel at 0 and skips channels in which either sign
    is missing; here what speaks against the box is subtracted.

    Nguyen et al., *G-CAME: Gaussian-Class Activation Mapping Explainer for Object Detectors*, 2023,
    https://arxiv.org/abs/2306.03400.
    """

    name = "gcame"
    paper = "Nguyen et al., G-CAME, 2023, https://arxiv.org/abs/2306.03400"
    cost = "1 forward, 1 backward a target"
    use = "boxes on one-stage detectors, as its paper does it"
    input_size_hw: tuple[int, int]
    """Of the last pass, in pixels."""

    def measure(self, run: Pass) -> Measured:
        self.input_size_hw = (run.batch.inputs.shape[-2], run.batch.inputs.shape[-1])
        return super().measure(run)

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (self._part(gradients.clamp(min=0)) + self._part(gradients.clamp(max=0))) * activations

    def _part(self, gradients: Tensor) -> Tensor:
        """One sign's weights (n, C, h, w): its mean times a Gaussian around its greatest place."""
        height, width = gradients.shape[-2:]
        places = height * width
        mean = gradients.mean((2, 3))
        peak = gradients.abs().flatten(2).argmax(2)
        stride = math.sqrt(self.input_size_hw[0] * self.input_size_hw[1] / places)
        radius = max((math.isqrt(places) - 1) // 2, 1) / 3
        tiny = torch.finfo(gradients.dtype).tiny
        sigma = (mean.abs().clamp(min=tiny).log() * math.log(stride) / radius).abs().clamp(min=1)
        rows = torch.arange(height, device=gradients.device).to(gradients)
        columns = torch.arange(width, device=gradients.device).to(gradients)
        down = (rows - (peak // width)[..., None]) ** 2
        across = (columns - (peak % width)[..., None]) ** 2
        gauss = torch.exp(-(down[..., :, None] + across[..., None, :]) / (2 * sigma[..., None, None] ** 2))
        low, high = gauss.amin((2, 3), keepdim=True), gauss.amax((2, 3), keepdim=True)
        return mean[..., None, None] * (gauss - low) / (high - low).clamp(min=tiny)
