"""Ablation-CAM."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.layers import LayersLike
from detcam.perturbation.base import ImageScorer, WeightedCAM
from detcam.perturbation.replay import LayerReplay, layer_replays
from detcam.trace import ReshapeTransform
from detcam.utils.batching import check_count
from detcam.utils.precision import to_float64
from detcam.utils.warnings import warn


class AblationCAM(WeightedCAM):
    r"""Weights each channel by the relative drop of the score when the channel is set to zero.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k w_k A^k\Big),\quad w_k = \frac{y - y_k}{|y|}

    with :math:`A^k` channel k of the target layer's activation, y the target's score and :math:`y_k` the score without
    channel k. The paper divides by y, which is positive there; the magnitude keeps the sign of the drop for negative
    scores. For a map in [0, 1] the divisor makes no difference.

    Desai and Ramaswamy, *Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization*, WACV 2020,
    https://openaccess.thecvf.com/content_WACV_2020/html/Desai_Ablation-CAM_WACV_2020_paper.html.

    Use it for classifiers with saturated or noisy gradients. Only the modules downstream of the layer run again, for
    many channels at once and for all targets of an image together. For tokens, a channel is ablated on the patches;
    class tokens and registers keep it.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`; it may only select and rearrange values.
        ablation_layer: accepted for compatibility with ``pytorch_grad_cam`` and not used; every layer can be ablated.
        batch_size: images per forward pass. Ablated passes are as large as memory permits.
        ratio_channels_to_ablate: fraction of each level's channels, in (0, 1], that are ablated: those of the largest
            energy (sum of squares). The others get weight 0.
    """

    name = "ablationcam"
    paper = "Desai and Ramaswamy, Ablation-CAM, WACV 2020, https://doi.org/10.1109/WACV45572.2020.9093360"
    cost = "1 forward, and 1 downstream of the layer per channel, for all targets"
    use = "classifiers with saturated or noisy gradients"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        ablation_layer: object | None = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        if not 0 < ratio_channels_to_ablate <= 1:
            raise ValueError(f"expected ratio_channels_to_ablate in (0, 1]; got {ratio_channels_to_ablate}")
        check_count(batch_size)
        if ablation_layer is not None:
            warn("AblationCAM ablates every kind of layer itself; ablation_layer is not used", UserWarning)
        super().__init__(model, target_layers, reshape_transform)
        self.batch_size = batch_size
        self.ratio_channels_to_ablate = ratio_channels_to_ablate

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        return [
            self.weighted_sum(self._channel_weights(replay, index), level.values, scorer)
            for replay in layer_replays(scorer)
            for index, level in enumerate(replay.levels)
        ]

    def _channel_weights(self, replay: LayerReplay, index: int) -> Tensor:
        """(N, C) weights of one level's channels."""
        level = replay.levels[index].values
        energy = to_float64(level).square().sum((1, 2))
        count = math.ceil(self.ratio_channels_to_ablate * len(level))
        channels = energy.argsort(descending=True, stable=True)[:count]
        channels = channels[energy[channels] > 0]  # ablating a channel of zeros changes nothing

        def ablate(part: slice) -> Tensor:
            ablated = channels[part]
            variants = level.repeat(len(ablated), 1, 1, 1)
            variants[torch.arange(len(ablated), device=level.device), ablated] = 0
            return variants

        values = replay.scorer.values
        weights = torch.zeros((len(values), len(level)), dtype=torch.float64)
        if len(channels):
            scores = replay.score_variants(index, len(channels), ablate).cpu().double()
            weights[:, channels.cpu()] = (values - scores).T
        scale = values.abs()
        return weights / torch.where(scale > 0, scale, 1)[:, None]
