"""Several levels' maps in one: their product, which keeps what they agree on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detcam.geometry import Geometry, normalize
from detcam.utils.filters import blur


def product_of_levels(levels: Sequence[Tensor], geometry: Geometry, smoothing: float = 0.0) -> Tensor:
    """One image's heatmaps: the product of the levels' positive parts, without those that say nothing for a target.

    Args:
        levels: per level, (N, h, w) signed saliency over the network's input.
        geometry: how the image lies on that input.
        smoothing: standard deviation of a Gaussian on each level first, in cells of the coarsest one that says
            something; 0 leaves them as they are.

    Returns:
        (N, H, W) in [0, 1], original image pixels.
    """
    found = [_product([level[k] for level in levels], geometry, smoothing) for k in range(len(levels[0]))]
    return torch.cat(found) if found else levels[0].new_zeros((0, *geometry.image_size_hw))


def _product(levels: Sequence[Tensor], geometry: Geometry, smoothing: float) -> Tensor:
    """One target's heatmap (1, H, W) from its raw maps (h, w)."""
    total = levels[0].new_ones((1, *geometry.image_size_hw))
    speaking = [level.clamp(min=0)[None] for level in levels if (level > 0).any()]
    for level in speaking:
        if smoothing:
            rows, columns = geometry.valid_cells((level.shape[-2], level.shape[-1]))
            sigma = smoothing * level.shape[-2] / min(other.shape[-2] for other in speaking)
            smooth = torch.zeros_like(level)
            smooth[:, rows, columns] = blur(level[:, rows, columns], sigma)
            level = smooth
        total *= normalize(geometry.to_image(level))
    return normalize(total)  # of ones, where no level speaks: zeros
