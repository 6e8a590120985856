"""Bilinear resizing of large images, which reads and converts the pixels that it needs alone."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.data.images import as_float
from detcam.utils.batching import batch_slices

ROWS_AT_ONCE = 64
"""Rows of the result that are computed at once."""


def sample_bilinear(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize an image as ``F.interpolate(mode="bilinear", align_corners=False)`` does, without antialiasing.

    Args:
        image: (C, H, W), float in [0, 1] or uint8.
        size_hw: height and width of the result.

    Returns:
        (C, h, w) float in [0, 1], equal to that of ``F.interpolate`` up to the rounding of float32.
    """
    top, bottom, row_weights = _neighbors(image.shape[-2], size_hw[0], image.device)
    left, right, weights = _neighbors(image.shape[-1], size_hw[1], image.device)
    parts = []
    for part in batch_slices(size_hw[0], ROWS_AT_ONCE):
        upper, lower = (
            torch.lerp(as_float(rows[..., left]), as_float(rows[..., right]), weights)
            for rows in (image[:, top[part]], image[:, bottom[part]])
        )
        parts.append(torch.lerp(upper, lower, row_weights[part, None]))
    return torch.cat(parts, 1)


def _neighbors(size: int, new_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels on both sides of each new pixel along an axis, and the second one's weight, each (new_size,)."""
    centers = torch.arange(new_size, device=device, dtype=torch.float32) + 0.5
    position = (centers * (size / new_size) - 0.5).clamp(0, size - 1)
    low = position.floor().long()
    return low, (low + 1).clamp(max=size - 1), position - low
