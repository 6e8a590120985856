"""First principal component over channels, with a sign that the data decide."""

from __future__ import annotations

import torch
from torch import Tensor

FULL_SOLVER_SIDE = 640
"""Up to this size of the eigenproblem all eigenvectors at once are faster than a search for the first one."""


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
    vectors = maps.flatten(2).transpose(1, 2).double()
    centred = vectors - vectors.mean(1, keepdim=True)
    if channels <= height * width:
        _, axis = first_eigenpair(centred.transpose(1, 2) @ centred)
        projected = (centred @ axis[:, :, None])[:, :, 0]
    else:
        value, axis = first_eigenpair(centred @ centred.transpose(1, 2))
        projected = axis * value.clamp(min=0).sqrt()[:, None]
    return oriented(projected, centred).reshape(count, height, width).to(maps.dtype)


def oriented(projected: Tensor, centred: Tensor) -> Tensor:
    """Projections (n, hw) of centred vectors (n, hw, C) with their sign fixed."""
    agreement = (projected * centred.sum(2)).sum(1)
    peak = projected.gather(1, projected.abs().argmax(1, keepdim=True))[:, 0]
    # By Cauchy-Schwarz |agreement| is at most this; what is below 1e-5 of it is rounding of float32 activations.
    most = projected.norm(dim=1) * centred.flatten(1).norm(dim=1) * centred.shape[2] ** 0.5
    sign = torch.where(agreement.abs() > 1e-5 * most, agreement, peak).sign()
    return projected * torch.where(sign == 0, 1.0, sign)[:, None]


def first_eigenpair(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue (n,) and its unit eigenvector (n, s) of symmetric matrices (n, s, s)."""
    if gram.shape[1] <= FULL_SOLVER_SIDE:
        values, vectors = torch.linalg.eigh(gram)
        return values[:, -1], vectors[:, :, -1]
    pairs = [_search(matrix) for matrix in gram]
    return torch.stack([value for value, _ in pairs]), torch.stack([vector for _, vector in pairs])


def _search(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """First eigenpair of one large matrix by LOBPCG, or by the full solver where that has not converged."""
    scale = matrix.diagonal().sum().clamp(min=torch.finfo(matrix.dtype).tiny)
    # A column of a positive matrix leans to its first eigenvector; the ramp keeps the start from being orthogonal.
    start = matrix[:, matrix.diagonal().argmax()] / scale
    start = start + 1e-3 * torch.linspace(1, 2, len(matrix)).to(matrix)
    value, vector = torch.lobpcg(matrix / scale, k=1, X=start[:, None], niter=200, tol=1e-10)
    value, vector = value[0], vector[:, 0]
    if not (matrix @ vector / scale - value * vector).norm() <= 1e-9 * value:
        values, vectors = torch.linalg.eigh(matrix)
        return values[-1], vectors[:, -1]
    return value * scale, vector
