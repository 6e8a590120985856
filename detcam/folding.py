"""Convolutions that take over the normalisation behind them while many changed pictures are scored."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class Folding:
    """Convolutions that take over the normalisation behind them, for passes without gradients.

    A normalisation with running statistics that reads a convolution's output and nothing else is a scale and a shift
    per channel, which go into the convolution's weights. Values stay the same up to rounding, provided that nobody
    else reads what is between the two: whoever folds compares what comes out.

    Args:
        model: the whole network, inside `guarded`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._made: dict[int, tuple[nn.Module, weakref.ref[Tensor], int]] = {}
        self._pairs: dict[nn.Module, list[nn.Module | None]] = {}
        self._runs: dict[nn.Module, int] = {}
        self._folded: list[tuple[Any, Any, Tensor, Tensor]] = []

    @property
    def possible(self) -> bool:
        """Whether the model has a normalisation that might be folded."""
        return any(_is_affine(module) for module in self.model.modules())

    @contextmanager
    def record(self) -> Iterator[None]:
        """Around one pass, in which is seen who reads whose output."""
        handles: list[Any] = []
        for module in self.model.modules():
            plain = not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
            if plain and type(module) is nn.Conv2d and module.weight.dtype in (torch.float32, torch.float64):
                handles.append(module.register_forward_hook(self._makes))
            elif plain and _is_affine(module):
                handles.append(module.register_forward_pre_hook(self._reads))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._made.clear()
        for norm, makers in self._pairs.items():
            maker = makers[0]
            if maker is not None and set(makers) == {maker} and len(makers) == self._runs[maker]:
                self._folded.append((maker, norm, *_folded(maker, norm)))

    def _makes(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._runs[module] = self._runs.get(module, 0) + 1
        self._made[id(output)] = (module, weakref.ref(output), output._version)

    def _reads(self, module: nn.Module, inputs: Any) -> None:
        value: Any = inputs[0]
        found = self._made.get(id(value))
        same = found is not None and found[1]() is value and inputs[0]._version == found[2]
        self._pairs.setdefault(module, []).append(found[0] if found is not None and same else None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Around passes that run folded."""
        try:
            for convolution, norm, weight, bias in self._folded:
                convolution.forward = partial(convolution._conv_forward, weight=weight, bias=bias)
                norm.forward = _same
            yield
        finally:
            for convolution, norm, _, _ in self._folded:
                vars(convolution).pop("forward", None)
                vars(norm).pop("forward", None)


def _same(value: Tensor) -> Tensor:
    return value


def _is_affine(module: nn.Module) -> bool:
    """Whether a normalisation scales and shifts each channel by fixed numbers."""
    if type(module) is nn.BatchNorm2d:
        return module.running_mean is not None and module.running_var is not None
    return type(module) is FrozenBatchNorm2d


def _folded(convolution: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what both did."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    before = 0.0 if convolution.bias is None else convolution.bias.double()
    bias = (before - norm.running_mean.double()) * scale
    bias = bias if norm.bias is None else bias + norm.bias.double()
    weight = convolution.weight.double() * scale[:, None, None, None]
    return weight.to(convolution.weight), bias.to(convolution.weight)
