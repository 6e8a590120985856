"""Occlusion."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.layers import LayersLike
from detcam.perturbation.base import ImageArea, ImageScorer, InputCAM
from detcam.results import Sampling
from detcam.trace import ReshapeTransform
from detcam.utils.precision import work_dtype


class Occlusion(InputCAM):
    r"""Drop of the score when a window of the image is hidden.

    .. math:: L(\lambda) = \frac{1}{|\{W \ni \lambda\}|} \sum_{W \ni \lambda} \frac{y(X) - y(X_{\setminus W})}{|W|}

    with y the target's score, X the image, and W windows, of area :math:`|W|` in cells, that slide over a grid on the
    image by one cell. Hidden pixels become 0 in the network's input: the mean color if the input is normalized, else
    black.

    Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014,
    https://arxiv.org/abs/1311.2901.

    Use it to verify another method's map. With `refine`, windows go from coarse to fine: the image is split into 4 x 4
    blocks, and a block is split into four while its drop is at least that fraction of the largest drop of a block of
    its size. A region without effect then takes one pass. A target's map depends on its own drops alone; the passes are
    shared. Their number is in `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted for interchangeability; the map does not depend on it.
        reshape_transform: likewise.
        grid: number of cells per side; with `refine`, 4 times a power of 2.
        window: number of cells per side that are hidden together; without `refine` only.
        refine: fraction of the largest drop, in [0, 1], from which blocks are split; None slides windows.
    """

    name = "occlusion"
    paper = "Zeiler and Fergus, Visualizing and Understanding CNNs, ECCV 2014, https://arxiv.org/abs/1311.2901"
    cost = "1 forward per window for all targets"
    use = "verifying another map: the drop of the score without each region"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        grid: int = 16,
        window: int = 2,
        refine: float | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if not 1 <= window <= grid:
            raise ValueError(f"expected window from 1 to grid={grid}; got {window}")
        if refine is not None and (not 0 <= refine <= 1 or grid % 4 or grid & (grid - 1)):
            raise ValueError(f"expected refine in [0, 1] and grid 4, 8, 16, ...; got {refine} and {grid}")
        self.grid, self.window, self.refine = grid, window, refine

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        occluder = _Occluder(scorer, self.grid)
        cells = self._slide(occluder) if self.refine is None else self._refine(occluder, self.refine)
        scorer.sampling = Sampling(occluder.passes)
        return [occluder.render(cells)]

    def _slide(self, occluder: _Occluder) -> Tensor:
        """(N, grid, grid) mean drops of windows that slide by a cell."""
        steps = self.grid - self.window + 1
        corners = torch.cartesian_prod(torch.arange(steps), torch.arange(steps))
        drops = occluder.score_drops(corners, self.window).T / self.window**2
        total = torch.zeros(len(drops), self.grid, self.grid, dtype=torch.float64)
        count = torch.zeros(self.grid, self.grid, dtype=torch.float64)
        for row in range(self.window):
            for column in range(self.window):
                total[:, row : row + steps, column : column + steps] += drops.reshape(-1, steps, steps)
                count[row : row + steps, column : column + steps] += 1
        return total / count

    def _refine(self, occluder: _Occluder, fraction: float) -> Tensor:
        """(N, grid, grid) drops from coarse to fine; a block's drop is spread evenly over its cells."""
        cells = torch.zeros(occluder.targets, self.grid, self.grid, dtype=torch.float64)
        size = self.grid // 4
        active = torch.ones(occluder.targets, 4, 4, dtype=torch.bool)
        while True:
            blocks = active.any(0).nonzero()
            drops = torch.zeros(active.shape, dtype=torch.float64)
            drops[:, blocks[:, 0], blocks[:, 1]] = occluder.score_drops(blocks * size, size).T
            drops = drops * active
            density = _enlarged(drops / size**2, size)
            cells = torch.where(_enlarged(active, size), density, cells)
            largest = drops.abs().amax((1, 2), keepdim=True)
            active = active & (drops.abs() >= fraction * largest) & (largest > 0)
            if size == 1 or not active.any():
                return cells
            active, size = _enlarged(active, 2), size // 2


def _enlarged(maps: Tensor, factor: int) -> Tensor:
    return maps.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


class _Occluder:
    """Hides cells of a grid on one image.

    Attributes:
        targets: number of targets of the image.
        passes: number of occluded images scored so far.
    """

    def __init__(self, scorer: ImageScorer, grid: int) -> None:
        self.scorer = scorer
        self.area = ImageArea(scorer)
        self.targets = len(scorer.targets)
        self.passes = 0
        height, width = self.area.size_hw
        if min(height, width) < grid:
            raise ValueError(f"expected grid of at most {min(height, width)} cells for this image; got {grid}")
        self.edges = [[round(i * side / grid) for i in range(grid + 1)] for side in (height, width)]

    def score_drops(self, corners: Tensor, size: int) -> Tensor:
        """(K, N) drop of each target's score when `size` x `size` cells from each corner (K, 2) on are hidden."""
        rows, columns = self.edges

        def hide(part: slice) -> Tensor:
            masks = self.area.inputs.new_ones((part.stop - part.start, *self.area.size_hw))
            for mask, (top, left) in zip(masks, corners[part].tolist(), strict=True):
                mask[rows[top] : rows[top + size], columns[left] : columns[left + size]] = 0
            return self.area.apply_masks(masks)

        self.passes += len(corners)
        return self.scorer.values - self.scorer.score_variants(len(corners), hide).cpu().double()

    def render(self, cells: Tensor) -> Tensor:
        """Cells (N, grid, grid) as maps (N, H, W) of the network's input."""
        for axis, edges in enumerate(self.edges, 1):
            cells = cells.repeat_interleave(torch.tensor(edges).diff(), axis)
        inputs = self.area.inputs
        return self.area.pad_maps(cells.to(inputs.device, work_dtype(inputs)))
