"""Filters for maps."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

MAX_CACHED_KERNELS = 8
"""Number of matrices of weights that are kept for further maps of the same sizes."""
MAX_CACHED_SIDE = 512
"""Maximum number of rows of a matrix that is kept."""
MAX_STANDARD_DEVIATIONS = 8.5
"""Standard deviations beyond which a weight is below the rounding error of float64."""
ROWS_PER_BLOCK = 32
"""Number of rows of a matrix of weights that are multiplied together."""


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps (N, h, w) by a Gaussian of `sigma` cells; at the border the kernel is renormalized to cells inside."""
    rows, columns = (_gaussian_weights(side, sigma, maps) for side in maps.shape[1:])
    distance = math.ceil(MAX_STANDARD_DEVIATIONS * sigma)
    blurred = _banded_product(columns, _banded_product(rows, maps, distance).transpose(1, 2), distance)
    return blurred.transpose(1, 2).contiguous()


def _banded_product(weights: Tensor, maps: Tensor, distance: int) -> Tensor:
    """Multiply weights (h, h), negligible farther than `distance` from the diagonal, by maps (N, h, w)."""
    side = len(weights)
    if 2 * (ROWS_PER_BLOCK + 2 * distance) > side:
        return torch.matmul(weights, maps)
    blocks = []
    for start in range(0, side, ROWS_PER_BLOCK):
        near = slice(max(start - distance, 0), start + ROWS_PER_BLOCK + distance)
        blocks.append(torch.matmul(weights[start : start + ROWS_PER_BLOCK, near], maps[:, near]))
    return torch.cat(blocks, 1)


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
