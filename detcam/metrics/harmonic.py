"""Linear systems of a picture's missing pixels, each the weighted mean of its neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

NEIGHBOURS = tuple(
    ((dy, dx), 1 / 6 if 0 in (dy, dx) else 1 / 12) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
)
"""Offsets (rows, columns) and weights of a pixel's neighbours."""


def harmonic_fill(pictures: Tensor, removed: Tensor) -> Tensor:
    """Pictures whose removed pixels are each the weighted mean of their neighbours.

    Args:
        pictures: (K, C, h, w), or (1, C, h, w) for one that is shared.
        removed: (K, h, w) bool.

    Returns:
        (K, C, h, w), equal to the pictures where nothing was removed.

    Raises:
        ValueError: nothing of a picture is left.
    """
    if removed.flatten(1).all(1).any():
        raise ValueError("every pixel of a picture is removed, so there is nothing to fill it from; keep some")
    filled = pictures.expand(len(removed), -1, -1, -1).clone()
    for k in torch.nonzero(removed.flatten(1).any(1))[:, 0].tolist():
        mask = removed[k].cpu().numpy()
        picture = filled[k].double().cpu().numpy()
        system, known = linear_system(mask, picture)
        factor = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        filled[k][:, removed[k]] = torch.from_numpy(factor.solve(known).T).to(filled)
    return filled


def linear_system(
    mask: npt.NDArray[np.bool_], picture: npt.NDArray[np.float64]
) -> tuple[sparse.csc_matrix, npt.NDArray[np.float64]]:
    """The symmetric positive definite system (M, M) of a picture's M missing pixels, and its right sides (M, C).

    Args:
        mask: (h, w), True where a pixel is missing.
        picture: (C, h, w).
    """
    height, width = mask.shape
    count = int(mask.sum())
    number = np.full((height + 2, width + 2), -1, np.int32)
    number[1:-1, 1:-1][mask] = np.arange(count)
    seen = np.pad(np.where(mask, 0.0, picture), ((0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones(mask.shape), 1)
    rows, columns = (index + 1 for index in np.nonzero(mask))
    own = np.arange(count)
    entries, total = [], np.zeros(count)
    known = np.zeros((len(picture), count))
    for (dy, dx), weight in NEIGHBOURS:
        there = rows + dy, columns + dx
        total += weight * inside[there]
        known += weight * seen[(slice(None), *there)]
        neighbour = number[there]
        missing = neighbour >= 0
        entries.append((own[missing], neighbour[missing], np.full(int(missing.sum()), -weight)))
    entries.append((own, own, total))
    row, column, value = (np.concatenate(part) for part in zip(*entries, strict=True))
    return sparse.csc_matrix((value, (row, column)), shape=(count, count)), known.T.copy()
