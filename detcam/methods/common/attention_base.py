"""Base class of attention methods: roles of attention layers, gradients, and maps from relevance per token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Batch, Target
from detcam.cam import LayerlessCAM
from detcam.methods.common.attention_capture import AttentionRecorder, AttentionRun
from detcam.outputs import DetectionTarget, DetectorOutput
from detcam.results import Measured, Pass, values_of
from detcam.trace import flatten_tensors
from detcam.utils.precision import work_dtype


class NoAttentionError(RuntimeError):
    """The model has no attention, or its attention forms no chain from the output to the image."""


@dataclass(frozen=True)
class AttentionLayers:
    """The attention of one pass by role, each in order of execution.

    Attributes:
        image: self-attention of the image's tokens.
        queries: self-attention of a decoder's queries.
        crosses: cross-attention from queries (a pooling query included) to the image's tokens.
        order: decoder layers of both kinds, in order of execution.
    """

    image: tuple[AttentionRun, ...]
    queries: tuple[AttentionRun, ...]
    crosses: tuple[AttentionRun, ...]
    order: tuple[AttentionRun, ...]

    @property
    def all(self) -> tuple[AttentionRun, ...]:
        """All layers."""
        return self.image + self.order

    @property
    def last(self) -> AttentionRun:
        """The last layer before the output."""
        return self.crosses[-1] if self.crosses else self.image[-1]

    @property
    def keys(self) -> int:
        """Number of the image's tokens, prefix tokens included."""
        return self.last.keys


def classify_attention(attentions: Sequence[AttentionRun], model: nn.Module, *, detector: bool) -> AttentionLayers:
    """Separate self-attention of the image, self-attention of queries, and cross-attention.

    Cross-attention has different numbers of queries and keys, or sampling points; in a detector with as many queries as
    tokens, its queries and keys differ in value. Square attention in the same decoder layer as a cross-attention is
    that of the queries.

    Raises:
        NoAttentionError: attention does not explain the model; the message names the reason and an alternative.
    """
    name = type(model).__name__
    if not attentions:
        raise NoAttentionError(
            f"attention methods need a model with attention, and {name} has none that is supported; use HiResCAM. "
            "(Supported are scaled_dot_product_attention, nn.MultiheadAttention and softmax followed by a matrix "
            "product)"
        )
    _check_windows(attentions, name)
    crosses = [a for a in attentions if a.points or a.queries != a.keys]
    if detector and not crosses:
        crosses = [a for a in attentions if a.is_cross]
    if detector and not crosses:
        raise NoAttentionError(
            f"no query of {name} attends to the image: attention is only one of several paths to the boxes and does "
            "not explain them; use HiResCAM. (A DETR with as many queries as tokens is recognized at another image "
            "size)"
        )
    if not crosses:
        return AttentionLayers(_check_chain(attentions, name), (), (), ())
    keys, counts = crosses[-1].keys, crosses[-1].queries
    if any((a.keys, a.queries) != (keys, counts) for a in crosses):
        raise NoAttentionError(f"the cross-attention of {name} differs in size from layer to layer; use HiResCAM")
    decoder_layers = _decoder_layers(crosses)
    squares = [a for a in attentions if a not in crosses]
    queries = [
        a for a in squares if a.queries == counts and (not decoder_layers or decoder_layers.intersection(a.modules))
    ]
    image = [a for a in squares if a not in queries and a.queries == keys]
    if not detector and len(queries) + len(image) < len(squares):
        _check_chain([*squares, crosses[-1]], name)
    if not detector and not squares and len(crosses) > 1:
        raise NoAttentionError(
            f"in each layer of {name}, {counts} tokens attend to {keys} others (a coarser grid, or tokens that are "
            "added), so that the layers make no chain from the output to the image; use HiResCAM"
        )
    order = [a for a in attentions if a in queries or a in crosses]
    return AttentionLayers(tuple(image), tuple(queries), tuple(crosses), tuple(order))


