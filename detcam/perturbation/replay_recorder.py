"""Recording of a pass, and passes that run only the modules downstream of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from detcam.trace import flatten_tensors, map_tensors
from detcam.utils.hooks import active_hooks, complete


class ReplayRecorder:
    """Records a pass of one image and re-runs only the modules downstream of a layer on variants of its output.

    In the recorded pass, every module that ends before the layer stores a copy of its output. In replayed passes,
    these modules return their copies, repeated for each variant, instead of running.

    Args:
        model: the whole network, inside `guarded`.
        layer: the layer whose output varies.
        nth: index of the layer's run that varies, from 0 (a head shared by pyramid levels runs several times).

    Attributes:
        output: the layer's output in the recorded pass, detached.
        largest_output: size in bytes of the largest tensor, for one image, that the layer or a downstream module
            returned.
    """

    def __init__(self, model: nn.Module, layer: nn.Module, nth: int = 0) -> None:
        self.model = model
        self.layer = layer
        self.nth = nth
        self.output: Any = None
        self.largest_output = 0
        self._upstream_values = 0
        self._downstream_values = 0
        self._stored: list[tuple[nn.Module, Any]] = []
        self._open: list[tuple[nn.Module, int]] = []
        self._runs = 0
        self._is_downstream = False
        self._is_forgotten = False
        self._forgotten_outputs: dict[int, dict[nn.Module, list[Any]]] = {}

    @property
    def downstream_fraction(self) -> float:
        """Fraction of the output values of the model's innermost modules that come after the layer, in [0, 1]."""
        return self._downstream_values / max(self._upstream_values + self._downstream_values, 1)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record one pass of one image inside the context."""
        modules = list(self.model.modules())
        start, end = self._on_start, self._on_end
        with active_hooks([(module, end) for module in modules], before=[(module, start) for module in modules]):
            yield

    def _on_start(self, module: nn.Module, inputs: Any) -> None:
        self._open.append((module, len(self._stored)))

    def _on_end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        start = len(self._stored)
        while self._open:  # a module that raised, and whose caller went on, started but never ended
            opened, start = self._open.pop()
            if opened is module:
                break
        if next(module.children(), None) is None:
            count = sum(tensor.numel() for tensor in flatten_tensors(output))
            if self._is_downstream:
                self._downstream_values += count
            else:
                self._upstream_values += count
        if self._is_downstream:
            self._update_largest(output)
            return
        varies = module is self.layer and self._runs == self.nth
        self._runs += module is self.layer
        if not varies and not _is_repeatable(output):
            return  # the output cannot be repeated, but the outputs of the module's children can
        del self._stored[start:]
        copy = map_tensors(output, lambda tensor: tensor.detach().clone())
        self._stored.append((module, copy))
        if varies:
            self._is_downstream = True
            self.output = copy
            self._update_largest(copy)

    def forget_outputs(self) -> bool:
        """Let the modules before the layer return NaN instead of their outputs, and drop the layer's: to save memory.

        Scores that read them nevertheless are NaN.

        Returns:
            Whether all of them can be NaN; False if one returned integers, and nothing is forgotten.
        """
        upstream = self._stored[:-1]
        are_floats: list[bool] = []
        for _, output in upstream:
            map_tensors(output, lambda tensor: are_floats.append(tensor.is_floating_point()))
        if not all(are_floats):
            return False

        def forget(tensor: Tensor) -> Tensor:
            return tensor.new_full((), torch.nan).expand(tensor.shape)

        self._is_forgotten = True
        self._stored = [(module, map_tensors(output, forget)) for module, output in upstream] + [(self.layer, None)]
        self.output = None
        return True

    def _update_largest(self, output: Any) -> None:
        for tensor in flatten_tensors(output):
            self.largest_output = max(self.largest_output, tensor.numel() * tensor.element_size())

    @contextmanager
    def replay(self, output: object, count: int, *, clone: bool = False) -> Iterator[None]:
        """Replay one pass of `count` variants of the recorded image inside the context.

        Args:
            output: replaces the layer's output, in the same structure, first dimension `count`.
            count: number of variants.
            clone: if True, the stored outputs of other modules are cloned for each variant; else the variants share
                memory, and torch refuses in-place operations on it.
        """
        outputs = self._repeated(count, clone=clone)
        forwards = {module: module.__dict__.get("forward") for module in outputs}

        def restore() -> None:
            for module, forward in forwards.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = forward

        try:
            for module, stored in outputs.items():
                own = [*stored, output] if module is self.layer else stored
                # As an assignment, without the checks of nn.Module in every pass.
                module.__dict__["forward"] = _replayed_forward(own, module.forward)
            yield
        finally:
            complete(restore)

    def _repeated(self, count: int, *, clone: bool) -> dict[nn.Module, list[Any]]:
        """The outputs of each module for `count` variants; those that are forgotten are made once."""
        if count in self._forgotten_outputs:
            return self._forgotten_outputs[count]

        def repeat(tensor: Tensor) -> Tensor:
            if not tensor.ndim or len(tensor) != 1:
                return tensor.clone()
            shared = tensor.expand(count, *tensor.shape[1:])
            return shared.clone() if (clone or count == 1) and not self._is_forgotten else shared

        outputs: dict[nn.Module, list[Any]] = {module: [] for module, _ in self._stored}
        for module, value in self._stored[:-1]:
            outputs[module].append(map_tensors(value, repeat))
        if self._is_forgotten:
            self._forgotten_outputs[count] = outputs
        return outputs


def _replayed_forward(outputs: list[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward method that first returns the stored outputs, one per call, and then runs `forward`."""
    remaining = list(reversed(outputs))

    def replayed(*inputs: Any, **kwargs: Any) -> Any:
        return remaining.pop() if remaining else forward(*inputs, **kwargs)

    return replayed


def _is_repeatable(output: Any) -> bool:
    """Whether an output consists of tensors, numbers and the usual containers, with at least one tensor."""
    has_tensor = False

    def visit(value: Any) -> bool:
        nonlocal has_tensor
        if isinstance(value, Tensor):
            has_tensor = True
            return True
        if isinstance(value, Mapping):
            return all(visit(item) for item in value.values())
        if isinstance(value, (list, tuple)):
            return all(visit(item) for item in value)
        return value is None or isinstance(value, (bool, int, float, str))

    return visit(output) and has_tensor
