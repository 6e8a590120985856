"""ReciproCAM, for feature maps and for tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter
from detcam.outputs import work_dtype
from detcam.perturbation.base import ImageScorer, PerturbationCAM
from detcam.perturbation.replay import LayerReplay, layer_replays
from detcam.trace import ReshapeTransform

KERNEL = (0.5, 1.0, 0.5)
"""The Gaussian of 3 x 3 cells is this times itself, over 4."""


class ReciproCAM(PerturbationCAM):
    r"""The score when all of the layer is hidden but one place, for every place.

    .. math:: L_{ij} = y(A \odot M^{ij}),\quad
        M^{ij} = \frac{1}{16} \begin{pmatrix} 1 & 2 & 1 \\ 2 & 4 & 2 \\ 1 & 2 & 1 \end{pmatrix}
        \text{ around } (i, j),\ 0 \text{ elsewhere}

    brought to [0, 1] by its least and greatest value.

    Byun and Lee, *ReciproCAM: Lightweight Gradient-free Class Activation Map for Post-hoc Explanations*, CVPR Workshops
    2024, https://arxiv.org/abs/2209.14074. For tokens, with one variant per patch beside the class token and registers,
    which stay: Byun and Lee, *ViT-ReciproCAM*, 2023, https://arxiv.org/abs/2310.02588.

    One pass per place of each level, of what lies behind the layer alone, shared by all targets of an image.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`; it may only pick and rearrange values.
        gaussian: whether neighbours of the place are seen too, as above; else the place alone.
    """

    name = "reciprocam"
    paper = "Byun and Lee, ReciproCAM, CVPR Workshops 2024, https://arxiv.org/abs/2209.14074"
    cost = "1 forward, 1 a place behind the layer for all targets"
    use = "fast maps without gradients, of ViT tokens too"
    rectified = False

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        gaussian: bool = True,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.gaussian = gaussian

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        return [self._map(behind, number) for behind in layer_replays(scorer) for number in range(len(behind.levels))]

    def _map(self, behind: LayerReplay, number: int) -> Tensor:
        """(N, h, w) scores of one level's places."""
        level = behind.levels[number].values
        height, width = level.shape[1:]
        rows, columns = (self._around(size).to(level) for size in (height, width))

        def hide(part: slice) -> Tensor:
            places = torch.arange(part.start, part.stop, device=level.device)
            masks = rows[places // width][:, :, None] * columns[places % width][:, None, :]
            return level * masks[:, None]

        scores = behind.score_variants(number, height * width, hide)
        return scores.T.reshape(-1, height, width).to(level.device, work_dtype(level))

    def _around(self, size: int) -> Tensor:
        """(size, size): in row i, how much of each cell along an axis is seen from cell i."""
        if not self.gaussian:
            return torch.eye(size)
        return sum(
            weight / 2 * torch.ones(size - abs(step)).diag(step)
            for step, weight in zip((-1, 0, 1), KERNEL, strict=True)
            if abs(step) < size
        )  # type: ignore[return-value]
