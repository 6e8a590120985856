"""Random masks, the saliency estimated from them, and the stopping rule of sampling."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.results import Sampling
from detcam.utils.batching import batch_slices
from detcam.utils.precision import float64_on, to_float64

MIN_AGREEMENT = 0.8
"""Rank correlation between the maps of two halves of the samples at which sampling stops."""
TIED_FRACTION = 0.95
"""Fraction of a map's cells, the lowest ones, whose order is noise; they count as tied."""
MIN_PASSES = 200
"""Minimum number of passes before sampling may stop."""
BLOCK_SIZE = 50
"""Number of masks drawn at once; agreement is measured after each block."""
MAX_GRID_SIDE = 32
"""Maximum side of the grid on which the halves are compared, in cells."""

Passes: TypeAlias = int | Literal["auto"]
"""Number of masked images; ``"auto"`` samples until the maps agree."""


class RandomMasks:
    """The masks of RISE: random grids of zeros and ones, enlarged bilinearly and cropped at random offsets.

    A separate generator draws them, so they depend on the seed alone and the global random state does not change.

    Args:
        size_hw: height and width of the masks, pixels.
        grid: number of cells per side.
        probability: probability that a cell is 1.
        seed: seed of the generator.
        device: device of the rendered masks.
        dtype: dtype of the rendered masks.
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
        """Draw the next masks: grids (count, grid, grid) bool, and offsets (count, 2) of rows and columns, pixels."""
        grids = torch.rand((count, self.grid, self.grid), generator=self._generator) < self.probability
        offsets = [torch.randint(cell, (count,), generator=self._generator) for cell in self._cell]
        return grids, torch.stack(offsets, 1)

    def render(self, grids: Tensor, offsets: Tensor) -> Tensor:
        """Render masks (K, H, W) in [0, 1] from grids (K, grid, grid) and offsets (K, 2)."""
        rows, columns = (
            enlarge[offsets[:, axis, None].to(self.device) + torch.arange(side, device=self.device)]
            for axis, (enlarge, side) in enumerate(zip(self._enlarge, self.size_hw, strict=True))
        )
        return rows @ grids.to(rows) @ columns.transpose(1, 2)


def estimate_saliency(
    masks: RandomMasks,
    targets: int,
    scores: Callable[[Tensor], Tensor],
    *,
    passes: Passes,
    max_passes: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Sampling]:
    r"""Estimate, for every pixel, the mean score over the masks that show it.

    .. math:: \bar y + \frac{1}{N p} \sum_{i=1}^N (y_i - \bar y) M_i,\quad \bar y = \frac{1}{N} \sum_{i=1}^N y_i

    RISE sums :math:`y_i M_i / (N p)`. The contribution of the mean score :math:`\bar y` to that sum is known in
    advance, since a mask's expectation is p at every pixel; using the known value keeps the expected map and needs
    half as many masks for the same precision.

    Args:
        masks: source of the masks.
        targets: number of scores per mask.
        scores: from masks (K, H, W) to scores (K, targets).
        passes: number of masks; ``"auto"`` stops once the maps of even and odd masks agree.
        max_passes: maximum number of masks if `passes` is ``"auto"``.
        batch_size: number of masks per call of `scores`, and in memory at a time.
        seed: seed of the masks, recorded in the result.

    Returns:
        (targets, H, W) float64 maps, and the sampling statistics.
    """
    height, width = masks.size_hw
    sides = (min(height, MAX_GRID_SIDE), min(width, MAX_GRID_SIDE))
    total = _MaskSums(targets, height * width, masks.device)
    halves = [_MaskSums(targets, sides[0] * sides[1], masks.device) for _ in range(2)]
    limit = max_passes if passes == "auto" else passes
    done, agreement = 0, (0.0,) * targets
    while done < limit:
        drawn = masks.draw(BLOCK_SIZE)
        for part in batch_slices(min(BLOCK_SIZE, limit - done), batch_size):
            rendered = masks.render(*(values[part] for values in drawn))
            weights = scores(rendered).to(rendered)
            coarse = F.adaptive_avg_pool2d(rendered[:, None], sides).flatten(1)
            total.add(weights, rendered.flatten(1))
            for parity, half in enumerate(halves):  # blocks have even size, so parity in the block is parity overall
                members = slice((parity - part.start) % 2, None, 2)
                half.add(weights[members], coarse[members])
        done += min(BLOCK_SIZE, limit - done)
        even, odd = (half.map(masks.probability) for half in halves)
        agreement = tuple(peak_rank_correlation(even, odd).tolist())
        if passes == "auto" and done >= MIN_PASSES and min(agreement) >= MIN_AGREEMENT:
            break
    return total.map(masks.probability).reshape(targets, height, width), Sampling(done, seed, agreement)


class _MaskSums:
    """Running sums over masks, in float64 and relative to the first score, so that chunking does not change them."""

    def __init__(self, targets: int, pixels: int, device: torch.device) -> None:
        self.count = 0
        self.first: Tensor | None = None
        self.scores = torch.zeros(targets, 1, dtype=float64_on(device), device=device)
        self.masks = torch.zeros(1, pixels, dtype=float64_on(device), device=device)
        self.products = torch.zeros(targets, pixels, dtype=float64_on(device), device=device)

    def add(self, scores: Tensor, masks: Tensor) -> None:
        """Add masks (K, pixels) with their scores (K, targets)."""
        if not len(scores):
            return
        self.first = scores[0] if self.first is None else self.first
        scores = scores - self.first
        self.count += len(masks)
        self.scores += to_float64(scores).sum(0)[:, None]
        self.masks += masks.sum(0)
        self.products += scores.T @ masks

    def map(self, probability: float) -> Tensor:
        """The map (targets, pixels) of the masks added so far."""
        if self.first is None:
            return torch.zeros_like(self.products)
        mean = self.scores / self.count
        return to_float64(self.first)[:, None] + mean + (self.products - mean * self.masks) / (self.count * probability)


def peak_rank_correlation(first: Tensor, second: Tensor, tied_fraction: float = TIED_FRACTION) -> Tensor:
    """Rank correlation of the peaks of two maps: Spearman's, with the lowest cells of each map tied.

    `detcam.metrics.similarity.rank_correlation` is the plain coefficient over all cells, which the order of the many
    low cells dominates; here only the order of the highest cells counts.

    Args:
        first: (N, M) maps.
        second: (N, M) maps.
        tied_fraction: fraction of the cells, the lowest ones of each map, that share one rank.

    Returns:
        (N,) in [-1, 1]; 0 where a map is constant.
    """
    centered = []
    for maps in (first, second):
        order = maps.argsort(dim=1, stable=True)
        tied = int(tied_fraction * maps.shape[1])
        ranks = torch.arange(maps.shape[1], dtype=float64_on(maps.device), device=maps.device)
        ranks[:tied] = (tied - 1) / 2
        ranks = torch.zeros_like(maps, dtype=float64_on(maps.device)).scatter_(1, order, ranks.expand(len(maps), -1))
        centered.append(ranks - ranks.mean(1, keepdim=True))
    product = (centered[0] * centered[1]).sum(1) / (centered[0].norm(dim=1) * centered[1].norm(dim=1)).clamp(min=1e-12)
    varies = (first.amax(1) > first.amin(1)) & (second.amax(1) > second.amin(1))
    return torch.where(varies, product, torch.zeros_like(product))


def check_passes(passes: Passes) -> Passes:
    """Return a valid number of passes, or raise ValueError."""
    if passes == "auto":
        return passes
    if not isinstance(passes, Integral) or passes < 1:
        raise ValueError(f"expected passes as a number of at least 1, or 'auto'; got {passes!r}")
    return int(passes)
