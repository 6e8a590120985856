"""Capture of the attention probabilities of every attention layer of a transformer during a forward pass.

The model is not changed. An open `AttentionRecorder` intercepts every call of a torch function; fused attention is
computed step by step, so that its probabilities are part of the graph and have a gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from detcam.trace import flatten_tensors
from detcam.utils.hooks import active_hooks

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_TRANSPARENT = {
    *("dropout", "view", "reshape", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
    *("to", "type_as", "float", "half", "contiguous", "clone", "type"),
}
_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "einsum"}
_SCALINGS = {"mul", "__mul__", "__rmul__"}
_SAMPLERS = {"grid_sample", "grid_sampler", "grid_sampler_2d"}


@dataclass(frozen=True, eq=False)
class SamplingPoints:
    """Sampling points of deformable attention, which replace the keys.

    Attributes:
        grids: rows and columns of each level.
        positions: per level, (B * heads, queries, points, 2) x and y, -1 and 1 at the borders of the level's grid.
        align_corners: if True, -1 and 1 are the centers of the border cells, else their outer edges.
    """

    grids: tuple[tuple[int, int], ...]
    positions: tuple[Tensor, ...]
    align_corners: bool

    def to_keys(self, values: Tensor) -> Tensor:
        """Distribute values per point (B, heads, queries, points of all levels) to keys (B, heads, queries, keys).

        The value of a point goes to the four cells around it, with their bilinear weights; samples outside the grid,
        where the features are 0, are dropped.
        """
        levels = []
        parts = values.split([positions.shape[2] for positions in self.positions], -1)
        for (rows, columns), positions, part in zip(self.grids, self.positions, parts, strict=True):
            xy = positions.detach().view(*part.shape, 2).to(part)
            size = xy.new_tensor([columns, rows])
            pixel = (xy + 1) / 2 * (size - 1) if self.align_corners else ((xy + 1) * size - 1) / 2
            first = pixel.floor()
            offset = pixel - first
            level = part.new_zeros((*part.shape[:-1], rows * columns))
            for step_x, step_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
                x, y = first[..., 0] + step_x, first[..., 1] + step_y
                inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
                weight_x = offset[..., 0] if step_x else 1 - offset[..., 0]
                weight_y = offset[..., 1] if step_y else 1 - offset[..., 1]
                cell = torch.where(inside, y * columns + x, torch.zeros_like(x)).long()
                level.scatter_add_(-1, cell, torch.where(inside, part * weight_x * weight_y, torch.zeros_like(part)))
            levels.append(level)
        return torch.cat(levels, -1)


@dataclass(frozen=True, eq=False)
class AttentionRun:
    """One run of one attention layer.

    Attributes:
        tensor: the probabilities in the graph: (B, heads, queries, keys), (B * heads, queries, keys), or
            (B, queries, heads, points) if `points` is given.
        images: batch size B.
        modules: the enclosing modules, outermost first.
        points: sampling points of a deformable layer, else None.
        is_cross: whether queries and keys come from different tokens; None if unknown.
    """

    tensor: Tensor
    images: int
    modules: tuple[nn.Module, ...]
    points: SamplingPoints | None = None
    is_cross: bool | None = None

    @property
    def windows(self) -> int:
        """Number of windows per image; 1 if attention covers the whole image."""
        shape = self.tensor.shape
        return 1 if self.points or len(shape) == 3 else max(shape[:-3].numel() // self.images, 1)

    @property
    def queries(self) -> int:
        """Number of query tokens."""
        return self.tensor.shape[1] if self.points else self.tensor.shape[-2]

    @property
    def keys(self) -> int:
        """Number of key tokens."""
        if self.points:
            return sum(rows * columns for rows, columns in self.points.grids)
        return self.tensor.shape[-1]

    def by_head(self, values: Tensor) -> Tensor:
        """Reshape values of the shape of `tensor` to (B, heads, queries, keys), or points instead of keys."""
        if self.points:
            return values.transpose(1, 2)
        return values if values.ndim == 4 else values.unflatten(0, (self.images, -1))

    def per_key(self, values: Tensor) -> Tensor:
        """Convert values of `by_head` to (B, heads, queries, keys)."""
        return self.points.to_keys(values) if self.points else values


@dataclass(frozen=True, eq=False)
class _Pending:
    """A softmax that may be attention: its result, and the enclosing modules."""

    result: Tensor
    modules: tuple[nn.Module, ...]


class AttentionRecorder(TorchFunctionMode):
    """Records attention during one forward pass inside `guarded` with gradients.

    Supported are ``F.scaled_dot_product_attention``, ``nn.MultiheadAttention`` (without its fast path), a softmax over
    the last axis followed by a matrix product, and a softmax that weights samples of ``F.grid_sample`` (deformable
    attention). The graph starts at the first layer: nothing before it has a gradient.

    Args:
        model: the module whose layers run.
        images: batch size.

    Attributes:
        attentions: runs of attention layers, in order.
    """

    def __init__(self, model: nn.Module, images: int) -> None:
        super().__init__()
        self.model = model
        self.images = images
        self.attentions: list[AttentionRun] = []
        self._outputs: dict[nn.Module, tuple[Any, list[int]]] = {}
        self._hooks = ExitStack()
        self._open: list[tuple[nn.Module, int]] = []
        self._pending: dict[int, tuple[Tensor, _Pending]] = {}
        self._samples: list[tuple[nn.Module | None, tuple[int, int], Tensor, bool]] = []
        self._multi_head = _body_of(F.multi_head_attention_forward, self._attend)

    def __enter__(self) -> AttentionRecorder:
        modules, start, end = list(self.model.modules()), self._on_start, self._on_end
        with ExitStack() as stack:
            hooks = active_hooks([(module, end) for module in modules], before=[(module, start) for module in modules])
            stack.enter_context(hooks)
            super().__enter__()
            self._hooks = stack.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        with self._hooks:
            super().__exit__(*exc_info)
        self._pending.clear()
        self._samples.clear()

    def _on_start(self, module: nn.Module, inputs: Any) -> None:
        self._open.append((module, len(self.attentions)))

    def _on_end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        while self._open:  # a module that raised, and whose caller went on, started but never ended
            opened, count = self._open.pop()
            if opened is module:
                if len(self.attentions) > count:
                    self._outputs[module] = (output, _versions(output))
                return

    def output_of(self, module: nn.Module) -> Any:
        """Return the last output of a module that contains attention; None if it never ended.

        Raises:
            RuntimeError: the model modified the output in place.
        """
        output, versions = self._outputs.get(module, (None, []))
        if _versions(output) != versions:
            raise RuntimeError(
                f"the model modifies the output of its {type(module).__name__} in place, which is then lost; make that "
                "operation not in place, or use CheferCAM"
            )
        return output

    @property
    def _running(self) -> tuple[nn.Module, ...]:
        return tuple(module for module, _ in self._open)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attend_with_heads(args, kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAX:
            return self._softmax(result, args, kwargs)
        name = getattr(func, "__name__", "")
        if name in _SAMPLERS:
            self._record_samples(*args, **kwargs)
        elif self._pending:
            self._follow(name, args, kwargs, result)
        return result

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Compute ``F.scaled_dot_product_attention`` step by step."""
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        masked = (scores == float("-inf")).all(-1, keepdim=True)  # a query without any key gets zeros
        probabilities = scores.masked_fill(masked, 0).softmax(-1).masked_fill(masked, 0)
        probabilities = self._record(_in_graph(probabilities), self._running)
        return (F.dropout(probabilities, dropout_p) if dropout_p else probabilities) @ value

    def _attend_with_heads(self, args: Any, kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Run torch's ``F.multi_head_attention_forward`` with its attention recorded."""
        call = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
        call.apply_defaults()
        arguments = call.arguments
        need_weights, averaged = arguments["need_weights"], arguments["average_attn_weights"]
        arguments["need_weights"] = False
        output, _ = self._multi_head(*call.args, **call.kwargs)
        self.attentions[-1] = replace(self.attentions[-1], is_cross=not _same(arguments["query"], arguments["key"]))
        if not need_weights:
            return output, None
        weights = self.attentions[-1].by_head(self.attentions[-1].tensor)
        weights = weights.mean(1) if averaged else weights
        return output, weights if arguments["query"].ndim == 3 else weights.squeeze(0)

    def _softmax(self, result: Tensor, args: Any, kwargs: Any) -> Tensor:
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        if result.ndim < 3 or axis not in (-1, result.ndim - 1):
            return result
        result = _in_graph(result)
        self._pending[id(result)] = (result, _Pending(result, self._running))
        return result

    def _record_samples(self, values: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> None:
        if grid.ndim != 4:
            return
        aligned = bool(kwargs.get("align_corners", args[2] if len(args) > 2 else False))
        running = self._running
        size = (values.shape[-2], values.shape[-1])
        self._samples.append((running[-1] if running else None, size, grid, aligned))

    def _follow(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Follow the result of a softmax: it is attention once it weights values."""
        for operand in _tensors((*args, *kwargs.values())):
            derived, origin = self._pending.get(id(operand), (None, None))
            if origin is None or derived is not operand:
                continue
            points = self._sampling_points(origin.result) if name in _SCALINGS else None
            if name in _PRODUCTS or points:
                self._record(origin.result, origin.modules, points)
                self._pending = {key: entry for key, entry in self._pending.items() if entry[1] is not origin}
                self._samples.clear()
            elif name in _TRANSPARENT | _SCALINGS and isinstance(result, Tensor):
                self._pending[id(result)] = (result, origin)
            return

    def _sampling_points(self, weights: Tensor) -> SamplingPoints | None:
        """The sampling points of weights (B, queries, heads, points), if the running module sampled with them."""
        running = self._running
        samples = [sample for sample in self._samples if running and sample[0] is running[-1]]
        if not samples or weights.ndim != 4:
            return None
        images, queries, heads, points = weights.shape
        fits = all(grid.shape[:2] == (images * heads, queries) for _, _, grid, _ in samples)
        if not fits or sum(grid.shape[2] for _, _, grid, _ in samples) != points:
            return None
        grids, positions = tuple(size for _, size, _, _ in samples), tuple(grid for _, _, grid, _ in samples)
        return SamplingPoints(grids, positions, samples[0][3])

    def _record(self, tensor: Tensor, modules: tuple[nn.Module, ...], points: SamplingPoints | None = None) -> Tensor:
        self.attentions.append(AttentionRun(tensor, self.images, modules, points))
        return tensor


def _body_of(function: Callable[..., Any], attend: Callable[..., Tensor]) -> Callable[..., Any]:
    """A copy of a function of ``torch.nn.functional`` that bypasses the mode and calls `attend`."""
    inner: Any = function
    namespace = {**inner.__globals__, "has_torch_function": lambda _: False, "scaled_dot_product_attention": attend}
    return FunctionType(inner.__code__, namespace, inner.__name__, inner.__defaults__, inner.__closure__)


def _in_graph(tensor: Tensor) -> Tensor:
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_(True)


def _versions(output: Any) -> list[int]:
    """The version counter of each tensor of an output."""
    return [tensor._version for tensor in flatten_tensors(output)]


def _same(query: Tensor, key: Tensor) -> bool:
    return query is key or (query.shape == key.shape and torch.equal(query, key))


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors.extend(item for item in value if isinstance(item, Tensor))
    return tensors
