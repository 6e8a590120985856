"""Region pooling that is differentiable any number of times; torchvision's is differentiable once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import ops


@dataclass(frozen=True)
class _Pooling:
    """Pooling parameters: the feature map's shape, (h, w) bins per box, cells per input pixel, samples per bin."""

    shape: tuple[int, ...]
    bins: tuple[int, int]
    scale: float
    samples: int


def roi_align(
    features: Tensor, boxes: Sequence[Tensor], output_size: Sequence[int], scale: float, sampling_ratio: int
) -> Tensor:
    """Pool regions like `torchvision.ops.roi_align`, differentiable in the features any number of times.

    Pooling is linear in the features, so the derivative of its adjoint is pooling.

    Args:
        features: (B, C, h, w).
        boxes: per image (K_i, 4), input pixels.
        output_size: height and width of the pooled regions, in bins.
        scale: cells per input pixel.
        sampling_ratio: samples per bin and axis; -1 derives them from the box's size.

    Returns:
        (K, C, output_size[0], output_size[1]).
    """
    bins = (int(output_size[0]), int(output_size[1]))
    pooling = _Pooling(tuple(features.shape), bins, float(scale), int(sampling_ratio))
    return _Pool.apply(features, ops._utils.convert_boxes_to_roi_format(list(boxes)), pooling)


class _Pool(torch.autograd.Function):
    """From features to regions."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, regions: Tensor, pooling: _Pooling) -> Tensor:
        ctx.regions, ctx.pooling = regions, pooling
        return ops.roi_align(features, regions, pooling.bins, pooling.scale, pooling.samples)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Spread.apply(gradients[0], ctx.regions, ctx.pooling), None, None


class _Spread(torch.autograd.Function):
    """The adjoint: from regions back to features."""

    @staticmethod
    def forward(ctx: Any, pooled: Tensor, regions: Tensor, pooling: _Pooling) -> Tensor:
        ctx.regions, ctx.pooling = regions, pooling
        return torch.ops.torchvision._roi_align_backward(
            pooled.contiguous(), regions, pooling.scale, *pooling.bins, *pooling.shape, pooling.samples, False
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Pool.apply(gradients[0], ctx.regions, ctx.pooling), None, None
