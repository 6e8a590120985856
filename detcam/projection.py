"""First principal component over channels, with a sign that the data decide."""

from __future__ import annotations

import torch
from torch import Tensor


def first_principal_component(maps: Tensor) -> Tensor:
    """Project each pixel's channel vector on the first principal axis of its map.

    With X (h w x C) the channel vectors centred over pixels and v the eigenvector of X^T X with the largest
    eigenvalue, the map is X v. The eigenproblem is solved on the smaller side, channels or pixels, in float64. The
    sign of v is arbitrary, so it is fixed: the map must correlate positively with the sum over channels of what was
    projected; where that sum is constant, the entry of greatest magnitude is positive.

    Args:
        maps: (n, C, h, w).

    Returns:
        (n, h, w), same dtype.
    """
    count, channels, height, width = maps.shape
    pixels = height * width
    vectors = maps.flatten(2).transpose(1, 2).double()
    centred = vectors - vectors.mean(1, keepdim=True)
    if channels <= pixels:
        axes = torch.linalg.eigh(centred.transpose(1, 2) @ centred)[1][:, :, -1]
        projected = (centred @ axes[:, :, None])[:, :, 0]
    else:
        values, axes = torch.linalg.eigh(centred @ centred.transpose(1, 2))
        projected = axes[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    total = vectors.sum(2)
    agreement = (projected * (total - total.mean(1, keepdim=True))).sum(1)
    peak = projected.gather(1, projected.abs().argmax(1, keepdim=True))[:, 0]
    sign = torch.where(agreement.abs() > 1e-12 * projected.norm(dim=1) * total.norm(dim=1), agreement, peak).sign()
    return (projected * torch.where(sign == 0, 1.0, sign)[:, None]).reshape(count, height, width).to(maps.dtype)
