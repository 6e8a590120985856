"""What a transformer attends to: the probabilities of every attention layer, caught while the model runs.

Nothing of the model is changed. While a `Recorder` is open, torch hands it every call of a torch function; where
attention is fused, its probabilities are computed on their own, so that they stand in the graph and have a gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from detcam.trace import flatten_tensors

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_PASSED_ON = {
    *("dropout", "view", "reshape", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
    *("to", "type_as", "float", "half", "contiguous", "clone", "type"),
}
_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "einsum"}
_SCALED = {"mul", "__mul__", "__rmul__"}
_SAMPLED = {"grid_sample", "grid_sampler", "grid_sampler_2d"}


@dataclass(frozen=True, eq=False)
class Points:
    """Where deformable attention looks: sampling points instead of all tokens.

    Attributes:
        grids: rows and columns of each level.
        places: per level, (B * heads, queries, points, 2) x and y, -1 and 1 at the borders of the level's grid.
        align_corners: whether -1 and 1 are the centres of the border cells rather than their outer edges.
    """

    grids: tuple[tuple[int, int], ...]
    places: tuple[Tensor, ...]
    align_corners: bool

    def spread(self, values: Tensor) -> Tensor:
        """A number per point (B, heads, queries, points of all levels) shared out to tokens (B, heads, queries, keys).

        Each point's number goes to the four cells around it, in the shares by which they were read (bilinear); what
        was read beyond the grid, where the values are 0, goes nowhere.
        """
        levels = []
        parts = values.split([places.shape[2] for places in self.places], -1)
        for (rows, columns), places, part in zip(self.grids, self.places, parts, strict=True):
            xy = places.detach().view(*part.shape, 2).to(part)
            size = xy.new_tensor([columns, rows])
            position = (xy + 1) / 2 * (size - 1) if self.align_corners else ((xy + 1) * size - 1) / 2
            first = position.floor()
            share = position - first
            level = part.new_zeros((*part.shape[:-1], rows * columns))
            for step_x, step_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
                x, y = first[..., 0] + step_x, first[..., 1] + step_y
                inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
                along = share[..., 0] if step_x else 1 - share[..., 0]
                down = share[..., 1] if step_y else 1 - share[..., 1]
                cell = torch.where(inside, y * columns + x, torch.zeros_like(x)).long()
                level.scatter_add_(-1, cell, torch.where(inside, part * along * down, torch.zeros_like(part)))
            levels.append(level)
        return torch.cat(levels, -1)


@dataclass(frozen=True, eq=False)
class Attention:
    """One run of one attention layer.

    Attributes:
        tensor: the probabilities as they stand in the graph: (B, heads, queries, keys), (B * heads, queries, keys),
            or (B, queries, heads, points) where `points` are given.
        images: B.
        modules: the modules that were running, outermost first.
        points: where a deformable layer looked, else None.
        crosses: whether queries and keys were made from different tokens; None where nothing tells.
    """

    tensor: Tensor
    images: int
    modules: tuple[nn.Module, ...]
    points: Points | None = None
    crosses: bool | None = None

    @property
    def windows(self) -> int:
        """How many windows each image was cut into; 1 where attention sees all of it."""
        shape = self.tensor.shape
        return 1 if self.points or len(shape) == 3 else max(shape[:-3].numel() // self.images, 1)

    @property
    def queries(self) -> int:
        """How many tokens ask."""
        return self.tensor.shape[1] if self.points else self.tensor.shape[-2]

    @property
    def keys(self) -> int:
        """How many tokens are asked."""
        if self.points:
            return sum(rows * columns for rows, columns in self.points.grids)
        return self.tensor.shape[-1]

    def split(self, values: Tensor) -> Tensor:
        """What is shaped as `tensor`, as (B, heads, queries, keys), or points for keys."""
        if self.points:
            return values.transpose(1, 2)
        return values if values.ndim == 4 else values.unflatten(0, (self.images, -1))

    def over_keys(self, values: Tensor) -> Tensor:
        """What `split` gave, per key."""
        return self.points.spread(values) if self.points else values


@dataclass(frozen=True, eq=False)
class _Pending:
    """A softmax that may turn out to be attention: its result, and the modules that were running."""

    result: Tensor
    modules: tuple[nn.Module, ...]


class Recorder(TorchFunctionMode):
    """Records attention while it is open, around one forward pass inside `guarded` with gradients.

    Seen are ``F.scaled_dot_product_attention``, ``nn.MultiheadAttention`` (whose fast path steps aside), a softmax
    over the last axis whose result is then multiplied as a matrix, and a softmax that weighs what ``F.grid_sample``
    read (deformable attention). The first layer starts the graph: nothing before it has a gradient.

    Args:
        model: the module whose layers run.
        images: how many images are in the batch.

    Attributes:
        attentions: the layers' runs, in order.
    """

    def __init__(self, model: nn.Module, images: int) -> None:
        super().__init__()
        self.model = model
        self.images = images
        self.attentions: list[Attention] = []
        self._outputs: dict[nn.Module, tuple[Any, list[int]]] = {}
        self._handles: list[Any] = []
        self._open: list[tuple[nn.Module, int]] = []
        self._pending: dict[int, tuple[Tensor, _Pending]] = {}
        self._samples: list[tuple[nn.Module | None, tuple[int, int], Tensor, bool]] = []
        self._multi_head = _body_of(F.multi_head_attention_forward, self._attend)

    def __enter__(self) -> Recorder:
        for module in self.model.modules():
            self._handles.append(module.register_forward_pre_hook(self._starts))
            self._handles.append(module.register_forward_hook(self._ends))
        super().__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pending.clear()
        self._samples.clear()

    def _starts(self, module: nn.Module, inputs: Any) -> None:
        self._open.append((module, len(self.attentions)))

    def _ends(self, module: nn.Module, inputs: Any, output: Any) -> None:
        while self._open:  # a module that raised, and whose caller went on, started but never ended
            opened, before = self._open.pop()
            if opened is module:
                if len(self.attentions) > before:
                    self._outputs[module] = (output, _versions(output))
                return

    def output_of(self, module: nn.Module) -> Any:
        """What a module in which attention ran put out, last; None where it never ended.

        Raises:
            RuntimeError: what follows has worked on it in place.
        """
        output, versions = self._outputs.get(module, (None, []))
        if _versions(output) != versions:
            raise RuntimeError(
                f"the model changes in place what its {type(module).__name__} puts out, which is then lost; make that "
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
        if name in _SAMPLED:
            self._sampled(*args, **kwargs)
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
        """``F.scaled_dot_product_attention``, step by step."""
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
        blind = (scores == float("-inf")).all(-1, keepdim=True)  # a token that may look nowhere gets nothing
        probabilities = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
        probabilities = self._record(_in_graph(probabilities), self._running)
        return (F.dropout(probabilities, dropout_p) if dropout_p else probabilities) @ value

    def _attend_with_heads(self, args: Any, kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """``F.multi_head_attention_forward``, by torch's own code, with the attention in it recorded."""
        call = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
        call.apply_defaults()
        asked = call.arguments
        wanted, averaged = asked["need_weights"], asked["average_attn_weights"]
        asked["need_weights"] = False
        output, _ = self._multi_head(*call.args, **call.kwargs)
        self.attentions[-1] = replace(self.attentions[-1], crosses=not _same(asked["query"], asked["key"]))
        if not wanted:
            return output, None
        weights = self.attentions[-1].split(self.attentions[-1].tensor)
        weights = weights.mean(1) if averaged else weights
        return output, weights if asked["query"].ndim == 3 else weights.squeeze(0)

    def _softmax(self, result: Tensor, args: Any, kwargs: Any) -> Tensor:
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        if result.ndim < 3 or axis not in (-1, result.ndim - 1):
            return result
        result = _in_graph(result)
        self._pending[id(result)] = (result, _Pending(result, self._running))
        return result

    def _sampled(self, values: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> None:
        if grid.ndim != 4:
            return
        aligned = bool(kwargs.get("align_corners", args[2] if len(args) > 2 else False))
        running = self._running
        size = (values.shape[-2], values.shape[-1])
        self._samples.append((running[-1] if running else None, size, grid, aligned))

    def _follow(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """See what becomes of a softmax: attention once it weighs values."""
        for operand in _tensors((*args, *kwargs.values())):
            derived, origin = self._pending.get(id(operand), (None, None))
            if origin is None or derived is not operand:
                continue
            points = self._points(origin.result) if name in _SCALED else None
            if name in _PRODUCTS or points:
                self._record(origin.result, origin.modules, points)
                self._pending = {key: entry for key, entry in self._pending.items() if entry[1] is not origin}
                self._samples.clear()
            elif name in _PASSED_ON | _SCALED and isinstance(result, Tensor):
                self._pending[id(result)] = (result, origin)
            return

    def _points(self, weights: Tensor) -> Points | None:
        """Where the weights (B, queries, heads, points) belong, if they weigh what the running module sampled."""
        running = self._running
        samples = [sample for sample in self._samples if running and sample[0] is running[-1]]
        if not samples or weights.ndim != 4:
            return None
        images, queries, heads, points = weights.shape
        fits = all(grid.shape[:2] == (images * heads, queries) for _, _, grid, _ in samples)
        if not fits or sum(grid.shape[2] for _, _, grid, _ in samples) != points:
            return None
        grids, places = tuple(size for _, size, _, _ in samples), tuple(grid for _, _, grid, _ in samples)
        return Points(grids, places, samples[0][3])

    def _record(self, tensor: Tensor, modules: tuple[nn.Module, ...], points: Points | None = None) -> Tensor:
        self.attentions.append(Attention(tensor, self.images, modules, points))
        return tensor


def _body_of(function: Callable[..., Any], attend: Callable[..., Tensor]) -> Callable[..., Any]:
    """A function of ``torch.nn.functional`` that runs in place, not through the mode, and attends by `attend`."""
    inner: Any = function
    known = {**inner.__globals__, "has_torch_function": lambda _: False, "scaled_dot_product_attention": attend}
    return FunctionType(inner.__code__, known, inner.__name__, inner.__defaults__, inner.__closure__)


def _in_graph(tensor: Tensor) -> Tensor:
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_(True)


def _versions(output: Any) -> list[int]:
    """How often each tensor of an output has been changed."""
    return [tensor._version for tensor in flatten_tensors(output)]


def _same(query: Tensor, key: Tensor) -> bool:
    return query is key or (query.shape == key.shape and torch.equal(query, key))


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(item for item in value if isinstance(item, Tensor))
    return found
