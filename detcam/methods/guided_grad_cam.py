"""Guided Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detcam.adapters.base import Batch
from detcam.geometry import Geometry, to_pixels
from detcam.methods.grad_cam import GradCAM
from detcam.methods.guided_backprop import differentiable, guided_gradients, max_magnitude, saturate
from detcam.results import ImageHeatmaps, Measured, Pass


class GuidedGradCAM(GradCAM):
    r"""Product of the maps of Grad-CAM and guided backpropagation.

    .. math:: L = L_\text{GradCAM} \odot L_\text{guided backpropagation}

    with :math:`L_\text{GradCAM}` the map of `GradCAM` in [0, 1], resized to the image, and the map of `GuidedBackprop`.
    Both share one forward pass. The raw levels are those of Grad-CAM, followed by the signed gradients of each color
    channel.

    Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization*,
    ICCV 2017, https://arxiv.org/abs/1610.02391.

    Use it for classification, to see fine edges at the position of the evidence.

    Attributes:
        channels: number of channels of the network's input in the last pass.
    """

    name = "guidedgradcam"
    paper = "Selvaraju et al., Grad-CAM, ICCV 2017, https://arxiv.org/abs/1610.02391"
    cost = "1 forward, 1 backward and 1 full backward per target"
    use = "classification: fine edges at the position of the Grad-CAM map"
    explains_volumes = False
    channels: int = 3

    def prepare_input(self, batch: Batch) -> Batch:
        return differentiable(batch)

    def measure(self, run: Pass) -> Measured:
        colors = guided_gradients(run).maps
        self.channels = len(colors)
        measured = super().measure(run)
        return replace(measured, maps=[*measured.maps, *colors])

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Heatmaps of one image: Grad-CAM times the maximum over color channels."""
        coarse = super().combine(levels[: -self.channels], geometry)
        return saturate(coarse * max_magnitude(levels[-self.channels :], geometry))

    def colors(self, result: ImageHeatmaps) -> Tensor:
        """Convert one result of `explain` to color images.

        Returns:
            (N, H, W, C) float32, signed, original image pixels; `deprocess_image` renders one.
        """
        coarse = super().combine(result.saliency[: -self.channels], result.geometry)
        fine = [to_pixels(level, result.geometry) for level in result.saliency[-self.channels :]]
        return (coarse[..., None] * torch.stack(fine, -1)).float()
