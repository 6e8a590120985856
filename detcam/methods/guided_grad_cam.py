"""Guided Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detcam.adapters.base import Batch
from detcam.geometry import Geometry, to_pixels
from detcam.methods.grad_cam import GradCAM
from detcam.methods.guided_backprop import brightened, differentiable, guided_gradients, strength
from detcam.results import ImageHeatmaps, Measured, Pass


class GuidedGradCAM(GradCAM):
    r"""Guided backpropagation's pixels where GradCAM's map is warm.

    .. math:: L = L_\text{GradCAM} \odot L_\text{guided backpropagation}

    with GradCAM's map in [0, 1] and resized to the image. One forward pass serves both. The raw levels are GradCAM's,
    followed by the signed gradients of each colour channel.

    Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization*,
    ICCV 2017, https://arxiv.org/abs/1610.02391.

    Attributes:
        channels: of the network's input in the last pass.
    """

    name = "guidedgradcam"
    paper = "Selvaraju et al., Grad-CAM, ICCV 2017, https://arxiv.org/abs/1610.02391"
    cost = "1 forward, 1 backward and 1 full backward per target"
    use = "GradCAM's place with single pixels and edges; classification"
    channels: int = 3

    def entering(self, batch: Batch) -> Batch:
        return differentiable(batch)

    def measure(self, run: Pass) -> Measured:
        colors = guided_gradients(run).maps
        self.channels = len(colors)
        measured = super().measure(run)
        return replace(measured, maps=[*measured.maps, *colors])

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """One image's heatmaps: GradCAM's times the strongest colour channel of each pixel."""
        coarse = super().combine(levels[: -self.channels], geometry)
        return brightened(coarse * strength(levels[-self.channels :], geometry))

    def colors(self, result: ImageHeatmaps) -> Tensor:
        """One result of `explain` as colour images.

        Returns:
            (N, H, W, C) float32, signed, pixels of the original image; `deprocess_image` makes one visible.
        """
        coarse = super().combine(result.saliency[: -self.channels], result.geometry)
        fine = [to_pixels(level, result.geometry) for level in result.saliency[-self.channels :]]
        return (coarse[..., None] * torch.stack(fine, -1)).float()
