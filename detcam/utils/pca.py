"""First principal component over channels, with a deterministic sign."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import scipy.linalg
import torch
from scipy.sparse.linalg import ArpackError, eigsh
from threadpoolctl import ThreadpoolController
from torch import Tensor

from detcam.utils.precision import float64_on

MAX_FULL_SOLVER_SIZE = 640
"""Maximum size of an eigenproblem for the full solver; larger ones are solved by a Lanczos iteration."""

GRAM_ROWS = 64
"""Rows of a Gram matrix that are computed at once."""


def first_principal_component(maps: Tensor) -> Tensor:
    """Project each cell's channel vector on the first principal axis of its map.

    With X (h w x C) the channel vectors centered over cells and v the eigenvector of X^T X with the largest eigenvalue,
    the map is X v. The eigenproblem is solved on the smaller side, channels or cells, in float64.

    The sign of v is arbitrary. It is chosen so that the map correlates positively with the sum over channels; if that
    sum is constant (as after a LayerNorm), so that the cell of maximum magnitude is positive.

    Args:
        maps: (n, C, h, w).

    Returns:
        (n, h, w), same dtype; zero if all cells are equal.
    """
    count, channels, height, width = maps.shape
    centered = maps.flatten(2).to(float64_on(maps.device), copy=True)
    centered -= centered.mean(2, keepdim=True)
    if channels <= height * width:
        gram = _gram(centered)
        _, axis = first_eigenpair(gram)
        projected = (axis[:, None] @ centered)[:, 0]
        # The product of the projection and the sum over channels, from the Gram matrix.
        agreement = (axis[:, None] @ gram).sum((1, 2))
        projected = _oriented(projected, agreement, gram.diagonal(dim1=1, dim2=2).sum(1), channels)
    else:
        value, axis = first_eigenpair(_gram(centered.transpose(1, 2)))
        projected = oriented(axis * value.clamp(min=0).sqrt()[:, None], centered)
    return projected.reshape(count, height, width).to(maps.dtype)


def _gram(rows: Tensor) -> Tensor:
    """Return the products of all pairs of rows (n, s, length), as (n, s, s)."""
    side = rows.shape[1]
    if side < 2 * GRAM_ROWS:
        return rows @ rows.transpose(1, 2)
    products = rows.new_empty((len(rows), side, side))
    for start in range(0, side, GRAM_ROWS):  # the upper triangle mirrors the lower one
        stop = min(start + GRAM_ROWS, side)
        band = rows[:, start:stop] @ rows[:, :stop].transpose(1, 2)
        products[:, start:stop, :stop] = band
        products[:, :start, start:stop] = band[:, :, :start].transpose(1, 2)
    return products


def oriented(projected: Tensor, centered: Tensor) -> Tensor:
    """Choose the signs of projections (n, hw) of centered vectors (n, C, hw)."""
    square = torch.linalg.vector_norm(centered, dim=(1, 2)).square()
    return _oriented(projected, (projected * centered.sum(1)).sum(1), square, centered.shape[1])


def _oriented(projected: Tensor, agreement: Tensor, square: Tensor, channels: int) -> Tensor:
    """Choose the signs of projections.

    Args:
        projected: (n, hw).
        agreement: (n,), products of the projections with the sum over channels of the vectors.
        square: (n,), sums of squares of the vectors.
        channels: number of channels of the vectors.
    """
    peak = projected.gather(1, projected.abs().argmax(1, keepdim=True))[:, 0]
    # Upper bound of |agreement| (Cauchy-Schwarz); below 1e-5 of it is rounding error of float32 activations.
    limit = projected.norm(dim=1) * (square * channels).sqrt()
    sign = torch.where(agreement.abs() > 1e-5 * limit, agreement, peak).sign()
    return projected * torch.where(sign == 0, 1.0, sign)[:, None]


def first_eigenpair(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalue (n,) and its unit eigenvector (n, s) of symmetric float64 matrices (n, s, s).

    LAPACK on the CPU can compute a single pair; the solver of torch computes all and is several times slower.
    """
    # Threads slow these small steps down, by a factor of 100 on a busy machine.
    with _blas().limit(limits=1):
        pairs = [_first_pair(matrix) for matrix in gram.detach().cpu().numpy()]
    values, vectors = gram.new_zeros(len(gram)), gram.new_zeros(gram.shape[:2])
    for row, (value, vector) in enumerate(pairs):
        values[row], vectors[row] = value, torch.from_numpy(vector)
    return values, vectors


@lru_cache(maxsize=1)
def _blas() -> Any:
    """Return the controller of the threads of the BLAS libraries."""
    return ThreadpoolController().select(user_api="blas")


def _first_pair(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the first eigenpair of a matrix, by a Lanczos iteration if it is large."""
    if not matrix.trace() > 0:
        return 0.0, np.eye(1, len(matrix))[0]
    if len(matrix) > MAX_FULL_SOLVER_SIZE:
        try:
            # A column is close to the first eigenvector; the ramp rules out that it is orthogonal to it.
            start = matrix[int(matrix.diagonal().argmax())]
            start = start / np.abs(start).max() + 1e-3 * np.linspace(1, 2, len(matrix))
            values, vectors = eigsh(matrix, k=1, which="LA", v0=start, tol=0)
            return float(values[0]), vectors[:, 0]
        except ArpackError:  # not converged: use the full solver
            pass
    last = len(matrix) - 1
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[last, last], check_finite=False)
    return float(values[0]), vectors[:, 0]
