"""Product of the maps of several levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detcam.geometry import Geometry, normalize
from detcam.utils.filters import blur


def product_of_levels(levels: Sequence[Tensor], geometry: Geometry, smoothing: float = 0.0) -> Tensor:
    """Multiply the positive parts of the levels of one image; levels without saliency for a target are left out.

    Args:
        levels: per level, (N, h, w) signed saliency over the network's input.
        geometry: mapping between the image and that input.
        smoothing: standard deviation of a Gaussian applied to each level, in cells of the coarsest level with
            saliency; 0 applies none.

    Returns:
        (N, H, W) in [0, 1], original image pixels.
    """
    maps = [_product([level[k] for level in levels], geometry, smoothing) for k in range(len(levels[0]))]
    return torch.cat(maps) if maps else levels[0].new_zeros((0, *geometry.image_size_hw))


def _product(levels: Sequence[Tensor], geometry: Geometry, smoothing: float) -> Tensor:
    """One target's heatmap (1, H, W) from its raw maps (h, w)."""
    total = levels[0].new_ones((1, *geometry.image_size_hw))
    positive = [level.clamp(min=0)[None] for level in levels if (level > 0).any()]
    for level in positive:
        if smoothing:
            rows, columns = geometry.valid_cells((level.shape[-2], level.shape[-1]))
            sigma = smoothing * level.shape[-2] / min(other.shape[-2] for other in positive)
            smooth = torch.zeros_like(level)
            smooth[:, rows, columns] = blur(level[:, rows, columns], sigma)
            level = smooth
        total *= normalize(geometry.to_image(level))
    return normalize(total)  # zeros if no level has saliency
