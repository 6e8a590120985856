"""One forward pass with hooks on the target layers: their activations and the gradients of scores.

Parameters never receive gradients: they are frozen during the pass, so autograd records nothing before the earliest
target layer, whose activation becomes a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import RLock
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from detcam.utils.checkpointing import without_checkpointing
from detcam.utils.hooks import active_hooks, complete, no_hooks_stay
from detcam.utils.model_lock import exclusive
from detcam.utils.modules import all_modules, parameters_of
from detcam.utils.precision import autocast_precision
from detcam.utils.warnings import warn

ReshapeTransform = Callable[[Any], Any]
"""A function from a layer's output to (B, C, h, w), or to a list of such levels."""

Replace = Callable[[int, int, Any], Any]
"""A function from a layer's index, the number of its earlier runs in the pass, and its output, to the replacement."""

_STANCE_LOCK = RLock()
"""Held while compilation is disabled, which is a setting of the whole process."""

HALF_TYPES = (torch.float16, torch.bfloat16)
"""Types of numbers that are too coarse for small differences."""
HALF_SCALE = 2.0**12
"""Factor on gradients in float16, whose smallest value is 6e-8."""


class Trace:
    """Records the activations of target layers during a forward pass, and computes gradients at them.

    Use inside `guarded`. A layer may run several times in a pass (a head shared by pyramid levels) and may return a
    tensor, or a list, tuple or dict of tensors (a pyramid): every tensor is a *level* of that layer.

    Args:
        layers: the target layers.
        names: the name of each layer, for messages.
        gradients: whether the activations enter autograd.
        reshape_transform: function from a layer's raw output to (B, C, h, w), or to a list of such levels; None takes
            tensors as they are.
        images: number of images of the pass, where inputs may be joined in one batch: a level of a multiple of it is
            split into several. None splits none.
        replace: function that replaces the layers' outputs; the replacement is recorded and differentiated. None
            changes nothing.

    Attributes:
        output: the model's raw output of the pass, set after it: where it depends on the layers, a scalar that does not
            has a gradient of zero instead of an error. One level of a pyramid has no part in the boxes of the others.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        names: Sequence[str],
        *,
        gradients: bool,
        reshape_transform: ReshapeTransform | None = None,
        images: int | None = None,
        replace: Replace | None = None,
    ) -> None:
        self.layers = list(layers)
        self.names = list(names)
        self.wants_gradients = gradients
        self.reshape_transform = reshape_transform
        self.images = images
        self.replace = replace
        self._outputs: list[list[Any]] = [[] for _ in self.layers]
        self._hooks: AbstractContextManager[None] = nullcontext()
        self._held: list[Tensor] | None = None
        self.output: Any = None

    def __enter__(self) -> Trace:
        self._hooks = active_hooks((layer, self._hook(index)) for index, layer in enumerate(self.layers))
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._hooks.__exit__(None, None, None)

    def _hook(self, index: int) -> Callable[..., Any]:
        def hold(module: nn.Module, inputs: Any, output: Any) -> Any:
            if self.replace is not None:
                output = self.replace(index, len(self._outputs[index]), output)
            held = map_tensors(output, self._hold)
            self._outputs[index].append(held)
            # Later modules may work in place (an in-place ReLU), so they get a copy.
            return map_tensors(held, lambda tensor: tensor.clone() if tensor.is_floating_point() else tensor)

        return hold

    def _hold(self, tensor: Tensor) -> Tensor:
        if tensor.is_quantized:
            raise TypeError("a target layer returned a quantized tensor; explain the float model instead")
        if not tensor.is_floating_point() or not self.wants_gradients or tensor.requires_grad:
            return tensor
        return tensor.detach().requires_grad_(True)

    def activations(self) -> list[list[Tensor]]:
        """Return the layers' outputs: per layer a list of levels, each (B, C, h, w), detached.

        Raises:
            RuntimeError: a layer never ran, or returned no tensor.
        """
        return self._shaped(lambda tensor: tensor.detach())

    def live_activations(self) -> list[list[Tensor]]:
        """Return `activations` in the autograd graph of the pass."""
        return self._shaped(lambda tensor: tensor)

    def outputs(self) -> list[list[Any]]:
        """Return the raw outputs of each layer, one entry per run, detached."""
        return [[map_tensors(output, Tensor.detach) for output in runs] for runs in self._outputs]

    def check_depends(self, scalars: Iterable[Tensor]) -> None:
        """Raise RuntimeError if no scalar depends on any of the layers, and neither does the model's output."""
        if not any(scalar.requires_grad for scalar in scalars) and not self._output_depends():
            raise RuntimeError(self._no_path())

    def gradients(self, scalar: Tensor, *, retain_graph: bool) -> list[list[Tensor]]:
        """Return the gradient of a scalar at each layer and level, shaped as `activations`; zero without influence.

        Raises:
            RuntimeError: neither the scalar nor the model's output depends on the layers.
        """
        held = self.held()
        gradients: Sequence[Tensor | None] | None = None
        if scalar.requires_grad:
            gradients = gradients_of(scalar, held, retain_graph=retain_graph)
        if gradients is None or all(gradient is None for gradient in gradients):
            if not self._output_depends():
                raise RuntimeError(self._no_path())
            gradients = [None] * len(held)
        return self._by_layer(gradients)

    def _output_depends(self) -> bool:
        """Whether the autograd graph of the model's output contains a recorded tensor."""
        held = self.held()
        leaves = {id(tensor) for tensor in held}
        nodes = {tensor.grad_fn for tensor in held if tensor.grad_fn is not None}
        tensors = list(_tensors_in(self.output))
        if any(id(tensor) in leaves for tensor in tensors):
            return True
        stack = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
        visited = set(stack)
        while stack:
            node = stack.pop()
            if node in nodes or id(getattr(node, "variable", None)) in leaves:
                return True
            parents = [parent for parent, _ in node.next_functions if parent is not None and parent not in visited]
            visited.update(parents)
            stack.extend(parents)
        return False

    def second_order(self, scalar: Tensor) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Return the gradient, and the Hessian's product with the activation, at each layer and level.

        The Hessian is that of one tensor at a time. The graph is kept.

        Raises:
            RuntimeError: the scalar does not depend on the layers at all, or an operation has no second derivative.
        """
        held = self.held()
        first: Sequence[Tensor | None] = [None] * len(held)
        if scalar.requires_grad:
            first = torch.autograd.grad(scalar, held, create_graph=True, allow_unused=True)
        if all(gradient is None for gradient in first) and not self._output_depends():
            raise RuntimeError(self._no_path())
        products: list[Tensor | None] = []
        for tensor, gradient in zip(held, first, strict=True):
            if gradient is None or not gradient.requires_grad:
                products.append(None)
            else:
                products += torch.autograd.grad(gradient, tensor, tensor.detach(), retain_graph=True, allow_unused=True)
        gradients = [None if gradient is None else gradient.detach() for gradient in first]
        return self._by_layer(gradients), self._by_layer(products)

    def held(self) -> list[Tensor]:
        """Return every recorded floating-point tensor, each once."""
        if self._held is None:
            self.check_ran()
            seen: dict[int, Tensor] = {}
            for outputs in self._outputs:
                for output in outputs:
                    map_tensors(output, lambda tensor: seen.setdefault(id(tensor), tensor))
            self._held = [tensor for tensor in seen.values() if tensor.is_floating_point()]
        return self._held

    def check_ran(self) -> None:
        """Raise RuntimeError if a target layer never ran in the forward pass."""
        unused = [name for name, outputs in zip(self.names, self._outputs, strict=True) if not outputs]
        if unused:
            raise RuntimeError(
                f"target layer {', '.join(unused)} never ran in the forward pass; choose a layer that the model uses "
                "(auxiliary heads and unused branches do not run in eval mode)"
            )

    def _by_layer(self, values: Sequence[Tensor | None]) -> list[list[Tensor]]:
        """Return one value per recorded tensor, shaped as the activations; zero for None."""
        by_tensor = {id(tensor): value for tensor, value in zip(self.held(), values, strict=True)}

        def value_at(tensor: Tensor) -> Tensor:
            value = by_tensor.get(id(tensor))
            # One expanded zero, which takes neither memory nor time.
            return tensor.new_zeros(()).expand_as(tensor) if value is None else value

        return self._shaped(value_at)

    def _no_path(self) -> str:
        return (
            f"the target's score does not depend on target layer {', '.join(self.names)}: the layer follows the "
            "output, lies on another branch, or the model stops gradients in between; choose an earlier layer"
        )

    def _shaped(self, function: Callable[[Tensor], Tensor]) -> list[list[Tensor]]:
        self.check_ran()
        layers = []
        for name, outputs in zip(self.names, self._outputs, strict=True):
            levels: list[Tensor] = []
            for output in outputs:
                mapped = map_tensors(output, function)
                levels.extend(flatten_tensors(self.reshape_transform(mapped) if self.reshape_transform else mapped))
            for level in levels:
                if level.ndim != 4:
                    raise ValueError(
                        f"target layer {name} returned shape {tuple(level.shape)}; expected (B, C, h, w). Choose "
                        "another layer, or pass reshape_transform= to convert its output to that shape"
                    )
            if self.images:
                levels = [part for level in levels for part in _split(level, self.images)]
            if not levels:
                raise RuntimeError(f"target layer {name} returned no tensor; choose a layer that does")
            layers.append(levels)
        return layers


def _split(level: Tensor, images: int) -> tuple[Tensor, ...]:
    return level.split(images) if len(level) % images == 0 else (level,)


def gradients_of(scalar: Tensor, tensors: Sequence[Tensor], *, retain_graph: bool) -> Sequence[Tensor | None]:
    """Return the gradients of a scalar at tensors; None where it does not depend on one.

    With float16 among the tensors, or under autocast to it, they are scaled in the backward pass, so that none
    underflows, and come as float32, unless the scaled ones overflow.
    """
    if any(tensor.dtype == torch.float16 for tensor in tensors) or autocast_precision() == "float16":
        scale = torch.full_like(scalar, HALF_SCALE)
        gradients = torch.autograd.grad(scalar, tensors, scale, retain_graph=True, allow_unused=True)
        if all(gradient is None or bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return [
                None
                if gradient is None
                else gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / HALF_SCALE
                for gradient in gradients
            ]
    return torch.autograd.grad(scalar, tensors, retain_graph=retain_graph, allow_unused=True)


def map_tensors(value: object, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor in nested lists, tuples and mappings; other values are unchanged."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        mapped = [(key, map_tensors(item, function)) for key, item in value.items()]
        return type(value)(mapped)  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, function) for item in value)
    return value


def _tensors_in(value: object, depth: int = 4) -> Iterator[Tensor]:
    """Yield the tensors in nested containers and in the attributes of objects other than modules."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        yield from _tensors_in(vars(value), depth - 1)


