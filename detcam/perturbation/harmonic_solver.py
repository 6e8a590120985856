"""Linear systems of an image's missing pixels, each the weighted mean of its neighbours, and their solution.

Small systems are factorised. Large ones are solved by conjugate gradients, preconditioned with a multigrid cycle on the
image's own grid, which costs a few filters per iteration and takes about a dozen of them whatever the size.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from detcam.utils.opencv import cv2

NEIGHBOURS = tuple(
    ((dy, dx), 1 / 6 if 0 in (dy, dx) else 1 / 12) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
)
"""Offsets (rows, columns) and weights of a pixel's neighbours."""
GOALS = (1e-3, 2e-6)
"""Estimated errors at which iterations stop, as shares of the image's greatest value: those of the first round, which
leaves rounding errors of single precision, and of the last."""
SMALL = 8000
"""Systems of at most so many pixels are factorised."""

Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

Singles: TypeAlias = npt.NDArray[np.float32]

_KERNEL = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
_HAT = np.array([1, 2, 1]) / 2
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def harmonic_fill(images: Tensor, removed: Tensor) -> Tensor:
    """Images whose removed pixels are each the weighted mean of their neighbours.

    Args:
        images: (K, C, h, w), or (1, C, h, w) for one that is shared.
        removed: (K, h, w) bool.

    Returns:
        (K, C, h, w), equal to the images where nothing was removed.

    Raises:
        ValueError: nothing of an image is left.
    """
    if removed.flatten(1).all(1).any():
        raise ValueError("every pixel of an image is removed, so there is nothing to fill it from; keep some")
    filled = images.expand(len(removed), -1, -1, -1).clone()
    waiting = torch.nonzero(removed.flatten(1).any(1))[:, 0].tolist()
    if not waiting:
        return filled
    left = iter(waiting)

    def solved(k: int, solver: Multigrid) -> Floats:
        mask, image = removed[k].cpu().numpy(), filled[k].double().cpu().numpy()
        return factorized(mask, image) if mask.sum() <= SMALL else solver.solve(mask, image)

    def work(_: int) -> list[tuple[int, Floats]]:
        """Take images as long as there are any."""
        solver = Multigrid(filled.shape[-2], filled.shape[-1], filled.shape[1])
        return [(k, solved(k, solver)) for k in left]

    # As many threads as PyTorch may take: nearly all of the work is done outside of the interpreter's lock.
    workers = min(torch.get_num_threads(), len(waiting))
    if workers == 1:
        shares = [work(0)]
    else:
        with ThreadPoolExecutor(workers) as pool:
            shares = list(pool.map(work, range(workers)))
    for k, values in chain.from_iterable(shares):
        filled[k][:, removed[k]] = torch.from_numpy(values).to(filled)
    return filled


def factorized(mask: Mask, image: Floats) -> Floats:
    """The missing pixels (C, M) of an image (C, h, w), by factorisation."""
    system, known = linear_system(mask, image)
    factor = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    found: Floats = factor.solve(known).T
    return found


