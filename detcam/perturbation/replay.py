"""Layer replay: scoring targets on variants of a layer's output by running only the modules downstream of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from detcam.perturbation.base import ImageScorer, repeat_batch
from detcam.perturbation.replay_recorder import ReplayRecorder
from detcam.trace import flatten_tensors, map_tensors
from detcam.utils.batching import batch_slices, run_slices
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
