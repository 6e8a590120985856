"""G-CAME."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detcam.cam import BaseCAM
from detcam.results import Measured, Pass


class GCAME(BaseCAM):
    r"""Channels weighted by their gradient and by a Gaussian around the position of its largest magnitude.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \big(\alpha^+_k G(c^+_k, \sigma^+_k)
        + \alpha^-_k G(c^-_k, \sigma^-_k)\big) \odot A^k\Big),\quad
        \sigma_k = \Big|\log |\alpha_k| \cdot \log \sqrt{\tfrac{HW}{hw}}\Big| \cdot
        \frac{3}{\lfloor (\sqrt{hw} - 1) / 2 \rfloor}

    with :math:`A^k` channel k of the target layer's activation (h x w, of an H x W input), :math:`\alpha^\pm_k` the
    spatial means of the positive and of the negative part of its gradient, :math:`c^\pm_k` the position of the part's
    largest magnitude, and G a Gaussian scaled to [0, 1] with a standard deviation of at least one cell. At the last
    layer of a dense head's class branch, where the score depends on one cell, one of the parts is 0 and this is the
    paper's formula for one-stage detectors; the authors sum over the layers of the branch. For two-stage detectors
    their code adds the magnitude of the negative part around the position where it is weakest, rectifies each channel
    and skips channels in which either sign is missing; here, negative evidence is subtracted.

    Nguyen et al., *G-CAME: Gaussian-Class Activation Mapping Explainer for Object Detectors*, 2023,
    https://arxiv.org/abs/2306.03400.

    Use it to compare with the paper on one-stage detectors.
    """

    name = "gcame"
    paper = "Nguyen et al., G-CAME, 2023, https://arxiv.org/abs/2306.03400"
    cost = "1 forward, 1 backward per target"
    use = "boxes of one-stage detectors, as in its paper"
    explains_volumes = False
    input_size_hw: tuple[int, int]
    """Size of the network's input in the last pass, pixels."""

    def measure(self, run: Pass) -> Measured:
        self.input_size_hw = (run.batch.inputs.shape[-2], run.batch.inputs.shape[-1])
        return super().measure(run)

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        weights = self._weights_of_sign(gradients.clamp(min=0)) + self._weights_of_sign(gradients.clamp(max=0))
        return weights * activations

    def _weights_of_sign(self, gradients: Tensor) -> Tensor:
        """Weights (n, C, h, w) of one sign of the gradient: its mean times a Gaussian around its peak."""
        height, width = gradients.shape[-2:]
        cells = height * width
        mean = gradients.mean((2, 3))
        peak = gradients.abs().flatten(2).argmax(2)
        stride = math.sqrt(self.input_size_hw[0] * self.input_size_hw[1] / cells)
        radius = max((math.isqrt(cells) - 1) // 2, 1) / 3
        tiny = torch.finfo(gradients.dtype).tiny
        sigma = (mean.abs().clamp(min=tiny).log() * math.log(stride) / radius).abs().clamp(min=1)
        rows = torch.arange(height, device=gradients.device).to(gradients)
        columns = torch.arange(width, device=gradients.device).to(gradients)
        dy = (rows - (peak // width)[..., None]) ** 2
        dx = (columns - (peak % width)[..., None]) ** 2
        gauss = torch.exp(-(dy[..., :, None] + dx[..., None, :]) / (2 * sigma[..., None, None] ** 2))
        low, high = gauss.amin((2, 3), keepdim=True), gauss.amax((2, 3), keepdim=True)
        return mean[..., None, None] * (gauss - low) / (high - low).clamp(min=tiny)