def _check_windows(attentions: Sequence[AttentionRun], name: str) -> None:
    windows = max(a.windows for a in attentions)
    if windows > 1:
        raise NoAttentionError(
            f"{name} attends within {windows} windows, so that no chain of attention leads from the output to all of "
            "the image; use HiResCAM"
        )
    wrong = [
        a.tensor for a in attentions if len(a.tensor) != a.images and (a.tensor.ndim > 3 or len(a.tensor) % a.images)
    ]
    if wrong:
        raise NoAttentionError(
            f"attention in {name} has shape {tuple(wrong[0].shape)} for {attentions[0].images} images; expected the "
            "images first: explain one image at a time (batch_size = 1)"
        )


def _check_chain(attentions: Sequence[AttentionRun], name: str) -> tuple[AttentionRun, ...]:
    sizes = sorted({a.keys for a in attentions})
    if len(sizes) > 1:
        raise NoAttentionError(
            f"the attention layers of {name} see different tokens ({', '.join(map(str, sizes))} of them), so that "
            "they make no chain from the output to the image; use HiResCAM"
        )
    return tuple(attentions)


def _decoder_layers(crosses: Sequence[AttentionRun]) -> set[nn.Module]:
    """The modules of each decoder layer: those that enclose one cross-attention only; for a single one, its parent.

    Empty if one layer runs several times.
    """
    if len(crosses) == 1:
        return set(crosses[0].modules[-2:-1])
    return {module for block in enclosing_blocks(crosses) for module in block}


def enclosing_blocks(attentions: Sequence[AttentionRun]) -> list[tuple[nn.Module, ...]]:
    """For each attention, outermost first, the modules that enclose no other attention."""
    blocks = []
    for attention in attentions:
        others = {module for other in attentions if other is not attention for module in other.modules}
        blocks.append(tuple(module for module in attention.modules if module not in others))
    return blocks


def target_rounds(scalars: Sequence[Sequence[Tensor]]) -> Iterator[tuple[int, list[int], Tensor]]:
    """Yield for each k: k, the images that have a k-th target, and the sum of these targets' scalars."""
    for k in range(max(len(row) for row in scalars)):
        images = [image for image, row in enumerate(scalars) if len(row) > k]
        yield k, images, torch.stack([scalars[image][k].reshape(()) for image in images]).sum()


def attention_gradients(total: Tensor, attentions: Sequence[AttentionRun], model: nn.Module) -> list[Tensor]:
    """Gradients at each layer's probabilities, of their shape; zero for layers that do not contribute.

    Raises:
        RuntimeError: no layer contributes, or a gradient is NaN or infinite.
    """
    tensors = [a.tensor for a in attentions]
    raw: Sequence[Tensor | None] = [None]
    if total.requires_grad:
        raw = torch.autograd.grad(total, tensors, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in raw):
        raise RuntimeError(
            f"the target's score does not depend on the attention of {type(model).__name__}; does the model detach "
            "the output from the graph, or does the target read another output?"
        )
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, raw, strict=True)]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in filled):
        raise RuntimeError("the gradient at an attention layer is NaN or infinite; use float32")
    return filled


