"""Score-CAM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.adapters.base import ModelLike
from detcam.geometry import Geometry
from detcam.layers import LayersLike
from detcam.perturbation.base import ImageScorer, WeightedCAM, default_batch_size
from detcam.perturbation.replay import LayerReplay, layer_replays
from detcam.trace import ReshapeTransform
from detcam.utils.precision import to_float64

MAX_DOWNSTREAM_FRACTION = 0.05
"""Maximum downstream fraction at which replaying the layer for every channel is cheap compared with full passes."""


class ScoreCAM(WeightedCAM):
    r"""Weights each channel by the score of the image masked by the channel.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big),\quad
        \alpha_k = \frac{\exp S_k}{\sum_j \exp S_j},\quad S_k = y(X \circ s(\mathrm{Up}(A^k)))

    with :math:`A^k` channel k of the target layer's activation, X the image, y the target's score, Up the bilinear
    resize to the network's input (corners aligned) and s the scaling to [0, 1]. The paper's baseline y(0) cancels in
    the softmax. The softmax resolves differences of about 1, so explain logits (``quantity="logit"`` for a box), as the
    paper does; scores in [0, 1] give almost equal weights.

    Wang et al., *Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks*, CVPR Workshops
    2020, https://arxiv.org/abs/1910.01279.

    Use it for classification without gradients. It takes one full pass per channel and level, shared by all targets of
    an image. With `top_channels`, only the channels of the largest energy have one. If the downstream fraction of the
    layer is small, the scores of the others are predicted: by linear regression of the known scores on the scores of
    the activation, instead of the image, masked by each channel. They are weighted by the R squared of the regression.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        top_channels: number of channels of each level that have a pass of their own; None takes all, as in the paper.

    Attributes:
        batch_size: images, masked ones included, per forward pass.
    """

    name = "scorecam"
    paper = "Wang et al., Score-CAM, CVPR Workshops 2020, https://arxiv.org/abs/1910.01279"
    cost = "1 forward per channel for all targets"
    use = "classification without gradients; `top_channels` reduces the cost"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        top_channels: int | None = None,
    ) -> None:
        if top_channels is not None and top_channels < 1:
            raise ValueError(f"expected top_channels of at least 1, or None for all; got {top_channels}")
        super().__init__(model, target_layers, reshape_transform)
        self.top_channels = top_channels
        self.batch_size = default_batch_size(self.adapter.device)

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        channels = max(len(level) for level in scorer.levels)
        if self.top_channels is None or self.top_channels >= channels:
            weights = [_masked_scores(scorer, level, torch.arange(len(level))).softmax(0).T for level in scorer.levels]
        else:
            weights = [
                self._top_channel_weights(scorer, replay, index)
                for replay in layer_replays(scorer)
                for index in range(len(replay.levels))
            ]
        return [self.weighted_sum(row, level, scorer) for row, level in zip(weights, scorer.levels, strict=True)]

    def _top_channel_weights(self, scorer: ImageScorer, replay: LayerReplay, index: int) -> Tensor:
        """(N, C) weights of one level, of which only the top channels have a pass of their own."""
        level = replay.levels[index].values
        energy = to_float64(level).square().sum((1, 2))
        top = energy.argsort(descending=True, stable=True)[: self.top_channels].cpu()
        known = _masked_scores(scorer, level, top)
        scores = known.new_zeros((len(level), known.shape[1]))
        confidence = torch.zeros_like(scores)
        if replay.downstream_fraction <= MAX_DOWNSTREAM_FRACTION and len(top) < len(level):
            replayed = replay.score_variants(index, len(level), lambda part: _mask_level(level, part)).cpu().double()
            scores, confidence = _regress(replayed[top], known, replayed)
        scores[top] = known
        confidence[top] = 1
        weights = confidence * (scores - scores.amax(0)).exp()
        return (weights / weights.sum(0)).T


def _masked_scores(scorer: ImageScorer, level: Tensor, channels: Tensor) -> Tensor:
    """(K, N) float64 scores of the image masked by channels (K,) of a level (C, h, w)."""
    image = scorer.batch.inputs
    constant = (level.flatten(1).amin(1) == level.flatten(1).amax(1)).cpu()[channels]
    varying = channels[~constant]
    count = len(varying) + int(constant.any())  # all constant channels give the same mask of zeros

    def mask(part: slice) -> Tensor:
        masks = level.new_zeros((part.stop - part.start, *image.shape[-2:]))
        chosen = varying[part]
        masks[: len(chosen)] = channel_masks(level[chosen.to(level.device)], scorer.geometry)
        return image * masks[:, None].to(image.dtype)

    masked = scorer.score_variants(count, mask).cpu().double()
    scores = masked[-1].repeat(len(channels), 1)
    scores[~constant] = masked[: len(varying)]
    return scores


def channel_masks(channels: Tensor, geometry: Geometry) -> Tensor:
    """Resize channels (K, h, w) to masks (K, H, W) in [0, 1] over the network's input; constant channels become 0.

    The scaling uses the minimum and maximum on the image, without its padding.
    """
    size = geometry.input_size_hw
    masks = F.interpolate(channels[:, None], size, mode="bilinear", align_corners=True)[:, 0]
    rows, columns = geometry.valid_cells(size)
    return _scaled(masks, masks[:, rows, columns])


def _mask_level(level: Tensor, part: slice) -> Tensor:
    """The level (k, C, h, w) masked by a slice of its own channels."""
    masks = _scaled(level[part], level[part])
    return level * masks[:, None]


def _scaled(maps: Tensor, inside: Tensor) -> Tensor:
    """Scale maps (K, h, w) so that their values `inside` span [0, 1], and clip the others."""
    low, high = inside.amin((1, 2), keepdim=True), inside.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low + 1e-8)).clamp(0, 1)


def _regress(x: Tensor, y: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a line y(x) per column to K rows, and return its values and the adjusted R squared at `points`.

    R squared is 0 for a decreasing line: showing more of the evidence cannot lower the score.
    """
    rows = len(x)
    dx, dy = x - x.mean(0), y - y.mean(0)
    slope = (dx * dy).sum(0) / dx.square().sum(0).clamp(min=1e-12)
    residual = (dy - slope * dx).square().sum(0)
    r_squared = 1 - residual / dy.square().sum(0).clamp(min=1e-12) * (rows - 1) / max(rows - 2, 1)
    r_squared = torch.where((slope > 0) & (rows > 2), r_squared.clamp(0, 1), torch.zeros_like(r_squared))
    return y.mean(0) + slope * (points - x.mean(0)), r_squared.expand(len(points), -1).clone()
