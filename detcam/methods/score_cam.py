"""ScoreCAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter
from detcam.geometry import Geometry
from detcam.perturbation.base import ImageScorer, WeightedCAM, default_batch_size
from detcam.perturbation.replay import LayerReplay, layer_replays
from detcam.trace import ReshapeTransform

CHEAP_SHARE = 0.05
"""Up to this share of the network behind the layer, running it for every channel costs little beside full passes."""


class ScoreCAM(WeightedCAM):
    r"""Weights each channel by the score of the image seen through it.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big),\quad
        \alpha_k = \frac{\exp S_k}{\sum_j \exp S_j},\quad S_k = y(X \circ s(\mathrm{Up}(A^k)))

    with Up the bilinear resize to the network's input (corners aligned) and s the normalisation to [0, 1]. The
    paper's baseline y(0) cancels in the softmax. The softmax tells channels apart by differences of about 1: explain
    logits (``quantity="logit"`` for a box), as the paper does; a score in [0, 1] weights all channels almost alike.

    Wang et al., *Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks*, CVPR Workshops
    2020, https://arxiv.org/abs/1910.01279.

    One full pass per channel and level, shared by all targets of an image. With `top_channels`, only the channels of
    the greatest energy have one. Where little of the network lies behind the layer, the others' scores are predicted:
    by the score of the activation, instead of the image, seen through the channel, and a straight line from these
    to the known scores. They count as far as that line holds among the known, by its R squared.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        top_channels: how many channels of each level have a pass of their own; None for all, as in the paper.

    Attributes:
        batch_size: images, masked ones too, per forward pass.
    """

    name = "scorecam"
    paper = "Wang et al., Score-CAM, CVPR Workshops 2020, https://arxiv.org/abs/1910.01279"
    cost = "1 forward a channel for all targets"
    use = "classification without gradients; `top_channels` saves most of it"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        top_channels: int | None = None,
    ) -> None:
        if top_channels is not None and top_channels < 1:
            raise ValueError(f"expected top_channels of at least 1, or None for all; got {top_channels}")
        super().__init__(model, target_layers, reshape_transform)
        self.top_channels = top_channels
        self.batch_size = default_batch_size(self.adapter.device)

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        most = max(len(level) for level in scorer.levels)
        if self.top_channels is None or self.top_channels >= most:
            weights = [_scores(scorer, level, torch.arange(len(level))).softmax(0).T for level in scorer.levels]
        else:
            weights = [
                self._some(scorer, behind, number)
                for behind in layer_replays(scorer)
                for number in range(len(behind.levels))
            ]
        return [self.weighted_sum(row, level, scorer) for row, level in zip(weights, scorer.levels, strict=True)]

    def _some(self, scorer: ImageScorer, behind: LayerReplay, number: int) -> Tensor:
        """(N, C) weights of one level, of whose channels only some have a pass of their own."""
        level = behind.levels[number].values
        energy = level.double().square().sum((1, 2))
        chosen = energy.argsort(descending=True, stable=True)[: self.top_channels].cpu()
        known = _scores(scorer, level, chosen)
        scores = known.new_zeros((len(level), known.shape[1]))
        trust = torch.zeros_like(scores)
        if behind.downstream_fraction <= CHEAP_SHARE and len(chosen) < len(level):
            predicted = (
                behind.score_variants(number, len(level), lambda part: _through_itself(level, part)).double().cpu()
            )
            scores, trust = _line(predicted[chosen], known, predicted)
        scores[chosen] = known
        trust[chosen] = 1
        weights = trust * (scores - scores.amax(0)).exp()
        return (weights / weights.sum(0)).T


def _scores(scorer: ImageScorer, level: Tensor, channels: Tensor) -> Tensor:
    """(K, N) float64 scores of the image seen through some channels (K,) of a level (C, h, w)."""
    image = scorer.batch.inputs
    constant = level.flatten(1).amin(1) == level.flatten(1).amax(1)
    blind = constant.cpu()[channels]  # through a constant channel nothing is seen, whichever channel it is
    seeing = channels[~blind]
    count = len(seeing) + int(blind.any())

    def change(part: slice) -> Tensor:
        masks = level.new_zeros((part.stop - part.start, *image.shape[-2:]))
        here = seeing[part]
        masks[: len(here)] = masks_of(level[here.to(level.device)], scorer.geometry)
        return image * masks[:, None].to(image.dtype)

    found = scorer.score_variants(count, change).double().cpu()
    scores = found[-1].repeat(len(channels), 1)
    scores[~blind] = found[: len(seeing)]
    return scores


def masks_of(channels: Tensor, geometry: Geometry) -> Tensor:
    """Channels (K, h, w) as masks (K, H, W) in [0, 1] over the network's input; constant channels become 0.

    Least and greatest value are those on the image, not on padding.
    """
    size = geometry.input_size_hw
    masks = F.interpolate(channels[:, None], size, mode="bilinear", align_corners=True)[:, 0]
    rows, columns = geometry.valid_cells(size)
    return _stretched(masks, masks[:, rows, columns])


def _through_itself(level: Tensor, part: slice) -> Tensor:
    """The level (k, C, h, w) seen through some of its own channels."""
    masks = _stretched(level[part], level[part])
    return level * masks[:, None]


def _stretched(maps: Tensor, inside: Tensor) -> Tensor:
    """Maps (K, h, w) moved and scaled so that their values `inside` fill [0, 1]; others are cut to that."""
    low, high = inside.amin((1, 2), keepdim=True), inside.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low + 1e-8)).clamp(0, 1)


def _line(x: Tensor, y: Tensor, everywhere: Tensor) -> tuple[Tensor, Tensor]:
    """Straight lines y(x) per column, fitted to K rows: their values everywhere, and the adjusted R squared there.

    R squared is 0 for a line that falls: to see more of what speaks for a target cannot lower its score.
    """
    rows = len(x)
    dx, dy = x - x.mean(0), y - y.mean(0)
    slope = (dx * dy).sum(0) / dx.square().sum(0).clamp(min=1e-12)
    left = (dy - slope * dx).square().sum(0)
    share = 1 - left / dy.square().sum(0).clamp(min=1e-12) * (rows - 1) / max(rows - 2, 1)
    share = torch.where((slope > 0) & (rows > 2), share.clamp(0, 1), torch.zeros_like(share))
    return y.mean(0) + slope * (everywhere - x.mean(0)), share.expand(len(everywhere), -1).clone()
