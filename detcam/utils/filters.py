"""Filters for maps."""

from __future__ import annotations

import torch
from torch import Tensor


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps (N, h, w) by a Gaussian of `sigma` cells; at the border the kernel is renormalized to cells inside."""
    return torch.matmul(torch.matmul(_gaussian(maps, 1, sigma), maps), _gaussian(maps, 2, sigma).T)


def _gaussian(maps: Tensor, axis: int, sigma: float) -> Tensor:
    """Return weights (n, n) along an axis, rows summing to 1."""
    cells = torch.arange(maps.shape[axis], device=maps.device, dtype=maps.dtype)
    return torch.softmax(-((cells[:, None] - cells[None]) ** 2) / (2 * sigma**2), 1)