def linear_system(mask: Mask, image: Floats) -> tuple[Any, Floats]:
    """The symmetric positive definite system (M, M) of an image's M missing pixels, and its right sides (M, C).

    Args:
        mask: (h, w), True where a pixel is missing.
        image: (C, h, w).
    """
    height, width = mask.shape
    count = int(mask.sum())
    number = np.full((height + 2, width + 2), -1, np.int32)
    number[1:-1, 1:-1][mask] = np.arange(count)
    seen = np.pad(np.where(mask, 0.0, image), ((0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones(mask.shape), 1)
    rows, columns = (index + 1 for index in np.nonzero(mask))
    own = np.arange(count)
    entries, total = [], np.zeros(count)
    known = np.zeros((len(image), count))
    for (dy, dx), weight in NEIGHBOURS:
        there = rows + dy, columns + dx
        total += weight * inside[there]
        known += weight * seen[:, there[0], there[1]]
        neighbour = number[there]
        missing = neighbour >= 0
        entries.append((own[missing], neighbour[missing], np.full(int(missing.sum()), -weight)))
    entries.append((own, own, total))
    row, column, value = (np.concatenate(part) for part in zip(*entries, strict=True))
    return sparse.csc_matrix((value, (row, column)), shape=(count, count)), known.T.copy()


def _dot(one: Singles, other: Singles) -> float:
    """The sum of products (h, w, C). Not by BLAS, whose threads would fight those of PyTorch over so little work."""
    return float(np.einsum("ijk,ijk->", one, other))


def total_weights(height: int, width: int, channels: int) -> Floats:
    """The sum of the weights of each pixel's neighbours, (h, w, C): 1 but at the borders."""
    ones = np.ones((height, width))
    return np.repeat(cv2.filter2D(ones, -1, _KERNEL, borderType=cv2.BORDER_CONSTANT)[..., None], channels, 2)


class GridLevel:
    """One grid of the multigrid cycle, with the memory that it works in; every array is (h, w, C) float32.

    Args:
        height: rows.
        width: columns.
        channels: right sides solved together.
    """

    def __init__(self, height: int, width: int, channels: int) -> None:
        shape = (height, width, channels)
        self.size_hw = (height, width)
        self.total = total_weights(height, width, channels).astype(np.float32)
        self.missing, self.inverse, self.values, self.work = (np.zeros(shape, np.float32) for _ in range(4))
        # Grids have a point on every second pixel and one beyond an even side, so that each pixel lies between points.
        self.between, self.points, self.weighted = (
            np.zeros((height | 1, width | 1, channels), np.float32) for _ in range(3)
        )

    def cover(self, mask: npt.NDArray[np.uint8]) -> None:
        """Take over a mask (h, w), 1 where a pixel is missing."""
        self.missing[:] = mask[..., None]
        np.divide(self.missing, self.total, out=self.inverse)

    def neighbours(self, values: Singles) -> Singles:
        """The weighted sum of each pixel's neighbours, in this level's working memory."""
        cv2.filter2D(values, -1, _KERNEL, dst=self.work, borderType=cv2.BORDER_CONSTANT)
        return self.work


class Multigrid:
    """Solves for the missing pixels of images of one size.

    Conjugate gradients on the symmetric system D u - K u = K known, D the sum of weights of a pixel's neighbours,
    preconditioned by one V-cycle with a Jacobi step before and after. All of that is in single precision; a second
    round solves for what the first one leaves, which is computed in double precision. A coarse grid has the points
    around which nothing is known, and the same stencil: in two dimensions it keeps its scale.

    Args:
        height: of the images.
        width: of the images.
        channels: of the images, solved together.
    """

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.levels = [GridLevel(height, width, channels)]
        while min(height, width) > 3:
            height, width = height // 2 + 1, width // 2 + 1
            self.levels.append(GridLevel(height, width, channels))
        self.depth = len(self.levels)
        self._total = total_weights(*self.levels[0].values.shape)
        self._memory = [np.zeros_like(self._total) for _ in range(3)]
        self._singles = [np.zeros_like(self.levels[0].values) for _ in range(5)]

    def solve(self, mask: Mask, image: Floats) -> Floats:
        """The missing pixels (C, M) of an image (C, h, w), M the pixels of the mask (h, w)."""
        self._cover(mask)
        solution, residual, total = self._memory
        missing = self.levels[0].missing
        known = image.transpose(1, 2, 0).copy()
        known[mask] = 0
        scale = float(max(known.max(), -known.min()))
        cv2.filter2D(known, -1, _KERNEL, dst=residual, borderType=cv2.BORDER_CONSTANT)
        residual *= missing
        solution.fill(0)
        for number, goal in enumerate(GOALS):
            if number:  # what single precision left
                known[mask] = solution[mask]
                cv2.filter2D(known, -1, _KERNEL, dst=residual, borderType=cv2.BORDER_CONSTANT)
                np.multiply(self._total, solution, out=total)
                residual -= total
                residual *= missing
            solution += self._improve(residual, goal * scale)
        found: Floats = np.ascontiguousarray(solution[mask].T)
        return found

    def _improve(self, left: Floats, goal: float, most: int = 200) -> Singles:
        """Solve for a residual (h, w, C) by conjugate gradients, up to an estimated error of `goal`."""
        solution, residual, direction, applied, work = self._singles
        finest = self.levels[0]
        residual[:] = left
        solution.fill(0)
        step = self._cycle(0, residual)
        direction[:] = step
        strength = _dot(residual, step)
        for _ in range(most):
            cv2.filter2D(direction, -1, _KERNEL, dst=work, borderType=cv2.BORDER_CONSTANT)
            np.multiply(finest.total, direction, out=applied)
            applied -= work
            applied *= finest.missing
            curvature = _dot(direction, applied)
            if curvature <= 0:
                break
            length = np.float32(strength / curvature)
            np.multiply(direction, length, out=work)
            solution += work
            applied *= length
            residual -= applied
            step = self._cycle(0, residual)
            if max(step.max(), -step.min()) < goal:
                solution += step
                break
            before, strength = strength, _dot(residual, step)
            direction *= np.float32(strength / before)
            direction += step
        return solution

    def _cover(self, mask: Mask) -> None:
        """Lay a mask on every grid."""
        covered: Any = mask.astype(np.uint8)
        self.depth = 0
        for level in self.levels:
            if not covered.any():
                break
            level.cover(covered)
            self.depth += 1
            height, width = level.size_hw
            wider = cv2.copyMakeBorder(covered, 0, 1 - height % 2, 0, 1 - width % 2, cv2.BORDER_REPLICATE)
            covered = cv2.erode(wider, _CROSS, borderType=cv2.BORDER_REPLICATE)[::2, ::2]

    def _cycle(self, depth: int, residual: Singles) -> Singles:
        """One V-cycle. The answer lies in the level's own memory."""
        level = self.levels[depth]
        height, width = level.size_hw
        values = level.values
        np.multiply(level.inverse, residual, out=values)
        if depth + 1 < self.depth:
            left = level.between[:height, :width]  # what a Jacobi step leaves of the residual
            np.multiply(level.neighbours(values), level.missing, out=left)
            cv2.sepFilter2D(level.between, -1, _HAT, _HAT, dst=level.weighted, borderType=cv2.BORDER_CONSTANT)
            coarse = self._cycle(depth + 1, level.weighted[::2, ::2])
            level.points[::2, ::2] = coarse
            cv2.sepFilter2D(level.points, -1, _HAT, _HAT, dst=level.weighted, borderType=cv2.BORDER_CONSTANT)
            values += level.weighted[:height, :width]
            values *= level.missing
        else:
            for _ in range(6):
                self._smooth(level, residual)
        self._smooth(level, residual)
        return values

    @staticmethod
    def _smooth(level: GridLevel, residual: Singles) -> None:
        """One Jacobi step."""
        np.add(level.neighbours(level.values), residual, out=level.values)
        level.values *= level.inverse