class AttentionCAM(LayerlessCAM, abstract=True):
    """Base class of methods that read a transformer's attention; maps have the resolution of the tokens' grid.

    Args:
        model: a transformer, or its adapter.
        target_layers: accepted for interchangeability; all attention layers are read.
        reshape_transform: from tokens (B, N, 1) to (B, 1, h, w), prefix tokens dropped; None infers it.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "embedding", "detection"})

    @abstractmethod
    def relevance(self, run: Pass, layers: AttentionLayers, scalars: list[list[Tensor]]) -> list[Tensor]:
        """Compute the relevance (N_i, keys) of each token to each target, per image."""

    def recording(self, batch: Batch) -> AbstractContextManager[Any]:
        return AttentionRecorder(self.model, len(batch.inputs))

    def measure(self, run: Pass) -> Measured:
        if self.adapter.task not in self.tasks:
            raise TypeError(f"{type(self).__name__} does not explain {self.adapter.task}; use HiResCAM")
        if run.eigen_smooth:
            raise ValueError(f"eigen_smooth needs a layer's channels, and {type(self).__name__} has none; leave it out")
        if not isinstance(run.recorded, AttentionRecorder):
            raise TypeError(f"{type(self).__name__} cannot be the base of another method; use GradCAM there")
        layers = classify_attention(run.recorded.attentions, self.model, detector=self.adapter.task == "detection")
        scalars = run.score()
        if any(run.targets):
            tokens = self.relevance(run, layers, scalars)
        else:
            tokens = [run.batch.inputs.new_zeros(0, layers.keys) for _ in scalars]
        return Measured([[_on_grid(run, layers, relevance.detach()) for relevance in tokens]], values_of(scalars), None)

    def zeros(self, layers: AttentionLayers, scalars: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Zeros (N_i, keys) per image."""
        like = layers.last.tensor
        return [like.new_zeros((len(row), layers.keys), dtype=work_dtype(like)) for row in scalars]

    def output_queries(self, run: Pass, layers: AttentionLayers, gradient: Tensor, images: list[int], k: int) -> Tensor:
        """Find the queries of the last layer that the k-th target of each image reads.

        These are the queries with a gradient at the last layer: a class token, all patches, or a box's query. If
        several queries of a detector have a gradient, as after a softmax over queries, the source of the box counts,
        or else the query of the largest gradient.

        Args:
            run: the pass.
            layers: the attention of the pass.
            gradient: gradient at the last layer, of the shape of its probabilities.
            images: n indices of images.
            k: index of the target of each image.

        Returns:
            (n, queries) weights that sum to 1.
        """
        strength = layers.last.by_head(gradient)[images].abs().to(work_dtype(gradient)).sum((1, 3))
        read = (strength > 0).to(strength)
        if self.adapter.task == "detection":
            for row, image in enumerate(images):
                if read[row].sum() > 1:
                    source = _source_query(run.outputs[image], run.targets[image][k])
                    known = 0 <= source < len(read[row]) and bool(read[row, source])
                    chosen = source if known else int(strength[row].argmax())
                    read[row] = F.one_hot(torch.tensor(chosen), len(read[row])).to(read)
        return read / read.sum(1, keepdim=True).clamp(min=1)


def _source_query(output: Any, target: Target) -> int:
    """The source query of a box; -1 if unknown."""
    if not isinstance(output, DetectorOutput) or not isinstance(target, DetectionTarget):
        return -1
    source = output.source_of(target)
    return source.anchor if source is not None and source.kind == "query" else -1


def _on_grid(run: Pass, layers: AttentionLayers, tokens: Tensor) -> Tensor:
    """Convert values per token (n, keys) to maps (n, h, w); levels are summed on the grid of the finest one."""
    points = layers.last.points
    if points is None:
        maps = flatten_tensors(run.adapter.reshape_for(run.batch)(tokens[..., None]))
        if len(maps) != 1 or maps[0].ndim != 4 or maps[0].shape[1] != 1:
            raise ValueError(
                f"expected reshape_transform to turn tokens {(len(tokens), layers.keys, 1)} into ({len(tokens)}, 1, h, "
                f"w); got {[tuple(each.shape) for each in maps]}"
            )
        return maps[0][:, 0]
    rows, columns = max(points.grids)
    total = tokens.new_zeros(len(tokens), rows, columns)
    for size, level in zip(points.grids, tokens.split([h * w for h, w in points.grids], 1), strict=True):
        if len(tokens):
            # The relevance of a cell is divided among the finer cells that it covers.
            ratio = size[0] * size[1] / (rows * columns)
            total += ratio * F.interpolate(level.unflatten(1, (1, *size)), (rows, columns), mode="bilinear")[:, 0]
    return total
