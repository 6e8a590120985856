"""AblationCAM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter
from detcam.perturbation.base import ImageScorer, WeightedCAM
from detcam.perturbation.replay import LayerReplay, layer_replays
from detcam.trace import ReshapeTransform


class AblationCAM(WeightedCAM):
    r"""Weights each channel by the share of the score that is lost without it.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k w_k A^k\Big),\quad w_k = \frac{y - y_k}{|y|}

    with :math:`y_k` the score when channel k of the layer is set to zero. The paper divides by y, which is positive
    there; the magnitude keeps the sign of the loss where a score is negative, so that a channel without which the
    score falls always counts for the target. For a map in [0, 1] the divisor makes no difference.

    Desai and Ramaswamy, *Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization*, WACV 2020,
    https://openaccess.thecvf.com/content_WACV_2020/html/Desai_Ablation-CAM_WACV_2020_paper.html.

    Only what lies behind the layer runs again, for many channels at once and for all targets of an image together.
    Of tokens, a channel is ablated on the patches; class tokens and registers keep it.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`; it may only pick and rearrange values.
        ratio_channels_to_ablate: share of each level's channels, in (0, 1], that is ablated: those with the greatest
            energy (sum of squares). The others weigh 0.
    """

    name = "ablationcam"
    paper = "Desai and Ramaswamy, Ablation-CAM, WACV 2020, https://doi.org/10.1109/WACV45572.2020.9093360"
    cost = "1 forward, 1 a channel behind the layer for all targets"
    use = "classifiers whose gradients cannot be trusted"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        if not 0 < ratio_channels_to_ablate <= 1:
            raise ValueError(f"expected ratio_channels_to_ablate in (0, 1]; got {ratio_channels_to_ablate}")
        super().__init__(model, target_layers, reshape_transform)
        self.ratio_channels_to_ablate = ratio_channels_to_ablate

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        return [
            self.weighted_sum(self._weights(behind, number), level.values, scorer)
            for behind in layer_replays(scorer)
            for number, level in enumerate(behind.levels)
        ]

    def _weights(self, behind: LayerReplay, number: int) -> Tensor:
        """(N, C) weights of one level's channels."""
        level = behind.levels[number].values
        energy = level.double().square().sum((1, 2))
        most = math.ceil(self.ratio_channels_to_ablate * len(level))
        channels = energy.argsort(descending=True, stable=True)[:most]
        channels = channels[energy[channels] > 0]  # without a channel that is zero already, nothing changes

        def ablate(part: slice) -> Tensor:
            chosen = channels[part]
            variants = level.repeat(len(chosen), 1, 1, 1)
            variants[torch.arange(len(chosen), device=level.device), chosen] = 0
            return variants

        values = behind.scorer.values
        weights = torch.zeros((len(values), len(level)), dtype=torch.float64)
        if len(channels):
            scores = behind.score_variants(number, len(channels), ablate).double().cpu()
            weights[:, channels.cpu()] = (values - scores).T
        scale = values.abs()
        return weights / torch.where(scale > 0, scale, 1)[:, None]
