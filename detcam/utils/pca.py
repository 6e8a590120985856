"""First principal component over channels, with a sign that the data decide."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import scipy.linalg
import torch
from scipy.sparse.linalg import ArpackError, eigsh
from threadpoolctl import ThreadpoolController
from torch import Tensor

FULL_SOLVER_SIDE = 640
"""Up to this size of the eigenproblem, reducing the whole matrix is faster than a search for the first pair."""

BAND = 64
"""Rows of a Gram matrix that are computed at once."""


def first_principal_component(maps: Tensor) -> Tensor:
    """Project each place's channel vector on the first principal axis of its map.

    With X (h w x C) the channel vectors centred over places and v the eigenvector of X^T X with the largest
    eigenvalue, the map is X v. The eigenproblem is solved on the smaller side, channels or places, in float64.

    The sign of v is arbitrary and is fixed so: the map correlates positively with the sum over channels of what was
    projected. Where that sum is the same everywhere (behind a LayerNorm it is), the place of greatest magnitude is
    positive.

    Args:
        maps: (n, C, h, w).

    Returns:
        (n, h, w), same dtype; zero where all places are alike.
    """
    count, channels, height, width = maps.shape
    centred = maps.flatten(2).to(torch.float64, copy=True)
    centred -= centred.mean(2, keepdim=True)
    if channels <= height * width:
        gram = _gram(centred)
        _, axis = first_eigenpair(gram)
        projected = (axis[:, None] @ centred)[:, 0]
        # The projection times the sum over channels, without another walk through all of the activations.
        agreement = (axis[:, None] @ gram).sum((1, 2))
        found = _oriented(projected, agreement, gram.diagonal(dim1=1, dim2=2).sum(1), channels)
    else:
        value, axis = first_eigenpair(_gram(centred.transpose(1, 2)))
        found = oriented(axis * value.clamp(min=0).sqrt()[:, None], centred)
    return found.reshape(count, height, width).to(maps.dtype)


def _gram(rows: Tensor) -> Tensor:
    """All products of rows (n, s, length): (n, s, s)."""
    side = rows.shape[1]
    if side < 2 * BAND:
        return rows @ rows.transpose(1, 2)
    products = rows.new_empty((len(rows), side, side))
    for start in range(0, side, BAND):  # what lies beyond the diagonal is mirrored: half of the work
        stop = min(start + BAND, side)
        band = rows[:, start:stop] @ rows[:, :stop].transpose(1, 2)
        products[:, start:stop, :stop] = band
        products[:, :start, start:stop] = band[:, :, :start].transpose(1, 2)
    return products


def oriented(projected: Tensor, centred: Tensor) -> Tensor:
    """Projections (n, hw) of centred vectors (n, C, hw) with their sign fixed."""
    square = torch.linalg.vector_norm(centred, dim=(1, 2)).square()
    return _oriented(projected, (projected * centred.sum(1)).sum(1), square, centred.shape[1])


def _oriented(projected: Tensor, agreement: Tensor, square: Tensor, channels: int) -> Tensor:
    """Projections (n, hw) with their sign fixed.

    Args:
        projected: (n, hw).
        agreement: (n,), their products with the sum over channels of what was projected.
        square: (n,), the sum of squares of what was projected.
        channels: of what was projected.
    """
    peak = projected.gather(1, projected.abs().argmax(1, keepdim=True))[:, 0]
    # By Cauchy-Schwarz |agreement| is at most this; what is below 1e-5 of it is rounding of float32 activations.
    most = projected.norm(dim=1) * (square * channels).sqrt()
    sign = torch.where(agreement.abs() > 1e-5 * most, agreement, peak).sign()
    return projected * torch.where(sign == 0, 1.0, sign)[:, None]


def first_eigenpair(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue (n,) and its unit eigenvector (n, s) of symmetric float64 matrices (n, s, s).

    Solved by LAPACK on the CPU, which can stop at one pair; the solver of torch finds all, several times slower.
    """
    # So little work for each step leaves threads waiting for each other: on a busy machine a hundred times longer.
    with _blas().limit(limits=1):
        pairs = [_first_pair(matrix) for matrix in gram.detach().cpu().numpy()]
    values, vectors = gram.new_zeros(len(gram)), gram.new_zeros(gram.shape[:2])
    for row, (value, vector) in enumerate(pairs):
        values[row], vectors[row] = value, torch.from_numpy(vector)
    return values, vectors


@lru_cache(maxsize=1)
def _blas() -> Any:
    """What limits the threads of the libraries below NumPy and SciPy."""
    return ThreadpoolController().select(user_api="blas")


def _first_pair(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """First eigenpair of one matrix: by a Lanczos search where it is large."""
    if not matrix.trace() > 0:
        return 0.0, np.eye(1, len(matrix))[0]
    if len(matrix) > FULL_SOLVER_SIDE:
        try:
            # A column of a positive matrix leans to its first eigenvector; the ramp keeps it from being orthogonal.
            start = matrix[int(matrix.diagonal().argmax())]
            start = start / np.abs(start).max() + 1e-3 * np.linspace(1, 2, len(matrix))
            values, vectors = eigsh(matrix, k=1, which="LA", v0=start, tol=0)
            return float(values[0]), vectors[:, 0]
        except ArpackError:  # not converged: all of the matrix, then
            pass
    last = len(matrix) - 1
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[last, last], check_finite=False)
    return float(values[0]), vectors[:, 0]