def gradient_magnitude(gradient: Tensor) -> Tensor:
    """Return the maximum magnitude over the channels of a gradient (B, C, h, w), as (B, h, w)."""
    if not any(gradient.stride()):  # one expanded zero: the level has no influence
        return gradient[:, 0].abs()
    return gradient.abs().amax(1)


def flatten_tensors(value: object) -> list[Tensor]:
    """Return every floating-point tensor in nested lists, tuples and mappings, in order."""
    tensors: list[Tensor] = []
    map_tensors(value, lambda tensor: tensors.append(tensor) if tensor.is_floating_point() else None)
    return tensors


@contextmanager
def guarded(model: nn.Module, *, gradients: bool, quiet: bool = False, float32: bool = False) -> Iterator[None]:
    """Run a model and restore it afterwards, one thread at a time (`detcam.utils.model_lock`).

    Inside the block the model is in eval mode (with gradients, recurrent layers are in training mode, without dropout,
    which computes the same), no parameter requires gradients, and inference tensors are replaced by ordinary ones.
    Afterwards, also after an exception, training flags per module, ``requires_grad``, parameters, random state and
    autograd mode are restored, and detcam's hooks are removed.

    Args:
        model: the model.
        gradients: whether autograd is on inside the block.
        quiet: whether a model in training mode is no reason for a warning, as in a probe before the first call.
        float32: whether parameters and buffers in half precision are replaced by float32 ones, and autocast is off.
    """
    with ExitStack() as stack:
        stack.enter_context(exclusive(model))  # first, since another call may be changing the model
        stack.enter_context(no_hooks_stay())
        if model.training and not quiet:
            warn(
                f"{type(model).__name__} is in training mode; it is explained in eval mode and restored. Call "
                "model.eval() first to avoid this warning",
                UserWarning,
            )
        modules = all_modules(model)
        parameters = parameters_of(modules)
        if any(_is_compiled(module) for module in modules):
            # Compiled code ignores new hooks.
            stack.enter_context(_STANCE_LOCK)
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(without_checkpointing())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        devices = {tensor.device for tensor in parameters if tensor.device.type == "cuda"}
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices, key=str)))
        training = [module for module in modules if module.training]
        # An inference tensor gets no gradient, and its flag can be set under inference mode only.
        trainable = [p for p in parameters if p.requires_grad and not p.is_inference()]
        swapped: list[_Swapped] = []
        # cuDNN computes gradients of recurrent layers in training mode only; without dropout their output is the same.
        recurrent = [module for module in modules if gradients and isinstance(module, nn.RNNBase)]
        dropouts = [module.dropout for module in recurrent]
        windows = [_windows(module) for module in modules if hasattr(type(module), "set_shift_and_window_size")]

        def restore() -> None:
            for layer, dropout in zip(recurrent, dropouts, strict=True):
                layer.training, layer.dropout = False, dropout
            for attributes, sizes in windows:
                attributes.update(sizes)
            for tensors, name, original in reversed(swapped):
                tensors[name] = original
            for parameter in trainable:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True

        try:
            for module in training:
                module.training = False
            for layer in recurrent:
                layer.training, layer.dropout = True, 0.0
            for parameter in trainable:
                parameter.requires_grad_(False)
            if gradients:  # autograd cannot save inference tensors
                _swap_tensors(modules, swapped, Tensor.is_inference, Tensor.clone)
            if float32:
                _swap_tensors(modules, swapped, lambda tensor: tensor.dtype in HALF_TYPES, Tensor.float)
                for device in {tensor.device.type for tensor in parameters} or {"cpu"}:
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
        finally:
            complete(restore)


def _windows(block: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes of a block of Swin in transformers, and those that a small image would reduce for good."""
    attributes = vars(block)
    return attributes, {name: attributes[name] for name in ("window_size", "shift_size")}


def _is_compiled(module: nn.Module) -> bool:
    """Return whether a module runs compiled code: by `module.compile()`, or as the result of `torch.compile`."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


_Swapped: TypeAlias = "tuple[dict[str, Any], str, Tensor]"
"""The parameters or buffers of a module, a name among them, and the tensor that belongs there."""


def _swap_tensors(
    modules: Iterable[nn.Module],
    swapped: list[_Swapped],
    select: Callable[[Tensor], bool],
    convert: Callable[[Tensor], Tensor],
) -> None:
    """Replace some of the parameters and buffers.

    Args:
        modules: the modules of the model.
        swapped: gets what is replaced, before it is.
        select: which tensors are replaced.
        convert: what by.
    """
    for module in modules:
        holders: tuple[dict[str, Any], dict[str, Any]] = (module._parameters, module._buffers)
        for tensors in holders:
            for name, tensor in tensors.items():
                if tensor is None or not select(tensor):
                    continue
                swapped.append((tensors, name, tensor))
                copy = convert(tensor.detach())
                tensors[name] = nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
