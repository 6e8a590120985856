"""What methods that read attention share: whose attention counts, and how a number per token becomes a map."""

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
from detcam.cam import LayerlessCAM, value_of
from detcam.methods.common.attention_capture import Attention, Recorder
from detcam.outputs import DetectionTarget, DetectorOutput, work_dtype
from detcam.results import Measured, Pass
from detcam.trace import flatten_tensors


class NoAttentionError(RuntimeError):
    """The model is no transformer, or one whose attention cannot be followed from its output to the image."""


@dataclass(frozen=True)
class Layers:
    """The attention of one pass, told apart, each in the order in which it ran.

    Attributes:
        image: self-attention among the image's tokens.
        queries: self-attention among a decoder's queries.
        crosses: attention from queries (a pooling query among them) to the image's tokens.
        order: decoder layers of both kinds, in the order in which they ran.
    """

    image: tuple[Attention, ...]
    queries: tuple[Attention, ...]
    crosses: tuple[Attention, ...]
    order: tuple[Attention, ...]

    @property
    def all(self) -> tuple[Attention, ...]:
        return self.image + self.order

    @property
    def last(self) -> Attention:
        """What the output is read behind."""
        return self.crosses[-1] if self.crosses else self.image[-1]

    @property
    def keys(self) -> int:
        """How many tokens the image has, prefix tokens included."""
        return self.last.keys


def told_apart(attentions: Sequence[Attention], model: nn.Module, *, detector: bool) -> Layers:
    """Tell self-attention of the image, self-attention of queries and cross-attention apart.

    Attention crosses where it has other counts of queries and keys, or samples points. (In a detector with as many
    queries as tokens, where queries and keys were seen to differ.) Square attention beside a cross-attention, in the
    same decoder layer, is that of the queries.

    Raises:
        NoAttentionError: the model is not one that attention explains; the message says why, and what does.
    """
    name = type(model).__name__
    if not attentions:
        raise NoAttentionError(
            f"attention methods need a model with attention, and none was seen in {name}; use HiResCAM. (Seen are "
            "scaled_dot_product_attention, nn.MultiheadAttention and softmax followed by a matrix product)"
        )
    _check_whole(attentions, name)
    crosses = [a for a in attentions if a.points or a.queries != a.keys]
    if detector and not crosses:
        crosses = [a for a in attentions if a.crosses]
    if detector and not crosses:
        raise NoAttentionError(
            f"no query of {name} attends to the image: its attention is a part among others on the way to the "
            "boxes, and would explain them badly; use HiResCAM. (A DETR with as many queries as tokens is told apart "
            "at another image size)"
        )
    if not crosses:
        return Layers(_chained(attentions, name), (), (), ())
    keys, counts = crosses[-1].keys, crosses[-1].queries
    if any((a.keys, a.queries) != (keys, counts) for a in crosses):
        raise NoAttentionError(f"the cross-attention of {name} differs in size from layer to layer; use HiResCAM")
    homes = _homes(crosses)
    squares = [a for a in attentions if a not in crosses]
    queries = [a for a in squares if a.queries == counts and (not homes or homes.intersection(a.modules))]
    image = [a for a in squares if a not in queries and a.queries == keys]
    if not detector and len(queries) + len(image) < len(squares):
        _chained([*squares, crosses[-1]], name)
    if not detector and not squares and len(crosses) > 1:
        raise NoAttentionError(
            f"in each layer of {name}, {counts} tokens attend to {keys} others (a coarser grid, or tokens that are "
            "added), so that the layers make no chain from the output to the image; use HiResCAM"
        )
    order = [a for a in attentions if a in queries or a in crosses]
    return Layers(tuple(image), tuple(queries), tuple(crosses), tuple(order))


def _check_whole(attentions: Sequence[Attention], name: str) -> None:
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


def _chained(attentions: Sequence[Attention], name: str) -> tuple[Attention, ...]:
    sizes = sorted({a.keys for a in attentions})
    if len(sizes) > 1:
        raise NoAttentionError(
            f"the attention layers of {name} see different tokens ({', '.join(map(str, sizes))} of them), so that "
            "they make no chain from the output to the image; use HiResCAM"
        )
    return tuple(attentions)


def _homes(crosses: Sequence[Attention]) -> set[nn.Module]:
    """The decoder layer of each cross-attention: all that runs around it and around no other; of one, its parent.

    Empty where one layer runs several times.
    """
    if len(crosses) == 1:
        return set(crosses[0].modules[-2:-1])
    return {module for block in blocks(crosses) for module in block}


def blocks(attentions: Sequence[Attention]) -> list[tuple[nn.Module, ...]]:
    """For each attention, outermost first, the modules around it that are around no other one."""
    found = []
    for one in attentions:
        others = {module for other in attentions if other is not one for module in other.modules}
        found.append(tuple(module for module in one.modules if module not in others))
    return found


def rounds(scalars: Sequence[Sequence[Tensor]]) -> Iterator[tuple[int, list[int], Tensor]]:
    """The k-th target of all images at once: k, the images that have one, and the sum of their scalars."""
    for k in range(max(len(row) for row in scalars)):
        images = [image for image, row in enumerate(scalars) if len(row) > k]
        yield k, images, torch.stack([scalars[image][k].reshape(()) for image in images]).sum()


