"""Convolutions that take over the normalisation behind them while many changed images are scored."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

CACHED = 28 * 2**20
"""Bytes of one layer's output that a pass on a CPU should not exceed: from 32 MiB on Linux's allocator takes fresh
pages from the system for every layer, and where the cache is small, more leaves it."""


class Folding:
    """Convolutions that take over the normalisation behind them, for passes without gradients.

    A normalisation with running statistics that reads a convolution's output and nothing else is a scale and a shift
    per channel, which go into the convolution's weights. Values stay the same up to rounding, provided that nobody
    else reads what is between the two: whoever folds compares what comes out. On a CPU, convolutions of single pixels
    go to oneDNN, which PyTorch leaves out when it runs on one thread.

    Args:
        model: the whole network, inside `guarded`.

    Attributes:
        largest: bytes of the largest output of a convolution or normalisation in the pass that was recorded; 0 where
            none ran.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.largest = 0
        self._made: dict[int, tuple[nn.Module, weakref.ref[Tensor], int]] = {}
        self._pairs: dict[nn.Module, list[nn.Module | None]] = {}
        self._runs: dict[nn.Module, int] = {}
        self._forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        self._convolutions: list[Any] = []

    @property
    def possible(self) -> bool:
        """Whether the model has something that might run faster."""
        return any(_is_affine(module) or _is_pointwise(module) for module in self.model.modules())

    @contextmanager
    def record(self) -> Iterator[None]:
        """Around one pass, in which is seen who reads whose output."""
        handles: list[Any] = []
        for module in self.model.modules():
            plain = not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
            if plain and _is_convolution(module):
                handles.append(module.register_forward_hook(self._makes))
            elif plain and _is_affine(module):
                handles.append(module.register_forward_pre_hook(self._reads))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._made.clear()
        changed: dict[nn.Module, Any] = {module: copy.copy(module) for module in self._runs}
        for norm, makers in self._pairs.items():
            maker = makers[0]
            if maker is not None and set(makers) == {maker} and len(makers) == self._runs[maker]:
                changed[maker] = _folded(maker, norm)
                self._forwards.append((norm, _rest(norm)))
        for module, convolution in changed.items():
            quick = _is_pointwise(convolution)
            self._forwards.append((module, _Pointwise(convolution) if quick else convolution.forward))
        self._convolutions = list(changed.values())
        self.lay_out(torch.channels_last)

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Lay the weights out as inputs will be; the convolutions would do so in every pass."""
        for convolution in self._convolutions:
            if convolution.weight.dtype == torch.float32 and convolution.weight.device.type == "cpu":
                weight = convolution.weight.detach().contiguous(memory_format=memory_format)
                convolution._parameters = {
                    **convolution._parameters,
                    "weight": nn.Parameter(weight, requires_grad=False),
                }

    def forget(self) -> None:
        """Leave all modules as they are; what was measured stays known."""
        self._forwards.clear()
        self._convolutions.clear()

    def _makes(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._runs[module] = self._runs.get(module, 0) + 1
        self._made[id(output)] = (module, weakref.ref(output), output._version)
        self.largest = max(self.largest, output.numel() * output.element_size())

    def _reads(self, module: nn.Module, inputs: Any) -> None:
        value: Any = inputs[0]
        found = self._made.get(id(value))
        same = found is not None and found[1]() is value and inputs[0]._version == found[2]
        self._pairs.setdefault(module, []).append(found[0] if found is not None and same else None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Around passes that run folded."""
        try:
            for module, forward in self._forwards:
                module.forward = forward
            yield
        finally:
            for module, _ in self._forwards:
                vars(module).pop("forward", None)


class _Pointwise:
    """A convolution of single pixels, by oneDNN."""

    def __init__(self, convolution: Any) -> None:
        self.convolution = convolution

    def __call__(self, value: Tensor) -> Tensor:
        own = self.convolution
        if value.ndim != 4 or value.dtype != torch.float32 or not value.numel():
            plain: Tensor = type(own).forward(own, value)
            return plain
        found: Tensor = torch.mkldnn_convolution(
            value, own.weight, own.bias, own.padding, own.stride, own.dilation, own.groups
        )
        return found


def _is_convolution(module: Any) -> bool:
    """Whether a module is a convolution of images, linear in its weight. timm's pads its input by itself."""
    known = type(module) is nn.Conv2d or _is_of_timm(module, "Conv2dSame")
    return known and module.weight.dtype in (torch.float32, torch.float64)


def _is_pointwise(module: Any) -> bool:
    """Whether PyTorch might not use oneDNN for a convolution that it can do."""
    return bool(
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and not isinstance(module.padding, str)
        and module.padding_mode == "zeros"
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )


def _is_affine(module: Any) -> bool:
    """Whether a normalisation scales and shifts each channel by fixed numbers; an activation may be part of it."""
    if type(module) is nn.BatchNorm2d or _is_of_timm(module, "BatchNormAct2d"):
        return module.running_mean is not None and module.running_var is not None
    return type(module) is FrozenBatchNorm2d


def _is_of_timm(module: nn.Module, name: str) -> bool:
    return type(module).__name__ == name and type(module).__module__.startswith("timm.")


def _rest(norm: Any) -> Callable[[Tensor], Tensor]:
    """What a normalisation does beside scaling and shifting."""
    if _is_of_timm(norm, "BatchNormAct2d"):
        return lambda value: norm.act(norm.drop(value))
    return _same


def _same(value: Tensor) -> Tensor:
    return value


def _folded(convolution: Any, norm: Any) -> Any:
    """A convolution that does what both did; it shares all but weight and bias with the first."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    before = 0.0 if convolution.bias is None else convolution.bias.double()
    bias = (before - norm.running_mean.double()) * scale
    bias = bias if norm.bias is None else bias + norm.bias.double()
    weight = convolution.weight.double() * scale[:, None, None, None]
    both = copy.copy(convolution)
    both._parameters = {
        name: nn.Parameter(tensor.to(convolution.weight), requires_grad=False)
        for name, tensor in (("weight", weight), ("bias", bias))
    }
    return both
