"""What lies behind a layer: an image's targets scored on variants of what the layer puts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detcam.perturbation.base import ImageScorer, repeated
from detcam.trace import flatten_tensors, map_tensors
from detcam.utils.batching import pieces

CHUNK_BYTES = 64 * 2**20
"""How much memory the variants of one pass may take, roughly."""


@dataclass(frozen=True)
class FeatureLevel:
    """One map among what a layer puts out.

    Attributes:
        values: (C, h, w).
        tensor: which of the output's floating-point tensors holds it.
        positions: (C, h, w) where in that tensor, for one image and flattened, each value stands; None where the
            tensor is the map, in the same order.
    """

    values: Tensor
    tensor: int
    positions: Tensor | None

    def into(self, tensor: Tensor, variants: Tensor) -> Tensor:
        """The layer's tensor (1, ...) once for each variant (K, C, h, w) of the map, which replaces the map in it."""
        if self.positions is None:
            return variants.reshape(len(variants), *tensor.shape[1:])
        whole = tensor.repeat(len(variants), *[1] * (tensor.ndim - 1))
        places = self.positions.flatten().expand(len(variants), -1)
        whole.flatten(1).scatter_(1, places, variants.flatten(1))
        return whole


class LayerReplay:
    """What lies behind a target layer: scores an image's targets for variants of what the layer puts out.

    Args:
        scorer: the image.
        layer: index of the target layer.
        nth: which of the layer's runs in a pass.

    Attributes:
        levels: the maps that the layer puts out in that run.
        share: how much of the network lies behind the layer, in [0, 1], counted in values put out.

    Raises:
        RuntimeError: handed its own activation among others, the model does not answer as it did.
        ValueError: the reshape transform computes values that are not in the layer's output.
    """

    def __init__(self, scorer: ImageScorer, layer: int, nth: int) -> None:
        self.scorer = scorer
        self.name = scorer.adapter.layer_names[layer]
        self._copies = False
        self._variants = ReplayRecorder(scorer.adapter.model, scorer.adapter.target_layers[layer], nth)
        with self._variants.record():
            scorer.adapter.forward(scorer.batch)
        self.share = self._variants.downstream_fraction
        self._tensors = flatten_tensors(self._variants.output)
        self.levels = self._find_levels()
        self._matters = [self._probe(level) for level in range(len(self.levels))]

    def scores(self, level: int, count: int, vary: Callable[[slice], Tensor]) -> Tensor:
        """Every target's score (count, N) for variants of a level.

        Args:
            level: index into `levels`.
            count: how many variants.
            vary: from some of them, by number, to the level's values (k, C, h, w) in each; new memory every time.
        """
        if not count or not self._matters[level]:
            return self.scorer.values.expand(count, -1)
        chosen = self.levels[level]
        tensor = self._tensors[chosen.tensor]
        copies = 2 if chosen.positions is None else 3
        inputs = self.scorer.batch.inputs
        each = copies * tensor.numel() * tensor.element_size() + 3 * self._variants.largest
        each += inputs.numel() * inputs.element_size()
        size = max(CHUNK_BYTES // each, 1)
        found = []
        for part in pieces(count, size):
            whole = chosen.into(tensor, vary(part).to(tensor.dtype))
            found.append(self._pass(chosen.tensor, whole))
        return torch.cat(found)

    def _pass(self, replaced: int, whole: Tensor) -> Tensor:
        """The targets' scores with a tensor's variants (K, ...), as many at once as the model takes."""
        most = getattr(self.scorer.adapter, "max_batch_size", None) or len(whole)
        return torch.cat([self._part(replaced, whole[part]) for part in pieces(len(whole), most)])

    def _part(self, replaced: int, whole: Tensor) -> Tensor:
        try:
            return self._replay(replaced, whole, copies=self._copies)
        except RuntimeError as error:
            if self._copies or "single memory location" not in str(error):
                raise
            self._copies = True  # the model works in place on what the variants share
            return self._replay(replaced, whole, copies=True)

    def _replay(self, replaced: int, whole: Tensor, *, copies: bool) -> Tensor:
        count = len(whole)

        def repeat(tensor: Tensor) -> Tensor:
            if tensor is self._tensors[replaced]:
                return whole.clone() if copies else whole
            shared = tensor.expand(count, *tensor.shape[1:])
            return shared.clone() if copies or count == 1 else shared

        scorer = self.scorer
        inputs = scorer.batch.inputs.expand(count, -1, -1, -1)
        batch = repeated(scorer.batch, inputs.clone() if copies or count == 1 else inputs)
        output = map_tensors(self._variants.output, lambda x: repeat(x) if x.is_floating_point() else x)
        with self._variants.replay(output, count, copies=copies):
            raw = scorer.adapter.forward(batch)
        return scorer.read(raw, batch)

    def _find_levels(self) -> list[FeatureLevel]:
        """The maps, and where their values stand: the reshape transform is shown numbered places."""
        scorer, tensors = self.scorer, self._tensors
        if any(len(tensor) != 1 for tensor in tensors):
            raise ValueError(
                f"expected target layer {self.name} to put out tensors whose first dimension is the batch; got "
                f"{[tuple(tensor.shape) for tensor in tensors]} for one image"
            )
        reshape = scorer.adapter.reshape_for(scorer.batch)
        ends = torch.tensor([tensor.numel() for tensor in tensors]).cumsum(0)
        starts = iter([0, *ends.tolist()])

        def number(tensor: Tensor) -> Tensor:
            first = next(starts)
            places = torch.arange(first, first + tensor.numel(), dtype=torch.float64, device=tensor.device)
            return places.reshape(tensor.shape)

        output = self._variants.output
        maps = flatten_tensors(reshape(output))
        numbered = flatten_tensors(reshape(map_tensors(output, lambda x: number(x) if x.is_floating_point() else x)))
        levels = []
        for values, places in zip(maps, numbered, strict=True):
            owner = int(torch.bucketize(places.min().long().cpu(), ends, right=True))
            tensor = tensors[min(owner, len(tensors) - 1)]
            positions = places.long() - (int(ends[owner - 1]) if owner else 0)
            inside = 0 <= int(positions.min()) and int(positions.max()) < tensor.numel()
            if not inside or not torch.equal(tensor.flatten()[positions], values):
                raise ValueError(
                    f"the reshape transform of target layer {self.name} computes new values; changing the layer's "
                    "output needs one that only picks and rearranges. Leave it out, and choose the layers themselves"
                )
            in_order = torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape)
            plain = torch.equal(positions, in_order)
            levels.append(FeatureLevel(values[0], owner, None if plain else positions[0]))
        return levels

    def _probe(self, level: int) -> bool:
        """Whether any target depends on a level: whether a score moves when the level is zero, negated, or noise.

        The level's own values go along: there the targets must score what they scored.
        """
        values = self.levels[level].values
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values)
        variants = torch.stack([values, torch.zeros_like(values), -values, noise * 2 * values.std()])
        tensor = self.levels[level].tensor
        scores = self._pass(tensor, self.levels[level].into(self._tensors[tensor], variants)).double().cpu()
        known = self.scorer.values
        tolerance = 10 * torch.finfo(values.dtype).eps ** 0.5
        if ((scores[0] - known).abs() > tolerance * (1 + known.abs())).any():
            raise RuntimeError(
                f"what lies behind target layer {self.name} does not repeat itself: handed the layer's own output, it "
                f"scores {scores[0].tolist()} instead of {known.tolist()}. Do the items of a batch influence one "
                "another (batch statistics), or does the model keep state between calls?"
            )
        return not bool((scores[1:] == scores[0]).all())


