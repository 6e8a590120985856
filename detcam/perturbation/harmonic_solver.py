"""Solver for the linear system in which each missing pixel of an image is the weighted mean of its neighbors.

Small and scattered systems are factorized. Others are solved by conjugate gradients with a multigrid preconditioner on
the grid of the pixels around them; an iteration costs a few filters, and about a dozen iterations are needed for any
size.
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

from detcam.utils.components import MaskArray, extent, with_margin
from detcam.utils.opencv import cv2

NEIGHBOR_WEIGHTS = tuple(
    ((dy, dx), 1 / 6 if 0 in (dy, dx) else 1 / 12) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
)
"""Offsets (rows, columns) and weights of a pixel's neighbors."""
STENCIL = (*NEIGHBOR_WEIGHTS[:4], ((0, 0), 0.0), *NEIGHBOR_WEIGHTS[4:])
"""Offsets and weights of a pixel's neighbors and, in their middle, of the pixel itself."""
CENTER = 4
"""Index of the pixel itself in `STENCIL`."""
TOLERANCES = (1e-3, 2e-6)
"""Estimated errors, relative to the image's largest magnitude, at which the first and the second round stop. The first
round leaves rounding errors of single precision."""
MAX_FACTORIZED = 8000
"""Maximum number of pixels of a system that is factorized."""
MAX_COMPACT_FACTORIZED = 1000
"""The same, if the pixels cover at least `MIN_COMPACT_FRACTION` of the rectangle around them."""
MIN_COMPACT_FRACTION = 0.15
MAX_ITERATIONS = 200
"""Maximum number of conjugate gradient iterations per round."""

Float64Array: TypeAlias = npt.NDArray[np.float64]
Float32Array: TypeAlias = npt.NDArray[np.float32]

_KERNEL = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
_HAT = np.array([1, 2, 1]) / 2
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def harmonic_fill(images: Tensor, removed: Tensor) -> Tensor:
    """Replace each removed pixel of images by the weighted mean of its neighbors.

    Args:
        images: (K, C, h, w), or (1, C, h, w) for one shared image.
        removed: (K, h, w) bool.

    Returns:
        (K, C, h, w), equal to the images at all other pixels.

    Raises:
        ValueError: every pixel of an image is removed.
    """
    masks = removed.cpu().numpy()  # NumPy reduces masks ten times as fast as PyTorch
    if any(mask.all() for mask in masks):
        raise ValueError("every pixel of an image is removed, so there is nothing to fill it from; keep some")
    filled = images.expand(len(removed), -1, -1, -1).clone()
    pending = [k for k, mask in enumerate(masks) if mask.any()]
    if not pending:
        return filled
    queue = iter(pending)

    def run_worker(_: int) -> list[tuple[Tensor, MaskArray, Float64Array]]:
        """Solve images until the queue is empty."""
        solutions = []
        for k in queue:
            # Pixels beyond the neighbors of the missing ones change nothing.
            rows, columns = with_margin(extent(masks[k]), 1, masks[k].shape)
            window, mask = filled[k, :, rows, columns], masks[k][rows, columns]
            image = window.cpu().double().numpy()
            if mask.sum() <= (MAX_COMPACT_FACTORIZED if mask.mean() >= MIN_COMPACT_FRACTION else MAX_FACTORIZED):
                solution = solve_by_factorization(mask, image)
            else:
                solution = Multigrid(mask.shape[0], mask.shape[1], len(image)).solve(mask, image)
            solutions.append((window, mask, solution))
        return solutions

    # As many threads as PyTorch uses: nearly all of the work releases the global interpreter lock.
    workers = min(torch.get_num_threads(), len(pending))
    if workers == 1:
        solutions = [run_worker(0)]
    else:
        with ThreadPoolExecutor(workers) as pool:
            solutions = list(pool.map(run_worker, range(workers)))
    for window, mask, values in chain.from_iterable(solutions):
        window[:, torch.from_numpy(mask).to(filled.device)] = torch.from_numpy(values).to(filled)
    return filled


