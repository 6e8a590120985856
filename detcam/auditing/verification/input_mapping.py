"""Mapping between the pixels of an image, the network's input, and the cells of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.perturbation.base import ImageArea, ImageScorer


class InputMapping:
    """Maps between an image and the area of the network's input that it covers.

    Args:
        scorer: the image, prepared for the model.
    """

    def __init__(self, scorer: ImageScorer) -> None:
        area = ImageArea(scorer)
        self.geometry = scorer.geometry
        self.rows, self.columns = area.rows, area.columns
        self.size_hw = self.geometry.input_size_hw

    def to_input(self, image_map: Tensor) -> Tensor:
        """Average a map (H, W) of the image over the pixels (h, w) of the area."""
        return self.geometry.from_image(image_map[None].float(), self.size_hw)[0, self.rows, self.columns]

    def map_to_image(self, area_map: Tensor) -> Tensor:
        """Resize a map (h, w) of the area to the image (H, W)."""
        return self.geometry.to_image(self._pad(area_map)[None])[0]

    def to_image(self, region: Tensor) -> Tensor:
        """Resize a region (h, w) bool of the area to the image (H, W)."""
        return self.geometry.to_image(self._pad(region.float())[None])[0] > 0.5

    def pool(self, levels: Sequence[Tensor], weights: Tensor) -> np.ndarray | None:
        """Average feature maps with weights.

        Args:
            levels: feature maps, each (C, h', w').
            weights: (h, w), >= 0, over the area.

        Returns:
            (D,) float32: the weighted mean of each level, scaled to length 1, concatenated; None without levels.
        """
        means = []
        for level in levels:
            cells = self._to_cells(weights, (level.shape[-2], level.shape[-1])).to(level.device)
            total = float(cells.sum())
            if total > 0:
                mean = (level.float() * cells).sum((1, 2)) / total
                means.append(mean / mean.norm().clamp(min=1e-12))
            else:
                means.append(torch.zeros(len(level), device=level.device))
        return torch.cat(means).cpu().numpy().astype(np.float32) if means else None

    def _to_cells(self, weights: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Average a map (h, w) of the area over the cells (h', w') of a layer."""
        return F.adaptive_avg_pool2d(self._pad(weights)[None, None], size_hw)[0, 0]

    def _pad(self, area_map: Tensor) -> Tensor:
        padded = torch.zeros(self.size_hw)
        padded[self.rows, self.columns] = area_map
        return padded
