"""Layer replay: scoring targets on variants of a layer's output by running only the modules downstream of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detcam.perturbation.base import ImageScorer, repeat_batch
from detcam.trace import flatten_tensors, map_tensors
from detcam.utils.batching import batch_slices, run_slices
from detcam.utils.hooks import active_hooks, complete
from detcam.utils.precision import float64_on

MAX_PASS_BYTES = 64 * 2**20
"""Approximate memory limit of the variants of one pass."""


@dataclass(frozen=True)
class FeatureLevel:
    """One feature map of a layer's output.

    Attributes:
        values: (C, h, w).
        tensor: index of the tensor, among the output's floating-point tensors, that holds the map.
        positions: (C, h, w) int64, flat index of each value in that tensor for one image; None if the tensor is the
            map, in the same order.
    """

    values: Tensor
    tensor: int
    positions: Tensor | None

    def insert(self, variants: Tensor, tensor: Tensor) -> Tensor:
        """Insert variants (K, C, h, w) of the map into K copies of the layer's tensor (1, ...)."""
        if self.positions is None:
            return variants.reshape(len(variants), *tensor.shape[1:])
        copies = tensor.repeat(len(variants), *[1] * (tensor.ndim - 1))
        index = self.positions.flatten().expand(len(variants), -1)
        copies.flatten(1).scatter_(1, index, variants.flatten(1))
        return copies


