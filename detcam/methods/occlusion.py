"""Occlusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter
from detcam.outputs import work_dtype
from detcam.perturbation.base import ImageArea, ImageScorer, InputCAM
from detcam.results import Sampling
from detcam.trace import ReshapeTransform


class Occlusion(InputCAM):
    r"""How much of the score is lost when a window of the image is hidden.

    .. math:: L(\lambda) = \frac{1}{|\{W \ni \lambda\}|} \sum_{W \ni \lambda} \frac{y(X) - y(X_{\setminus W})}{|W|}

    over windows W that slide by one cell of a grid over the image, with :math:`|W|` in cells. What is hidden becomes
    0 in the network's input: the mean colour where the input is normalised, else black.

    Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014,
    https://arxiv.org/abs/1311.2901.

    With `refine`, windows go from coarse to fine: the image is cut into 4 x 4 blocks, and a block is cut into four
    while hiding it moves the score by at least that share of the most that a block of its size does. Where nothing
    reacts, a coarse block says so in one pass. A target's map depends on its own reactions alone; the passes are
    shared. How many there were is in `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted so that methods can be swapped; the map does not depend on it.
        reshape_transform: likewise.
        grid: cells a side; with `refine`, 4 times a power of 2.
        window: cells a side that are hidden together; without `refine` only.
        refine: share of the strongest reaction, in [0, 1], from which blocks are refined; None slides windows.
    """

    name = "occlusion"
    paper = "Zeiler and Fergus, Visualizing and Understanding CNNs, ECCV 2014, https://arxiv.org/abs/1311.2901"
    cost = "1 forward a window for all targets"
    use = "checking another map: what the score loses without each place"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
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
        look = _Hiding(scorer, self.grid)
        found = self._slide(look) if self.refine is None else self._refine(look, self.refine)
        scorer.sampling = Sampling(look.passes)
        return [look.paint(found)]

    def _slide(self, look: _Hiding) -> Tensor:
        """(N, grid, grid) of windows that slide by a cell."""
        steps = self.grid - self.window + 1
        corners = torch.cartesian_prod(torch.arange(steps), torch.arange(steps))
        drops = look.drops(corners, self.window).T / self.window**2
        total = torch.zeros(len(drops), self.grid, self.grid, dtype=torch.float64)
        count = torch.zeros(self.grid, self.grid, dtype=torch.float64)
        for down in range(self.window):
            for right in range(self.window):
                total[:, down : down + steps, right : right + steps] += drops.reshape(-1, steps, steps)
                count[down : down + steps, right : right + steps] += 1
        return total / count

    def _refine(self, look: _Hiding, share: float) -> Tensor:
        """(N, grid, grid) from coarse to fine; a block's loss is spread evenly over its cells."""
        found = torch.zeros(look.targets, self.grid, self.grid, dtype=torch.float64)
        size = self.grid // 4
        active = torch.ones(look.targets, 4, 4, dtype=torch.bool)
        while True:
            blocks = active.any(0).nonzero()
            drops = torch.zeros(active.shape, dtype=torch.float64)
            drops[:, blocks[:, 0], blocks[:, 1]] = look.drops(blocks * size, size).T
            drops = drops * active
            density = _enlarged(drops / size**2, size)
            found = torch.where(_enlarged(active, size), density, found)
            strongest = drops.abs().amax((1, 2), keepdim=True)
            active = active & (drops.abs() >= share * strongest) & (strongest > 0)
            if size == 1 or not active.any():
                return found
            active, size = _enlarged(active, 2), size // 2


def _enlarged(maps: Tensor, factor: int) -> Tensor:
    return maps.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


class _Hiding:
    """Hides cells of a grid over one image's image.

    Attributes:
        targets: how many targets the image has.
        passes: how many images were scored so far.
    """

    def __init__(self, scorer: ImageScorer, grid: int) -> None:
        self.scorer = scorer
        self.canvas = ImageArea(scorer)
        self.targets = len(scorer.targets)
        self.passes = 0
        height, width = self.canvas.size_hw
        if min(height, width) < grid:
            raise ValueError(f"expected grid of at most {min(height, width)} cells for this image; got {grid}")
        self.edges = [[round(i * side / grid) for i in range(grid + 1)] for side in (height, width)]

    def drops(self, corners: Tensor, size: int) -> Tensor:
        """(K, N) loss of each target's score when `size` x `size` cells from each corner (K, 2) on are hidden."""
        rows, columns = self.edges

        def hide(part: slice) -> Tensor:
            masks = self.canvas.inputs.new_ones((part.stop - part.start, *self.canvas.size_hw))
            for mask, (top, left) in zip(masks, corners[part].tolist(), strict=True):
                mask[rows[top] : rows[top + size], columns[left] : columns[left + size]] = 0
            return self.canvas.apply_masks(masks)

        self.passes += len(corners)
        return self.scorer.values - self.scorer.score_variants(len(corners), hide).double().cpu()

    def paint(self, cells: Tensor) -> Tensor:
        """Cells (N, grid, grid) as a map of the network's input."""
        for axis, edges in enumerate(self.edges, 1):
            sizes = torch.tensor(edges).diff()
            cells = cells.repeat_interleave(sizes, axis)
        inputs = self.canvas.inputs
        return self.canvas.pad_maps(cells.to(inputs.device, work_dtype(inputs)))
