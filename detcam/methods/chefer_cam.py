"""Relevance propagation of Chefer et al."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.methods.common.attention_base import AttentionCAM, AttentionLayers, attention_gradients, target_rounds
from detcam.methods.common.attention_capture import AttentionRun
from detcam.results import Pass
from detcam.utils.precision import to_float64, work_dtype


class CheferCAM(AttentionCAM):
    r"""Attention weighted by its gradient, propagated through all layers.

    .. math:: \bar A = \mathbb{E}_h\!\left[(\nabla A \odot A)^+\right],\quad
        R^{ii} \leftarrow R^{ii} + \bar A R^{ii}

    with A the attention of a layer, :math:`\nabla A` the score's gradient with respect to it, :math:`\mathbb{E}_h` the
    mean over heads, and R the relevance, which starts as the identity. The map is the row of the class token, or the
    mean of the rows that the output reads. For a decoder (DETR), with queries q and image tokens i:

    .. math:: R^{qq} \leftarrow R^{qq} + \bar A R^{qq},\quad R^{qi} \leftarrow R^{qi} + \bar A R^{qi},\quad
        R^{qi} \leftarrow R^{qi} + (\bar R^{qq})^\top \bar A\, \bar R^{ii}

    the last for cross-attention, with :math:`\bar R` the relevance in which each row of R - I is divided by its sum;
    the map is the row of the box's query. The sampling points of deformable cross-attention (RT-DETR) are distributed
    to the cells that they read; self-attention separated from it by convolutions (RT-DETR's encoder) is left out.

    Chefer et al., *Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers*, ICCV 2021, https://arxiv.org/abs/2103.15679.

    Use it for ViT classifiers and DETR-like detectors.
    """

    name = "chefercam"
    paper = "Chefer et al., Generic Attention-model Explainability, ICCV 2021, https://arxiv.org/abs/2103.15679"
    cost = "1 forward, 1 backward per target"
    use = "transformers: ViT, DETR, RT-DETR; a box by its query"

    def relevance(self, run: Pass, layers: AttentionLayers, scalars: list[list[Tensor]]) -> list[Tensor]:
        relevance = [to_float64(tokens) for tokens in self.zeros(layers, scalars)]
        for k, images, total in target_rounds(scalars):
            by_layer = dict(zip(layers.all, attention_gradients(total, layers.all, self.model), strict=True))
            rows = to_float64(self.output_queries(run, layers, by_layer[layers.last], images, k))
            weighted = {layer: _weighted(layer, gradient, images) for layer, gradient in by_layer.items()}
            tokens = _decoder(layers, weighted, rows) if layers.crosses else _encoder(layers, weighted, rows)
            for row, image in enumerate(images):
                relevance[image][k] = tokens[row]
        return relevance


def _weighted(layer: AttentionRun, gradient: Tensor, images: list[int]) -> Tensor:
    """(n, queries, keys): the positive part of probability times gradient, averaged over heads."""
    dtype = work_dtype(gradient)
    both = layer.by_head(layer.tensor.detach())[images].to(dtype) * layer.by_head(gradient)[images].to(dtype)
    return to_float64(layer.per_key(both.clamp(min=0)).mean(1))


def _encoder(layers: AttentionLayers, weighted: dict[AttentionRun, Tensor], rows: Tensor) -> Tensor:
    """Rows (n, tokens) of the relevance for self-attention alone; from the last layer back, one row suffices."""
    for layer in reversed(layers.image):
        rows = rows + (rows[:, None] @ weighted[layer])[:, 0]
    return rows


def _decoder(layers: AttentionLayers, weighted: dict[AttentionRun, Tensor], rows: Tensor) -> Tensor:
    """Rows (n, keys) of the relevance of image tokens to queries."""
    first = weighted[layers.last]
    token_relevance = None  # the identity, which may be too large to store, until a layer changes it
    for layer in layers.image:
        token_relevance = _identity(first, layers.keys) if token_relevance is None else token_relevance
        token_relevance = token_relevance + weighted[layer] @ token_relevance
    query_relevance = _identity(first, layers.last.queries)
    relevance = torch.zeros_like(first)
    for layer in layers.order:
        if layer in layers.crosses:
            received = weighted[layer] if token_relevance is None else weighted[layer] @ _normalized(token_relevance)
            relevance = relevance + _normalized(query_relevance).mT @ received
        else:
            relevance = relevance + weighted[layer] @ relevance
            query_relevance = query_relevance + weighted[layer] @ query_relevance
    return (rows[:, None] @ relevance)[:, 0]


def _identity(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device).expand(len(like), size, size)


def _normalized(relevance: Tensor) -> Tensor:
    """Relevance with the rows of its difference from the identity normalized to 1 (equations 8 and 9)."""
    identity = _identity(relevance, relevance.shape[-1])
    difference = relevance - identity
    total = difference.sum(-1, keepdim=True)
    return torch.where(total > 0, difference / total.clamp(min=torch.finfo(difference.dtype).tiny), 0) + identity