class LayerReplay:
    """Scores the targets of an image on variants of a target layer's output.

    Only the modules downstream of the layer run again.

    Args:
        scorer: the image.
        layer: index of the target layer.
        nth: index of the layer's run in a pass.

    Attributes:
        levels: the feature maps of the layer's output in that run.
        downstream_fraction: fraction of the network, in [0, 1], that runs after the layer, measured in output values.

    Raises:
        RuntimeError: the scores of the layer's unchanged output differ from those of the recorded pass.
        ValueError: the reshape transform computes values that are not in the layer's output.
    """

    def __init__(self, scorer: ImageScorer, layer: int, nth: int) -> None:
        self.scorer = scorer
        self.name = scorer.adapter.layer_names[layer]
        self._clones_shared = False
        self._recorder = ReplayRecorder(scorer.adapter.model, scorer.adapter.target_layers[layer], nth)
        with self._recorder.record():
            scorer.adapter.forward(scorer.batch)
        self.downstream_fraction = self._recorder.downstream_fraction
        self._tensors = flatten_tensors(self._recorder.output)
        self.levels = self._find_levels()
        self._is_used = [self._is_read(level) for level in range(len(self.levels))]

    def score_variants(self, level: int, count: int, make_variants: Callable[[slice], Tensor]) -> Tensor:
        """Score every target on variants of a level.

        Args:
            level: index into `levels`.
            count: number of variants.
            make_variants: returns the level's values (k, C, h, w) of the variants in a slice, in new memory.

        Returns:
            (count, N) scores.
        """
        if not count or not self._is_used[level]:
            return self.scorer.values.expand(count, -1)
        feature_level = self.levels[level]
        tensor = self._tensors[feature_level.tensor]
        copies = 2 if feature_level.positions is None else 3
        inputs = self.scorer.batch.inputs
        variant_bytes = copies * tensor.numel() * tensor.element_size() + 3 * self._recorder.largest_output
        variant_bytes += inputs.numel() * inputs.element_size()
        scores = []
        for part in batch_slices(count, max(MAX_PASS_BYTES // variant_bytes, 1)):
            stacked = feature_level.insert(make_variants(part).to(tensor.dtype), tensor)
            scores.append(self._score(feature_level.tensor, stacked))
        return torch.cat(scores)

    def _score(self, replaced: int, stacked: Tensor) -> Tensor:
        """Scores with the variants (K, ...) of one tensor, in passes of at most the model's batch size."""
        limit = self.scorer.adapter.max_batch_size or len(stacked)
        return torch.cat(run_slices(len(stacked), limit, lambda part: self._score_pass(replaced, stacked[part])))

    def _score_pass(self, replaced: int, stacked: Tensor) -> Tensor:
        try:
            return self._replay(replaced, stacked, clone=self._clones_shared)
        except RuntimeError as error:
            if self._clones_shared or "single memory location" not in str(error):
                raise
            self._clones_shared = True  # the model has in-place operations on tensors that the variants share
            return self._replay(replaced, stacked, clone=True)

    def _replay(self, replaced: int, stacked: Tensor, *, clone: bool) -> Tensor:
        count = len(stacked)

        def repeat(tensor: Tensor) -> Tensor:
            if tensor is self._tensors[replaced]:
                return stacked.clone() if clone else stacked
            shared = tensor.expand(count, *tensor.shape[1:])
            return shared.clone() if clone or count == 1 else shared

        scorer = self.scorer
        inputs = scorer.batch.inputs.expand(count, -1, -1, -1)
        batch = repeat_batch(scorer.batch, inputs.clone() if clone or count == 1 else inputs)
        output = map_tensors(self._recorder.output, lambda x: repeat(x) if x.is_floating_point() else x)
        with self._recorder.replay(output, count, clone=clone):
            raw = scorer.adapter.forward(batch)
        return scorer.read_scores(raw, batch)

    def _find_levels(self) -> list[FeatureLevel]:
        """Find the feature maps and the positions of their values, by reshaping a tensor of indices."""
        scorer, tensors = self.scorer, self._tensors
        if any(len(tensor) != 1 for tensor in tensors):
            raise ValueError(
                f"expected target layer {self.name} to return tensors whose first dimension is the batch; got "
                f"{[tuple(tensor.shape) for tensor in tensors]} for one image"
            )
        reshape = scorer.adapter.reshape_for(scorer.batch)
        ends = torch.tensor([tensor.numel() for tensor in tensors]).cumsum(0)
        starts = iter([0, *ends.tolist()])

        def number(tensor: Tensor) -> Tensor:
            first = next(starts)
            index = torch.arange(first, first + tensor.numel(), dtype=float64_on(tensor.device), device=tensor.device)
            return index.reshape(tensor.shape)

        output = self._recorder.output
        maps = flatten_tensors(reshape(output))
        numbered = flatten_tensors(reshape(map_tensors(output, lambda x: number(x) if x.is_floating_point() else x)))
        levels = []
        for values, indices in zip(maps, numbered, strict=True):
            owner = int(torch.bucketize(indices.min().long().cpu(), ends, right=True))
            tensor = tensors[min(owner, len(tensors) - 1)]
            positions = indices.long() - (int(ends[owner - 1]) if owner else 0)
            inside = 0 <= int(positions.min()) and int(positions.max()) < tensor.numel()
            if not inside or not torch.equal(tensor.flatten()[positions], values):
                raise ValueError(
                    f"the reshape transform of target layer {self.name} computes new values; changing the layer's "
                    "output needs one that only picks and rearranges. Leave it out, and choose the layers themselves"
                )
            in_order = torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape)
            is_tensor = torch.equal(positions, in_order)
            levels.append(FeatureLevel(values[0], owner, None if is_tensor else positions[0]))
        return levels

    def _is_read(self, level: int) -> bool:
        """Whether a target depends on a level: whether a score changes for zeros, negated values or noise.

        The level's unchanged values are scored too, and must give the recorded scores.
        """
        values = self.levels[level].values
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values)
        variants = torch.stack([values, torch.zeros_like(values), -values, noise * 2 * values.std()])
        tensor = self.levels[level].tensor
        scores = self._score(tensor, self.levels[level].insert(variants, self._tensors[tensor])).cpu().double()
        expected = self.scorer.values
        tolerance = 10 * torch.finfo(values.dtype).eps ** 0.5
        if ((scores[0] - expected).abs() > tolerance * (1 + expected.abs())).any():
            raise RuntimeError(
                f"the modules downstream of target layer {self.name} do not reproduce their scores: given the layer's "
                f"unchanged output they score {scores[0].tolist()} instead of {expected.tolist()}. Do the items of a "
                "batch influence one another (batch statistics), or does the model keep state between calls?"
            )
        return not bool((scores[1:] == scores[0]).all())


def layer_replays(scorer: ImageScorer) -> Iterator[LayerReplay]:
    """Yield a `LayerReplay` per run of each target layer; their levels are `ImageScorer.levels`, in order."""
    for layer, runs in enumerate(scorer.runs):
        for nth in range(runs):
            yield LayerReplay(scorer, layer, nth)


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

        def repeat(tensor: Tensor) -> Tensor:
            if not tensor.ndim or len(tensor) != 1:
                return tensor.clone()
            shared = tensor.expand(count, *tensor.shape[1:])
            return shared.clone() if clone or count == 1 else shared

        forwards = {module: module.__dict__.get("forward") for module, _ in self._stored}

        def restore() -> None:
            for module, forward in forwards.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward

        try:
            for module in forwards:
                outputs = [map_tensors(value, repeat) for owner, value in self._stored[:-1] if owner is module]
                if module is self.layer:
                    outputs.append(output)
                module.forward = _replayed_forward(outputs, module.forward)
            yield
        finally:
            complete(restore)


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
