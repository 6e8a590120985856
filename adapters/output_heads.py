"""What the numbers at the end of a network are: logits, or probabilities that an activation has made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from detcam.trace import map_tensors
from detcam.utils.hooks import active_hooks

OutputKind: TypeAlias = Literal["logits", "probabilities", "multilabel"]
"""What the user says about a network's output; see `find_head`."""

Activation: TypeAlias = Literal["none", "sigmoid", "softmax", "log_softmax"]

_ACTIVATION_NODES: Mapping[str, Activation] = {
    "SigmoidBackward": "sigmoid",
    "HardsigmoidBackward": "sigmoid",
    "SoftmaxBackward": "softmax",
    "LogSoftmaxBackward": "log_softmax",
}
_VALUE_PRESERVING = (
    *("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Transpose", "Permute", "T", "Clone"),
    *("Alias", "Expand", "ToCopy", "Clamp", "Unbind", "Index", "AsStrided", "Upsample", "Movedim"),
)
"""Autograd nodes after which a probability is still one: changes of shape, and interpolation."""
_JOINING = ("Cat", "Stack")
_MAX_SUM_ERROR = 1e-3
"""Largest difference of a sum of class probabilities from 1."""


@dataclass(frozen=True, eq=False)
class OutputHead:
    """How a network's output relates to logits.

    Attributes:
        activation: the function at the end of the network; log-probabilities (``"log_softmax"``) are used as logits.
        multilabel: whether several classes are independent (sigmoid) rather than exclusive (softmax).
        module: the module that applies the activation, if its output is the network's: then the logits are its input.
    """

    activation: Activation = "none"
    multilabel: bool = False
    module: nn.Module | None = None

    def describe(self) -> str:
        """Return a description for the `repr` of an adapter; empty for plain logits."""
        if self.activation == "none":
            return "output='multilabel'" if self.multilabel else ""
        kind = "log-probabilities" if self.activation == "log_softmax" else "probabilities"
        return f"output='{kind} ({self.activation}{', multilabel' if self.multilabel else ''})'"

    def recording(self) -> Any:
        """A context in which the activation's input is kept with its output, for `logits`."""
        return nullcontext() if self.module is None else active_hooks([(self.module, partial(_keep_input))])

    def logits(self, values: Tensor) -> Tensor:
        """Return the logits of the network's output (B, C, ...).

        These are the activation's input if it was recorded, else those that give the same probabilities: their
        gradient vanishes where a probability is exactly 0 or 1.
        """
        before = getattr(values, "_detcam_logits", None)
        if isinstance(before, Tensor) and before.shape == values.shape:
            return before
        if self.activation in ("none", "log_softmax"):
            return values
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        limits = torch.finfo(wide.dtype)
        logarithm = wide.clamp(min=limits.tiny).log()
        return logarithm if self.activation == "softmax" else logarithm - torch.log1p(-wide.clamp(max=1 - limits.eps))


