"""Windows of a feature map in the receptive field of single cells, on which a dense head runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetRegressionHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d

_HEADS = (FCOSClassificationHead, FCOSRegressionHead, RetinaNetClassificationHead, RetinaNetRegressionHead, RPNHead)
"""Containers whose forward pass is known to be their modules in sequence or in parallel."""

_POINTWISE = (
    FrozenBatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)


def reach(head: nn.Module) -> int | None:
    """Return the radius of a head's receptive field in cells, or None where it may be the whole map.

    The radius is an upper bound: the sum over the head's convolutions, as if all were in sequence. Modules other than
    stride-1 "same" convolutions and pointwise layers, such as group normalization or a custom module, may see the
    whole map.
    """
    total = 0
    for module in head.modules():
        if type(module) in _HEADS or type(module).forward is nn.Sequential.forward or isinstance(module, _POINTWISE):
            continue
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            continue
        if not isinstance(module, nn.Conv2d) or not _keeps_size(module):
            return None
        total += max((size - 1) // 2 * step for size, step in zip(module.kernel_size, module.dilation, strict=True))
    return total


def max_reach(heads: Iterable[nn.Module]) -> int | None:
    """Return the maximum reach of parallel heads, or None where one of them may see the whole map."""
    reaches = [reach(head) for head in heads]
    known = [value for value in reaches if value is not None]
    return max(known) if len(known) == len(reaches) else None


def cut(feature: Tensor, cells: Tensor, radius: int) -> tuple[list[Tensor], Tensor]:
    """Cut windows around cells.

    Near a border, windows are moved inwards and not padded, so that the head's zero padding is at the same cells as on
    the whole map.

    Args:
        feature: (1, C, h, w).
        cells: (K,) flat indices into h x w.
        radius: the head's reach.

    Returns:
        K windows (1, C, sh, sw) of one size, and the flat index (K,) of each cell within its window.
    """
    height, width = feature.shape[-2:]
    tall, wide = min(2 * radius + 1, height), min(2 * radius + 1, width)
    rows, columns = cells // width, cells % width
    tops = (rows - radius).clamp(0, height - tall)
    lefts = (columns - radius).clamp(0, width - wide)
    windows = [
        _Window.apply(feature, top, left, tall, wide) for top, left in zip(tops.tolist(), lefts.tolist(), strict=True)
    ]
    return windows, (rows - tops) * wide + (columns - lefts)


class _Window(torch.autograd.Function):
    """A window of a map (1, C, h, w). Its backward pass fills one map; that of slices fills one for each axis."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, top: int, left: int, tall: int, wide: int) -> Tensor:
        ctx.place = (..., slice(top, top + tall), slice(left, left + wide))
        ctx.shape = feature.shape
        return feature[ctx.place].clone()

    @staticmethod
    def backward(ctx: Any, *received: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient = received[0].new_zeros(ctx.shape)
        gradient[ctx.place] = received[0]
        return gradient, None, None, None, None


def restore_order(parts: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
    """Concatenate rows that were computed level by level, in the order of their positions."""
    order = torch.tensor(positions, device=parts[0].device).argsort()
    return torch.cat(list(parts))[order]


def _keeps_size(convolution: nn.Conv2d) -> bool:
    """Return whether a convolution keeps the map's size and pads with zeros."""
    if convolution.padding_mode != "zeros" or tuple(convolution.stride) != (1, 1):
        return False
    if convolution.padding == "same":
        return all(size % 2 == 1 for size in convolution.kernel_size)
    return not isinstance(convolution.padding, str) and all(
        size % 2 == 1 and pad == (size - 1) // 2 * step
        for size, pad, step in zip(convolution.kernel_size, convolution.padding, convolution.dilation, strict=True)
    )
