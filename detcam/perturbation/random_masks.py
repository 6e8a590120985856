"""Random masks, the maps that they add up to, and when there are enough of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.results import Sampling
from detcam.utils.batching import pieces

AGREEMENT = 0.8
"""Rank correlation between two halves of the samples above which sampling stops."""
FLAT = 0.95
"""Share of a map's cells, the lowest ones, that have no order but noise."""
FEWEST = 200
"""Passes before agreement is believed."""
BLOCK = 50
"""Masks drawn together; agreement is looked at after each block."""
COARSE = 32
"""Halves are compared on a grid of at most so many cells a side."""

Passes = int | Literal["auto"]


class RandomMasks:
    """RISE's masks: random grids of zeros and ones, enlarged bilinearly and cut out at random offsets.

    They come from a generator of their own, so they depend on the seed alone, and the global one does not move.

    Args:
        size_hw: height and width of the masks.
        grid: cells a side.
        probability: of a cell to be 1.
        seed: of the generator.
        device: where masks are painted.
        dtype: of the masks.
    """

    def __init__(
        self,
        size_hw: tuple[int, int],
        grid: int,
        probability: float,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.size_hw = size_hw
        self.grid = grid
        self.probability = probability
        self.device = device
        self._generator = torch.Generator().manual_seed(seed)
        self._cell = [-(-side // grid) for side in size_hw]
        corners = torch.eye(grid, device=device, dtype=dtype)[None]
        self._enlarge = [F.interpolate(corners, (grid + 1) * cell, mode="linear")[0].T for cell in self._cell]

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """The next masks, unpainted: (count, grid, grid) of 0 and 1, and (count, 2) offsets of rows and columns."""
        grids = torch.rand((count, self.grid, self.grid), generator=self._generator) < self.probability
        offsets = [torch.randint(cell, (count,), generator=self._generator) for cell in self._cell]
        return grids, torch.stack(offsets, 1)

    def paint(self, grids: Tensor, offsets: Tensor) -> Tensor:
        """Masks (K, H, W) in [0, 1] of grids (K, grid, grid) and offsets (K, 2)."""
        rows, columns = (
            enlarge[offsets[:, axis, None].to(self.device) + torch.arange(side, device=self.device)]
            for axis, (enlarge, side) in enumerate(zip(self._enlarge, self.size_hw, strict=True))
        )
        return rows @ grids.to(rows) @ columns.transpose(1, 2)


def weighted_masks(
    masks: RandomMasks,
    targets: int,
    scores: Callable[[Tensor], Tensor],
    *,
    passes: Passes,
    most: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Sampling]:
    r"""The mean score of masks that show a pixel, estimated from scores of random masks.

    .. math:: \bar y + \frac{1}{N p} \sum_{i=1}^N (y_i - \bar y) M_i,\quad \bar y = \frac{1}{N} \sum_{i=1}^N y_i

    RISE sums :math:`y_i M_i / (N p)`. The mean score's part of that sum is known beforehand, as a mask's mean is p at
    every pixel; it is put in as known, which leaves the expected map as it is and half of the masks do for the same
    precision.

    Args:
        masks: draws and paints them.
        targets: how many scores there are for each mask.
        scores: from masks (K, H, W) to (K, targets).
        passes: how many masks; ``"auto"`` stops once the maps of even and odd masks agree.
        most: how many masks at most if ``"auto"``.
        batch_size: masks per call of `scores`; no more exist at a time.
        seed: for the record.

    Returns:
        (targets, H, W) float64, and how it came about.
    """
    height, width = masks.size_hw
    sides = (min(height, COARSE), min(width, COARSE))
    total = _Sums(targets, height * width, masks.device)
    halves = [_Sums(targets, sides[0] * sides[1], masks.device) for _ in range(2)]
    limit = most if passes == "auto" else passes
    done, agreement = 0, (0.0,) * targets
    while done < limit:
        drawn = masks.draw(BLOCK)
        for part in pieces(min(BLOCK, limit - done), batch_size):
            painted = masks.paint(*(values[part] for values in drawn))
            weights = scores(painted).to(painted)
            coarse = F.adaptive_avg_pool2d(painted[:, None], sides).flatten(1)
            total.add(weights, painted.flatten(1))
            for number, half in enumerate(halves):  # blocks are even, so a mask's number in its block tells its half
                own = slice((number - part.start) % 2, None, 2)
                half.add(weights[own], coarse[own])
        done += min(BLOCK, limit - done)
        even, odd = (half.map(masks.probability) for half in halves)
        agreement = tuple(rank_correlation(even, odd).tolist())
        if passes == "auto" and done >= FEWEST and min(agreement) >= AGREEMENT:
            break
    return total.map(masks.probability).reshape(targets, height, width), Sampling(done, seed, agreement)


class _Sums:
    """Sums over masks, in float64 and of differences to the first score, so that chunks do not show."""

    def __init__(self, targets: int, pixels: int, device: torch.device) -> None:
        self.count = 0
        self.first: Tensor | None = None
        self.scores = torch.zeros(targets, 1, dtype=torch.float64, device=device)
        self.masks = torch.zeros(1, pixels, dtype=torch.float64, device=device)
        self.products = torch.zeros(targets, pixels, dtype=torch.float64, device=device)

    def add(self, scores: Tensor, masks: Tensor) -> None:
        """Add masks (K, pixels) with their scores (K, targets)."""
        if not len(scores):
            return
        self.first = scores[0] if self.first is None else self.first
        scores = scores - self.first
        self.count += len(masks)
        self.scores += scores.double().sum(0)[:, None]
        self.masks += masks.sum(0)
        self.products += scores.T @ masks

    def map(self, probability: float) -> Tensor:
        """The map (targets, pixels) so far."""
        if self.first is None:
            return torch.zeros_like(self.products)
        mean = self.scores / self.count
        return self.first.double()[:, None] + mean + (self.products - mean * self.masks) / (self.count * probability)


def rank_correlation(one: Tensor, other: Tensor, flat: float = FLAT) -> Tensor:
    """How alike two maps are where they are strong: Spearman's rank correlation with the low cells of each tied.

    Args:
        one: (N, M) maps.
        other: likewise.
        flat: share of the cells, the lowest ones of each map, that count as equal.

    Returns:
        (N,) in [-1, 1]; 0 where a map is constant.
    """
    centred = []
    for maps in (one, other):
        order = maps.argsort(dim=1, stable=True)
        tied = int(flat * maps.shape[1])
        ranks = torch.arange(maps.shape[1], dtype=torch.float64, device=maps.device)
        ranks[:tied] = (tied - 1) / 2
        ranks = torch.zeros_like(maps, dtype=torch.float64).scatter_(1, order, ranks.expand(len(maps), -1))
        centred.append(ranks - ranks.mean(1, keepdim=True))
    product = (centred[0] * centred[1]).sum(1) / (centred[0].norm(dim=1) * centred[1].norm(dim=1)).clamp(min=1e-12)
    varies = (one.amax(1) > one.amin(1)) & (other.amax(1) > other.amin(1))
    return torch.where(varies, product, torch.zeros_like(product))


def check_passes(passes: Passes) -> Passes:
    """Raise ValueError where this is no number of passes."""
    if passes != "auto" and (not isinstance(passes, int) or passes < 1):
        raise ValueError(f"expected passes as a number of at least 1, or 'auto'; got {passes!r}")
    return passes
