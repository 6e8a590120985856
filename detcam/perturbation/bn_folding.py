"""Batch-norm folding: convolutions absorb the normalization that follows them while perturbed images are scored."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detcam.utils.hooks import active_hooks, complete
from detcam.utils.precision import to_float64

MAX_OUTPUT_BYTES = 28 * 2**20
"""Maximum size of a layer's output in a pass on a CPU. From 32 MiB on, the Linux allocator requests fresh pages
from the system for every layer; larger outputs also exceed small caches."""
ACTIVATIONS = (nn.SiLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish)
"""Activations that can work in place."""


class BatchNormFolding:
    """Folds normalization layers into the preceding convolutions, for passes without gradients.

    A normalization with running statistics whose only input is a convolution's output is a scale and a shift per
    channel, which are merged into the convolution's weights. Activations after a convolution or a normalization work in
    place, which spares an allocation each. The result is equal up to rounding if no other module reads the tensor in
    between; callers must compare the model's outputs. On a CPU, 1 x 1 convolutions are dispatched to oneDNN, which
    PyTorch does not use when it runs on one thread.

    Args:
        model: the whole network, inside `guarded`.

    Attributes:
        largest_output: size in bytes of the largest output of a convolution in the recorded pass; 0 if none ran.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.largest_output = 0
        self._producers: dict[int, tuple[nn.Module, weakref.ref[Tensor], int]] = {}
        self._inputs_of: dict[nn.Module, list[nn.Module | None]] = {}
        self._runs: dict[nn.Module, int] = {}
        self._forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        self._convolutions: list[Any] = []
        self._fresh: dict[nn.Module, bool] = {}
        self._in_place: list[nn.Module] = []

    @property
    def is_applicable(self) -> bool:
        """Whether the model has a layer that folding or oneDNN may speed up."""
        return any(_is_affine(module) or _is_pointwise(module) for module in self.model.modules())

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record the producer of every normalization's input during one pass, and prepare the folded layers."""
        after: list[tuple[nn.Module, Any]] = []
        before: list[tuple[nn.Module, Any]] = []
        for module in self.model.modules():
            unhooked = not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
            if unhooked and _is_convolution(module):
                after.append((module, self._record_output))
            elif unhooked and _is_affine(module):
                before.append((module, self._record_input))
                after.append((module, self._record_normalized))
            elif unhooked and type(module) in ACTIVATIONS and not module.inplace:
                before.append((module, self._record_activation))
        try:
            with active_hooks(after, before=before):
                yield
        finally:
            self._producers.clear()
        folded: dict[nn.Module, Any] = {module: copy.copy(module) for module in self._runs}
        for norm, producers in self._inputs_of.items():
            producer = producers[0]
            if producer is not None and set(producers) == {producer} and len(producers) == self._runs[producer]:
                folded[producer] = _fold(producer, norm)
                self._forwards.append((norm, _activation_of(norm)))
        for module, convolution in folded.items():
            pointwise = _is_pointwise(convolution)
            self._forwards.append((module, _OneDNNConvolution(convolution) if pointwise else convolution.forward))
        self._convolutions = list(folded.values())
        self._in_place = [activation for activation, is_fresh in self._fresh.items() if is_fresh]
        self.set_memory_format(torch.channels_last)

    def set_memory_format(self, memory_format: torch.memory_format) -> None:
        """Convert the weights to the memory format of the inputs, instead of a conversion in every pass."""
        for convolution in self._convolutions:
            if convolution.weight.dtype == torch.float32 and convolution.weight.device.type == "cpu":
                weight = convolution.weight.detach().contiguous(memory_format=memory_format)
                convolution._parameters = {
                    **convolution._parameters,
                    "weight": nn.Parameter(weight, requires_grad=False),
                }

    def disable(self) -> None:
        """Discard the folded layers; `largest_output` is kept."""
        self._forwards.clear()
        self._convolutions.clear()
        self._in_place.clear()

    def _record_output(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._runs[module] = self._runs.get(module, 0) + 1
        self._record_normalized(module, inputs, output)
        self.largest_output = max(self.largest_output, output.numel() * output.element_size())

    def _record_normalized(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._producers[id(output)] = (module, weakref.ref(output), output._version)

    def _record_input(self, module: nn.Module, inputs: Any) -> None:
        producer = self._producer(inputs[0])
        self._inputs_of.setdefault(module, []).append(producer if _is_convolution(producer) else None)

    def _record_activation(self, module: nn.Module, inputs: Any) -> None:
        self._fresh[module] = self._fresh.get(module, True) and self._producer(inputs[0]) is not None

    def _producer(self, value: Tensor) -> nn.Module | None:
        """The convolution or normalization whose output a tensor is, unchanged."""
        producer, reference, version = self._producers.get(id(value), (None, None, 0))
        unchanged = reference is not None and reference() is value and value._version == version
        return producer if unchanged else None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the forward methods of the folded layers inside the context."""

        def restore() -> None:
            for module, _ in self._forwards:
                vars(module).pop("forward", None)
            for activation in self._in_place:
                vars(activation)["inplace"] = False

        try:
            for module, forward in self._forwards:
                vars(module)["forward"] = forward  # as an assignment, without the checks of nn.Module in every pass
            for activation in self._in_place:
                vars(activation)["inplace"] = True
            yield
        finally:
            complete(restore)


class _OneDNNConvolution:
    """A 1 x 1 convolution dispatched to oneDNN."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution: Any = convolution

    def __call__(self, value: Tensor) -> Tensor:
        conv = self.convolution
        if value.ndim != 4 or value.dtype != torch.float32 or not value.numel():
            return type(conv).forward(conv, value)
        return torch.mkldnn_convolution(
            value, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups
        )


def _is_convolution(module: Any) -> bool:
    """Whether a module is a 2-d convolution, linear in its weight; timm's variant pads its input itself."""
    known = type(module) is nn.Conv2d or _is_of_timm(module, "Conv2dSame")
    return known and module.weight.dtype in (torch.float32, torch.float64)


def _is_pointwise(module: Any) -> bool:
    """Whether a module is a 1 x 1 convolution that oneDNN supports."""
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
    """Whether a normalization applies a fixed scale and shift per channel; it may include an activation."""
    if type(module) is nn.BatchNorm2d or _is_of_timm(module, "BatchNormAct2d"):
        return module.running_mean is not None and module.running_var is not None
    return type(module) is FrozenBatchNorm2d


def _is_of_timm(module: nn.Module, name: str) -> bool:
    return type(module).__name__ == name and type(module).__module__.startswith("timm.")


def _activation_of(norm: Any) -> Callable[[Tensor], Tensor]:
    """The part of a normalization layer that remains after folding."""
    if _is_of_timm(norm, "BatchNormAct2d"):
        return lambda value: norm.act(norm.drop(value))
    return _identity


def _identity(value: Tensor) -> Tensor:
    return value


def _fold(convolution: Any, norm: Any) -> Any:
    """A copy of the convolution that includes the normalization; it shares all but weight and bias."""
    scale = (to_float64(norm.running_var) + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * to_float64(norm.weight)
    offset = 0.0 if convolution.bias is None else to_float64(convolution.bias)
    bias = (offset - to_float64(norm.running_mean)) * scale
    bias = bias if norm.bias is None else bias + to_float64(norm.bias)
    weight = to_float64(convolution.weight) * scale[:, None, None, None]
    folded = copy.copy(convolution)
    folded._parameters = {
        name: nn.Parameter(tensor.to(convolution.weight), requires_grad=False)
        for name, tensor in (("weight", weight), ("bias", bias))
    }
    return folded