def _keep_input(module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
        output._detcam_logits = inputs[0]  # type: ignore[attr-defined]


def check_output_kind(output: object) -> None:
    """Raise ValueError if `output` is not a kind of output, or None."""
    if output is not None and output not in get_args(OutputKind):
        raise ValueError(f"expected output to be one of {', '.join(get_args(OutputKind))}, or None; got {output!r}")


@contextmanager
def recorded_modules(model: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Collect the modules without children that return a tensor, in order, with their outputs."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((module, output))

    leaves = [module for module in model.modules() if next(module.children(), None) is None]
    with active_hooks((module, record) for module in leaves):
        yield seen


def find_head(
    values: Tensor | None, seen: Sequence[tuple[nn.Module, Tensor]], output: OutputKind | None = None
) -> OutputHead:
    """Determine the activation at the end of a network from one pass.

    It is found in the autograd graph of the output, so that a function counts as much as a module. Without a graph (an
    int8 network, for example), the last module tells. Values of several classes that are probabilities and add up to 1
    are a softmax in any case.

    Args:
        values: the network's output (B, C, ...) of the pass, or None if it is not known.
        seen: from `recorded_modules`.
        output: what the user says: ``"logits"`` are exclusive classes before the softmax, ``"multilabel"`` independent
            classes, ``"probabilities"`` the result of a sigmoid or softmax.
    """
    if output == "logits":
        return OutputHead()
    found = _observed(values, seen)
    if output == "probabilities" and found.activation not in ("sigmoid", "softmax"):
        found = replace(found, activation="sigmoid", module=None)  # any probability p is the sigmoid of log(p / (1-p))
    several = values is None or (values.shape[1] if values.ndim > 1 else 1) > 1
    if output == "multilabel":
        if found.activation in ("softmax", "log_softmax"):
            found = OutputHead()
        return replace(found, multilabel=True)
    return replace(found, multilabel=several and found.activation == "sigmoid")


def _observed(values: Tensor | None, seen: Sequence[tuple[nn.Module, Tensor]]) -> OutputHead:
    if values is None:
        return OutputHead()
    nodes = _activations(values.grad_fn) if values.grad_fn is not None else None
    if nodes:
        kinds = {kind for kind, _ in nodes}
        module = next((m for m, out in reversed(seen) if out is values and out.grad_fn is nodes[0][1]), None)
        return OutputHead(kinds.pop(), module=module) if len(kinds) == 1 else OutputHead()
    if _adds_up_to_one(values):
        return OutputHead("softmax")
    if values.grad_fn is None and seen:
        named = {"Sigmoid": "sigmoid", "Softmax": "softmax", "Softmax2d": "softmax", "LogSoftmax": "log_softmax"}
        return OutputHead(named.get(type(seen[-1][0]).__name__, "none"))  # type: ignore[arg-type]
    return OutputHead()


def _activations(node: Any) -> list[tuple[Activation, Any]] | None:
    """The activations that an output comes from without another operation in between; None if there is another."""
    for _ in range(64):
        name = type(node).__name__
        for prefix, activation in _ACTIVATION_NODES.items():
            if name.startswith(prefix):
                return [(activation, node)]
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if name.startswith(_JOINING) and parents:
            joined = [_activations(parent) for parent in parents]
            return None if None in joined else [pair for pairs in joined if pairs for pair in pairs]
        if not name.startswith(_VALUE_PRESERVING) or not parents:
            return None
        node = parents[0]
    return None


def _adds_up_to_one(values: Tensor) -> bool:
    if values.ndim < 2 or values.shape[1] < 2 or not values.is_floating_point():
        return False
    values = values.detach().float()
    in_range = bool((values >= 0).all()) and bool((values <= 1 + _MAX_SUM_ERROR).all())
    return in_range and bool(((values.sum(1) - 1).abs() < _MAX_SUM_ERROR).all())


def select_output(raw: Any, key: int | str) -> Any:
    """Return one output of a model with several.

    Args:
        raw: a tuple, list, mapping, dataclass or other object.
        key: position, key, or name of the attribute.

    Raises:
        TypeError: there is no such output; the message lists what there is.
    """
    parts = dict(_parts(raw))
    if isinstance(key, str) and key not in parts and hasattr(raw, key):
        return getattr(raw, key)
    if key not in parts and isinstance(key, int) and -len(parts) <= key < 0:
        key = list(parts)[key]
    if key not in parts:
        raise TypeError(f"the model has no output {key!r}; it returned {describe_output(raw)}")
    return parts[key]


def _parts(raw: Any) -> Iterator[tuple[Any, Any]]:
    """The outputs of a model by position, key or attribute name; of a named tuple by both."""
    if isinstance(raw, Mapping):
        yield from raw.items()
    elif isinstance(raw, (tuple, list)):
        yield from enumerate(raw)
        yield from zip(getattr(raw, "_fields", ()), raw, strict=False)
    elif is_dataclass(raw) and not isinstance(raw, type):
        yield from ((field.name, getattr(raw, field.name)) for field in fields(raw))
    elif hasattr(raw, "__dict__") and not isinstance(raw, (Tensor, nn.Module)):
        yield from vars(raw).items()


def describe_output(raw: Any, *, depth: int = 2) -> str:
    """Return types and shapes of a model's output, for messages."""
    if isinstance(raw, Tensor):
        return f"{str(raw.dtype).removeprefix('torch.')} {tuple(raw.shape)}"
    parts = list(raw.items()) if isinstance(raw, Mapping) else None
    if parts is None:
        parts = [(key, value) for key, value in _parts(raw) if isinstance(key, str) or not hasattr(raw, "_fields")]
    if not parts or depth == 0:
        return type(raw).__name__
    listed = ", ".join(f"[{key!r}] {describe_output(value, depth=depth - 1)}" for key, value in parts[:8])
    return f"{type(raw).__name__} of {len(parts)}: {listed}{', ...' if len(parts) > 8 else ''}"


def output_of_image(raw: Any, index: int, count: int) -> Any:
    """Return one image's part of a batch's raw output: every tensor with an entry per image is indexed."""

    def select(tensor: Tensor) -> Tensor:
        return tensor[index] if tensor.ndim and len(tensor) == count else tensor

    return _map_output(raw, select)


def with_batch_axis(output: Any) -> Any:
    """Return one image's output with a leading axis, as a batch of one has it."""
    return _map_output(output, lambda tensor: tensor[None])


def _map_output(raw: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if is_dataclass(raw) and not isinstance(raw, (type, Mapping)):
        values = {field.name: map_tensors(getattr(raw, field.name), function) for field in fields(raw) if field.init}
        return replace(raw, **values)
    return map_tensors(raw, function)


def unknown_output(model: nn.Module, raw: Any) -> str:
    """Return the message for an output that is not understood: what came, and the lines of code that read it."""
    return (
        f"{type(model).__name__} returned {describe_output(raw)}, which is not one (B, C) tensor of class scores. Say "
        f"what it is:\n{suggest_reading(raw)}\nTargets that read the raw output work as well: pass targets= and "
        "target_layers="
    )


def suggest_reading(raw: Any) -> str:
    """Return lines of code that read an unknown output, chosen by its shapes."""
    tensors = list(_tensors(raw, "output"))
    maps = [path for path, tensor in tensors if tensor.ndim == 4]
    vectors = [path for path, tensor in tensors if tensor.ndim == 2]
    boxes = [path for path, tensor in tensors if tensor.ndim == 3 and tensor.shape[-1] == 4]
    rows = [path for path, tensor in tensors if tensor.ndim == 3 and path not in boxes]
    lines = []
    if boxes or rows or not (maps or vectors):
        read = f"{boxes[0]}, {rows[0]}" if boxes and rows else f"{(boxes + rows)[0]} ..." if boxes or rows else "output"
        lines += [
            "    from detcam.adapters import detector  # a detector",
            "    def decode(output):",
            f"        boxes, scores = {read}",
            "        return boxes, scores  # (B, N, 4) xyxy in pixels of the network's input; (B, N, C) in [0, 1]",
            "    adapter = detector(model, decode, image_size=(height, width))",
        ]
    if maps:
        lines += [
            "    from detcam.adapters import segmenter  # a map per class",
            f"    adapter = segmenter(model, decode=lambda output: {maps[0]})",
        ]
    if vectors and not isinstance(raw, Tensor):
        chosen = [repr(key) for key, value in _parts(raw) if isinstance(value, Tensor) and value.ndim == 2]
        option = f"output_key={chosen[0]}" if chosen else f"decode=lambda output: {vectors[0]}"
        others = f"  # or {', '.join(chosen[1:4])}" if chosen[1:] else ""
        lines.append(f"    adapter = detcam.adapt(model, {option}){others}")
    return "\n".join(lines)


def _tensors(raw: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in an output, with the expression that reads it."""
    if isinstance(raw, Tensor):
        yield path, raw
        return
    indexed = isinstance(raw, (Mapping, tuple, list))
    for key, value in _parts(raw):
        if isinstance(raw, tuple) and isinstance(key, str):
            continue  # a named tuple's entries have been read by position
        yield from _tensors(value, f"{path}[{key!r}]" if indexed else f"{path}.{key}")