def solve_by_factorization(mask: MaskArray, image: Float64Array) -> Float64Array:
    """Solve for the missing pixels (C, M) of an image (C, h, w) by factorization."""
    system, known = linear_system(mask, image)
    factor = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return factor.solve(known).T


def linear_system(mask: MaskArray, image: Float64Array) -> tuple[Any, Float64Array]:
    """Build the symmetric positive definite system (M, M) of M missing pixels, and its right-hand sides (M, C).

    Args:
        mask: (h, w), True for missing pixels.
        image: (C, h, w).
    """
    count = int(mask.sum())
    padded = np.pad(mask, 1)
    number = np.full(padded.shape, -1, np.int32)
    number[padded] = np.arange(count)
    inside = np.pad(np.ones(mask.shape), 1).ravel()
    values = np.pad(np.where(mask, 0.0, image), ((0, 0), (1, 1), (1, 1))).reshape(len(image), -1)
    offsets = np.array([dy * padded.shape[1] + dx for (dy, dx), _ in STENCIL])
    weights = np.array([weight for _, weight in STENCIL])
    around = np.flatnonzero(padded)[:, None] + offsets  # (M, 9)
    known = (values[:, around] * weights).sum(-1)
    entries = np.broadcast_to(-weights, around.shape).copy()
    entries[:, CENTER] = (inside[around] * weights).sum(1)
    neighbors = number.ravel()[around]
    missing = neighbors >= 0
    # Neighbors are in the order of their numbers, and the matrix is symmetric: rows are columns.
    starts = np.concatenate([[0], missing.sum(1).cumsum()]).astype(np.int32)
    system = sparse.csc_matrix((entries[missing], neighbors[missing], starts), shape=(count, count))
    return system, known.T.copy()


def _dot(first: Float32Array, second: Float32Array) -> float:
    """The sum of products (h, w, C), without BLAS, whose threads would compete with those of PyTorch."""
    return float(np.einsum("ijk,ijk->", first, second))


def total_weights(height: int, width: int, channels: int) -> Float64Array:
    """The sum of the weights of each pixel's neighbors, (h, w, C): 1 except at the borders."""
    ones = np.ones((height, width))
    return np.repeat(cv2.filter2D(ones, -1, _KERNEL, borderType=cv2.BORDER_CONSTANT)[..., None], channels, 2)


class GridLevel:
    """One grid of the multigrid cycle, with its working memory; every array is (h, w, C) float32.

    Args:
        height: number of rows.
        width: number of columns.
        channels: number of right-hand sides, solved together.
    """

    def __init__(self, height: int, width: int, channels: int) -> None:
        shape = (height, width, channels)
        self.size_hw = (height, width)
        self.total = total_weights(height, width, channels).astype(np.float32)
        self.missing, self.inverse, self.values, self.work = (np.zeros(shape, np.float32) for _ in range(4))
        # Coarse points lie on every second pixel, and one beyond an even side, so every pixel lies between points.
        self.between, self.points, self.weighted = (
            np.zeros((height | 1, width | 1, channels), np.float32) for _ in range(3)
        )

    def set_mask(self, mask: npt.NDArray[np.uint8]) -> None:
        """Set the mask (h, w), 1 for missing pixels."""
        self.missing[:] = mask[..., None]
        np.divide(self.missing, self.total, out=self.inverse)

    def neighbors(self, values: Float32Array) -> Float32Array:
        """The weighted sum of each pixel's neighbors, in the level's working memory."""
        cv2.filter2D(values, -1, _KERNEL, dst=self.work, borderType=cv2.BORDER_CONSTANT)
        return self.work


