"""CheferCAM."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.methods.common.attention_base import AttentionCAM, Layers, gradients, rounds
from detcam.methods.common.attention_capture import Attention
from detcam.outputs import work_dtype
from detcam.results import Pass


class CheferCAM(AttentionCAM):
    r"""Attention weighted by its gradient, followed through all layers from the image to the output.

    .. math:: \bar A = \mathbb{E}_h\!\left[(\nabla A \odot A)^+\right],\quad
        R^{ii} \leftarrow R^{ii} + \bar A R^{ii}

    from R = I on, over the layers; the row of the class token is the map, or the mean of the rows that the output
    reads. For a decoder (DETR), with queries q and image tokens i:

    .. math:: R^{qq} \leftarrow R^{qq} + \bar A R^{qq},\quad R^{qi} \leftarrow R^{qi} + \bar A R^{qi},\quad
        R^{qi} \leftarrow R^{qi} + (\bar R^{qq})^\top \bar A\, \bar R^{ii}

    the last for cross-attention, with each row of R - I divided by its sum in \bar R; the row of the box's query is
    the map. Deformable cross-attention (RT-DETR) weighs sampling points, which are shared out to the cells that they
    read; self-attention that convolutions stand between (RT-DETR's encoder) is left out.

    Chefer et al., *Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers*, ICCV 2021, https://arxiv.org/abs/2103.15679.
    """

    name = "chefercam"
    paper = "Chefer et al., Generic Attention-model Explainability, ICCV 2021, https://arxiv.org/abs/2103.15679"
    cost = "1 forward, 1 backward per target"
    use = "transformers: ViT, DETR, RT-DETR; a box by its own query"

    def relevance(self, run: Pass, layers: Layers, scalars: list[list[Tensor]]) -> list[Tensor]:
        found = [_wide(tokens) for tokens in self.empty(layers, scalars)]
        for k, images, total in rounds(scalars):
            by_layer = dict(zip(layers.all, gradients(total, layers.all, self.model), strict=True))
            rows = _wide(self.rows(run, layers, by_layer[layers.last], images, k))
            weighted = {layer: _weighted(layer, gradient, images) for layer, gradient in by_layer.items()}
            tokens = _decoder(layers, weighted, rows) if layers.crosses else _encoder(layers, weighted, rows)
            for row, image in enumerate(images):
                found[image][k] = tokens[row]
        return found


def _weighted(layer: Attention, gradient: Tensor, images: list[int]) -> Tensor:
    """(n, queries, keys): the positive part of probability times gradient, averaged over heads."""
    dtype = work_dtype(gradient)
    both = layer.split(layer.tensor.detach())[images].to(dtype) * layer.split(gradient)[images].to(dtype)
    return _wide(layer.over_keys(both.clamp(min=0)).mean(1))


def _wide(tensor: Tensor) -> Tensor:
    """In float64, since what a layer adds to the identity may be small; as it is where the device has no float64."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def _encoder(layers: Layers, weighted: dict[Attention, Tensor], rows: Tensor) -> Tensor:
    """Rows (n, tokens) of the relevance of self-attention alone: from the last layer back, one row is enough."""
    for layer in reversed(layers.image):
        rows = rows + (rows[:, None] @ weighted[layer])[:, 0]
    return rows


def _decoder(layers: Layers, weighted: dict[Attention, Tensor], rows: Tensor) -> Tensor:
    """Rows (n, keys) of the relevance of image tokens to queries."""
    first = weighted[layers.last]
    among_tokens = None  # the identity, until a layer changes it: it may be too large to write down
    for layer in layers.image:
        among_tokens = _identity(first, layers.keys) if among_tokens is None else among_tokens
        among_tokens = among_tokens + weighted[layer] @ among_tokens
    among_queries = _identity(first, layers.last.queries)
    found = torch.zeros_like(first)
    for layer in layers.order:
        if layer in layers.crosses:
            seen = weighted[layer] if among_tokens is None else weighted[layer] @ _evened(among_tokens)
            found = found + _evened(among_queries).mT @ seen
        else:
            found = found + weighted[layer] @ found
            among_queries = among_queries + weighted[layer] @ among_queries
    return (rows[:, None] @ found)[:, 0]


def _identity(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device).expand(len(like), size, size)


def _evened(relevance: Tensor) -> Tensor:
    """The relevance beside the identity with rows that sum to 1, and the identity (equations 8 and 9)."""
    identity = _identity(relevance, relevance.shape[-1])
    beside = relevance - identity
    total = beside.sum(-1, keepdim=True)
    return torch.where(total > 0, beside / total.clamp(min=torch.finfo(beside.dtype).tiny), 0) + identity
