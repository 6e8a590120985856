"""Region pooling that can be differentiated twice; torchvision's own can be differentiated only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import ops


@dataclass(frozen=True)
class _Window:
    """How boxes are pooled: the feature map's shape, (h, w) bins per box, input pixels to cells, samples per bin."""

    shape: tuple[int, ...]
    bins: tuple[int, int]
    scale: float
    samples: int


def roi_align(
    features: Tensor, boxes: Sequence[Tensor], output_size: Sequence[int], scale: float, sampling_ratio: int
) -> Tensor:
    """As `torchvision.ops.roi_align`, differentiable in the features as often as wanted.

    Pooling is linear in the features, so the derivative of its adjoint is pooling again.

    Args:
        features: (B, C, h, w).
        boxes: per image (K_i, 4), input pixels.
        output_size: height and width of what is pooled, in bins.
        scale: cells per input pixel.
        sampling_ratio: samples per bin and axis; -1 lets the box's size decide.

    Returns:
        (K, C, output_size[0], output_size[1]).
    """
    bins = (int(output_size[0]), int(output_size[1]))
    window = _Window(tuple(features.shape), bins, float(scale), int(sampling_ratio))
    pooled: Tensor = _Pool.apply(features, ops._utils.convert_boxes_to_roi_format(list(boxes)), window)
    return pooled


class _Pool(torch.autograd.Function):
    """From features to regions."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, regions: Tensor, window: _Window) -> Tensor:
        ctx.regions, ctx.window = regions, window
        return ops.roi_align(features, regions, window.bins, window.scale, window.samples)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Spread.apply(gradients[0], ctx.regions, ctx.window), None, None


class _Spread(torch.autograd.Function):
    """The adjoint: from regions back to features."""

    @staticmethod
    def forward(ctx: Any, pooled: Tensor, regions: Tensor, window: _Window) -> Tensor:
        ctx.regions, ctx.window = regions, window
        return torch.ops.torchvision._roi_align_backward(
            pooled.contiguous(), regions, window.scale, *window.bins, *window.shape, window.samples, False
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Pool.apply(gradients[0], ctx.regions, ctx.window), None, None