def layer_replays(scorer: ImageScorer) -> Iterator[LayerReplay]:
    """A `LayerReplay` for each run of each target layer; their levels are those of `ImageScorer.levels`, in order."""
    for layer, runs in enumerate(scorer.runs):
        for nth in range(runs):
            yield LayerReplay(scorer, layer, nth)


class ReplayRecorder:
    """Re-runs only what lies behind a layer, on many variants of what the layer put out for one image.

    In the pass that is recorded, every module that ends before the layer does leaves a copy of its output. In the
    passes that follow, those modules hand that copy back, repeated for each variant, instead of running.

    Args:
        model: the whole network, inside `guarded`.
        layer: the layer whose output varies.
        nth: which of the layer's runs in a pass varies, counted from 0 (a head shared by pyramid levels has several).

    Attributes:
        output: what the layer put out in the recorded pass, detached.
        largest: bytes of the largest tensor that the layer or a module behind it put out for one image.
        downstream_fraction: share of the values put out by the model's innermost modules that come after the layer,
            in [0, 1].
    """

    def __init__(self, model: nn.Module, layer: nn.Module, nth: int = 0) -> None:
        self.model = model
        self.layer = layer
        self.nth = nth
        self.output: Any = None
        self.largest = 0
        self._values = [0, 0]
        self._kept: list[tuple[nn.Module, Any]] = []
        self._open: list[tuple[nn.Module, int]] = []
        self._runs = 0
        self._past = False

    @property
    def downstream_fraction(self) -> float:
        return self._values[True] / max(sum(self._values), 1)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Around one pass of one image."""
        modules = list(self.model.modules())
        handles: list[Any] = [module.register_forward_pre_hook(self._starts) for module in modules]
        handles += [module.register_forward_hook(self._ends) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _starts(self, module: nn.Module, inputs: Any) -> None:
        self._open.append((module, len(self._kept)))

    def _ends(self, module: nn.Module, inputs: Any, output: Any) -> None:
        start = len(self._kept)
        while self._open:  # a module that raised, and whose caller went on, started but never ended
            opened, start = self._open.pop()
            if opened is module:
                break
        if next(module.children(), None) is None:
            self._values[self._past] += sum(tensor.numel() for tensor in flatten_tensors(output))
        if self._past:
            self._weigh(output)
            return
        varies = module is self.layer and self._runs == self.nth
        self._runs += module is self.layer
        if not varies and not _is_plain(output):
            return  # what it put out cannot be repeated, but what the modules inside it put out can
        del self._kept[start:]
        copy = map_tensors(output, lambda tensor: tensor.detach().clone())
        self._kept.append((module, copy))
        if varies:
            self._past = True
            self.output = copy
            self._weigh(copy)

    def _weigh(self, output: Any) -> None:
        for tensor in flatten_tensors(output):
            self.largest = max(self.largest, tensor.numel() * tensor.element_size())

    @contextmanager
    def replay(self, output: Any, count: int, *, copies: bool = False) -> Iterator[None]:
        """Around one pass of `count` variants: of the same image, repeated so often.

        Args:
            output: what the layer puts out instead, in its own form, first dimension `count`.
            count: number of variants.
            copies: whether what other modules put out is copied for each variant; else the variants share it, and
                torch refuses in-place operations on it.
        """

        def repeat(tensor: Tensor) -> Tensor:
            if not tensor.ndim or len(tensor) != 1:
                return tensor.clone()
            shared = tensor.expand(count, *tensor.shape[1:])
            return shared.clone() if copies or count == 1 else shared

        own = {module: module.__dict__.get("forward") for module, _ in self._kept}
        try:
            for module in own:
                kept = [map_tensors(value, repeat) for other, value in self._kept[:-1] if other is module]
                if module is self.layer:
                    kept.append(output)
                module.forward = _stand_in(kept, module.forward)
            yield
        finally:
            for module, forward in own.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward


def _stand_in(kept: list[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward method that first hands out what is kept, one by one, and then runs."""
    waiting = list(reversed(kept))

    def stand_in(*inputs: Any, **kwargs: Any) -> Any:
        return waiting.pop() if waiting else forward(*inputs, **kwargs)

    return stand_in


def _is_plain(output: Any) -> bool:
    """Whether an output is made of tensors, numbers and the usual containers, with at least one tensor."""
    found = False

    def visit(value: Any) -> bool:
        nonlocal found
        if isinstance(value, Tensor):
            found = True
            return True
        if isinstance(value, Mapping):
            return all(visit(item) for item in value.values())
        if isinstance(value, (list, tuple)):
            return all(visit(item) for item in value)
        return value is None or isinstance(value, (bool, int, float, str))

    return visit(output) and found