def gradients(total: Tensor, attentions: Sequence[Attention], model: nn.Module) -> list[Tensor]:
    """The gradient at each layer's probabilities, shaped as they are; zero where a layer has no part.

    Raises:
        RuntimeError: no layer has a part, or the gradient is NaN or infinite.
    """
    tensors = [a.tensor for a in attentions]
    found: Sequence[Tensor | None] = [None]
    if total.requires_grad:
        found = torch.autograd.grad(total, tensors, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise RuntimeError(
            f"the target's score does not depend on the attention of {type(model).__name__}; does the model cut "
            "gradients on the way, or the target read something else?"
        )
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in filled):
        raise RuntimeError("the gradient at an attention layer is NaN or infinite; use float32")
    return filled


class AttentionCAM(LayerlessCAM, abstract=True):
    """A method that reads a transformer's attention; its map has the tokens' grid.

    Args:
        model: a transformer, or its adapter.
        target_layers: accepted so that methods can be swapped; all attention layers are read.
        reshape_transform: from tokens (B, N, 1) to (B, 1, h, w), prefix tokens dropped; None infers it.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "embedding", "detection"})

    @abstractmethod
    def relevance(self, run: Pass, layers: Layers, scalars: list[list[Tensor]]) -> list[Tensor]:
        """Per image, (N_i, keys): how relevant each token is to each target."""

    def watching(self, batch: Batch) -> AbstractContextManager[Any]:
        return Recorder(self.model, len(batch.inputs))

    def measure(self, run: Pass) -> Measured:
        if self.adapter.task not in self.tasks:
            raise TypeError(f"{type(self).__name__} does not explain {self.adapter.task}; use HiResCAM")
        if run.eigen_smooth:
            raise ValueError(f"eigen_smooth needs a layer's channels, and {type(self).__name__} has none; leave it out")
        if not isinstance(run.watched, Recorder):
            raise TypeError(f"{type(self).__name__} cannot be the base of another method; use GradCAM there")
        layers = told_apart(run.watched.attentions, self.model, detector=self.adapter.task == "detection")
        scalars = run.adapter.score(run.outputs, run.targets) if any(run.targets) else [[] for _ in run.targets]
        values = [[value_of(scalar) for scalar in row] for row in scalars]
        if any(run.targets):
            tokens = self.relevance(run, layers, scalars)
        else:
            tokens = [run.batch.inputs.new_zeros(0, layers.keys) for _ in scalars]
        return Measured([[_on_grid(run, layers, found.detach()) for found in tokens]], values, None)

    def empty(self, layers: Layers, scalars: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Per image, zeros (N_i, keys) to be filled in."""
        like = layers.last.tensor
        return [like.new_zeros((len(row), layers.keys), dtype=work_dtype(like)) for row in scalars]

    def rows(self, run: Pass, layers: Layers, gradient: Tensor, images: list[int], k: int) -> Tensor:
        """Which of the last layer's tokens the k-th target of each image reads: (n, queries), shares that sum to 1.

        A class token, all patches, or a box's query: those with a gradient at the last layer. Where several queries
        have one, as behind a softmax over queries, the box's own source counts, or else the one with the greatest.

        Args:
            run: the pass.
            layers: the pass's attention.
            gradient: at the last layer, shaped as its probabilities.
            images: which images are meant.
            k: which of their targets.
        """
        strength = layers.last.split(gradient)[images].abs().to(work_dtype(gradient)).sum((1, 3))
        read = (strength > 0).to(strength)
        if self.adapter.task == "detection":
            for row, image in enumerate(images):
                if read[row].sum() > 1:
                    own = _source(run.outputs[image], run.targets[image][k])
                    known = 0 <= own < len(read[row]) and bool(read[row, own])
                    chosen = own if known else int(strength[row].argmax())
                    read[row] = F.one_hot(torch.tensor(chosen), len(read[row])).to(read)
        return read / read.sum(1, keepdim=True).clamp(min=1)


def _source(output: Any, target: Target) -> int:
    """The query that a box comes from; -1 where that is not known."""
    if not isinstance(output, DetectorOutput) or not isinstance(target, DetectionTarget):
        return -1
    source = output.source_of(target)
    return source.anchor if source is not None and source.kind == "query" else -1


def _on_grid(run: Pass, layers: Layers, tokens: Tensor) -> Tensor:
    """A number per token (n, keys) as maps (n, h, w); several levels are added up on the finest one's grid."""
    points = layers.last.points
    if points is None:
        found = flatten_tensors(run.adapter.reshape_for(run.batch)(tokens[..., None]))
        if len(found) != 1 or found[0].ndim != 4 or found[0].shape[1] != 1:
            raise ValueError(
                f"expected reshape_transform to turn tokens {(len(tokens), layers.keys, 1)} into ({len(tokens)}, 1, h, "
                f"w); got {[tuple(one.shape) for one in found]}"
            )
        return found[0][:, 0]
    rows, columns = max(points.grids)
    total = tokens.new_zeros(len(tokens), rows, columns)
    for size, level in zip(points.grids, tokens.split([h * w for h, w in points.grids], 1), strict=True):
        if len(tokens):
            # A cell's relevance is shared out among the finer cells that it covers.
            share = size[0] * size[1] / (rows * columns)
            total += share * F.interpolate(level.unflatten(1, (1, *size)), (rows, columns), mode="bilinear")[:, 0]
    return total
