"""Filters for maps."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

MAX_CACHED_KERNELS = 8
"""Number of matrices of weights that are kept for further maps of the same sizes."""
MAX_CACHED_SIDE = 512
"""Maximum number of rows of a matrix that is kept."""


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps (N, h, w) by a Gaussian of `sigma` cells; at the border the kernel is renormalized to cells inside."""
    rows, columns = (_gaussian_weights(side, sigma, maps) for side in maps.shape[1:])
    return torch.matmul(torch.matmul(rows, maps), columns.T)


def _gaussian_weights(side: int, sigma: float, maps: Tensor) -> Tensor:
    """Return the matrix of `_gaussian` for maps of some dtype and device; small ones are kept."""
    matrix = _cached_gaussian if side <= MAX_CACHED_SIDE else _gaussian
    return matrix(side, sigma, maps.dtype, maps.device)


@torch.inference_mode(False)  # kept for passes with gradients too
def _gaussian(side: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return weights (n, n) along an axis of n cells, rows summing to 1."""
    cells = torch.arange(side, device=device, dtype=dtype)
    return torch.softmax(-((cells[:, None] - cells[None]) ** 2) / (2 * sigma**2), 1)


_cached_gaussian = lru_cache(MAX_CACHED_KERNELS)(_gaussian)
