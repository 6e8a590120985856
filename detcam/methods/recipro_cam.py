"""ReciproCAM, for feature maps and for tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.layers import LayersLike
from detcam.perturbation.base import ImageScorer, PerturbationCAM
from detcam.perturbation.replay import LayerReplay, layer_replays
from detcam.trace import ReshapeTransform
from detcam.utils.precision import work_dtype

KERNEL = (0.5, 1.0, 0.5)
"""One axis of the Gaussian over 3 x 3 cells, which is the outer product of this with itself, divided by 4."""


class ReciproCAM(PerturbationCAM):
    r"""The score when only one cell of the layer, with its neighbors, is visible.

    .. math:: L_{ij} = y(A \odot M^{ij}),\quad
        M^{ij} = \frac{1}{16} \begin{pmatrix} 1 & 2 & 1 \\ 2 & 4 & 2 \\ 1 & 2 & 1 \end{pmatrix}
        \text{ around } (i, j),\ 0 \text{ elsewhere}

    with A the target layer's activation and y the target's score; the map is scaled to [0, 1] by its minimum and
    maximum.

    Byun and Lee, *ReciproCAM: Lightweight Gradient-free Class Activation Map for Post-hoc Explanations*, CVPR Workshops
    2024, https://arxiv.org/abs/2209.14074. For tokens, with one variant per patch and unchanged class token and
    registers: Byun and Lee, *ViT-ReciproCAM*, 2023, https://arxiv.org/abs/2310.02588.

    Use it for fast maps without gradients. It takes one pass per cell of each level, of the modules downstream of the
    layer only, shared by all targets of an image.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`; it may only select and rearrange values.
        gaussian: if True, neighbors are visible as above; else the cell alone.
    """

    name = "reciprocam"
    paper = "Byun and Lee, ReciproCAM, CVPR Workshops 2024, https://arxiv.org/abs/2209.14074"
    cost = "1 forward, and 1 downstream of the layer per cell, for all targets"
    use = "fast maps without gradients, for ViT tokens too"
    rectified = False

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        gaussian: bool = True,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.gaussian = gaussian

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        return [self._map(replay, index) for replay in layer_replays(scorer) for index in range(len(replay.levels))]

    def _map(self, replay: LayerReplay, index: int) -> Tensor:
        """(N, h, w) scores of one level's cells."""
        level = replay.levels[index].values
        height, width = level.shape[1:]
        rows, columns = (self._visibility(size).to(level) for size in (height, width))

        def mask(part: slice) -> Tensor:
            cells = torch.arange(part.start, part.stop, device=level.device)
            masks = rows[cells // width][:, :, None] * columns[cells % width][:, None, :]
            return level * masks[:, None]

        scores = replay.score_variants(index, height * width, mask)
        return scores.T.reshape(-1, height, width).to(level.device, work_dtype(level))

    def _visibility(self, size: int) -> Tensor:
        """(size, size): row i is the weight of each cell along an axis in the mask of cell i."""
        if not self.gaussian:
            return torch.eye(size)
        return sum(
            weight / 2 * torch.ones(size - abs(step)).diag(step)
            for step, weight in zip((-1, 0, 1), KERNEL, strict=True)
            if abs(step) < size
        )  # type: ignore[return-value]