class Multigrid:
    """Solves for the missing pixels of images of one size.

    Conjugate gradients solve the symmetric system D u - K u = K known, with D the sum of weights of a pixel's
    neighbors, preconditioned by one V-cycle with a Jacobi step before and after. This is in single precision; a
    second round solves for the residual of the first, which is computed in double precision. A coarse grid has the
    points without known pixels around them, and the same stencil, whose scale is invariant in two dimensions.

    Args:
        height: height of the images, pixels.
        width: width of the images, pixels.
        channels: number of channels, solved together.
    """

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.levels = [GridLevel(height, width, channels)]
        while min(height, width) > 3:
            height, width = height // 2 + 1, width // 2 + 1
            self.levels.append(GridLevel(height, width, channels))
        self.depth = len(self.levels)
        self._total = total_weights(*self.levels[0].values.shape)
        self._double_buffers = [np.zeros_like(self._total) for _ in range(3)]
        self._buffers = [np.zeros_like(self.levels[0].values) for _ in range(5)]

    def solve(self, mask: MaskArray, image: Float64Array) -> Float64Array:
        """Solve for the missing pixels (C, M) of an image (C, h, w), M the number of pixels of the mask (h, w)."""
        self._set_mask(mask)
        solution, residual, total = self._double_buffers
        missing = self.levels[0].missing
        known = image.transpose(1, 2, 0).copy()
        known[mask] = 0
        scale = float(max(known.max(), -known.min()))
        cv2.filter2D(known, -1, _KERNEL, dst=residual, borderType=cv2.BORDER_CONSTANT)
        residual *= missing
        solution.fill(0)
        for round_, tolerance in enumerate(TOLERANCES):
            if round_:  # the residual of single precision
                known[mask] = solution[mask]
                cv2.filter2D(known, -1, _KERNEL, dst=residual, borderType=cv2.BORDER_CONSTANT)
                np.multiply(self._total, solution, out=total)
                residual -= total
                residual *= missing
            solution += self._conjugate_gradients(residual, tolerance * scale)
        return np.ascontiguousarray(solution[mask].T)

    def _conjugate_gradients(self, right_side: Float64Array, tolerance: float) -> Float32Array:
        """Solve for a right-hand side (h, w, C) up to an estimated error of `tolerance`."""
        solution, residual, direction, applied, work = self._buffers
        finest = self.levels[0]
        residual[:] = right_side
        solution.fill(0)
        step = self._cycle(0, residual)
        direction[:] = step
        strength = _dot(residual, step)
        for _ in range(MAX_ITERATIONS):
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
            if max(step.max(), -step.min()) < tolerance:
                solution += step
                break
            previous, strength = strength, _dot(residual, step)
            direction *= np.float32(strength / previous)
            direction += step
        return solution

    def _set_mask(self, mask: MaskArray) -> None:
        """Set the mask of every grid."""
        covered: Any = mask.astype(np.uint8)
        self.depth = 0
        for level in self.levels:
            if not covered.any():
                break
            level.set_mask(covered)
            self.depth += 1
            height, width = level.size_hw
            wider = cv2.copyMakeBorder(covered, 0, 1 - height % 2, 0, 1 - width % 2, cv2.BORDER_REPLICATE)
            covered = cv2.erode(wider, _CROSS, borderType=cv2.BORDER_REPLICATE)[::2, ::2]

    def _cycle(self, depth: int, residual: Float32Array) -> Float32Array:
        """Run one V-cycle; the result is in the level's working memory."""
        level = self.levels[depth]
        height, width = level.size_hw
        values = level.values
        np.multiply(level.inverse, residual, out=values)
        if depth + 1 < self.depth:
            remaining = level.between[:height, :width]  # the residual after a Jacobi step
            np.multiply(level.neighbors(values), level.missing, out=remaining)
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
    def _smooth(level: GridLevel, residual: Float32Array) -> None:
        """Apply one Jacobi step."""
        np.add(level.neighbors(level.values), residual, out=level.values)
        level.values *= level.inverse
