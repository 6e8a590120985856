"""Attention rollout."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from detcam.methods.common.attention_base import AttentionCAM, AttentionLayers, attention_gradients, target_rounds
from detcam.methods.common.attention_capture import AttentionRun
from detcam.results import Pass
from detcam.utils.precision import work_dtype


class AttentionRollout(AttentionCAM):
    r"""Product of the attention matrices of all layers, residual connections included; independent of the target.

    .. math:: \tilde A^l = \tfrac12\left(\mathbb{E}_h[A^l] + I\right),\quad R = \tilde A^L \cdots \tilde A^1

    with :math:`A^l` the attention of layer l of L, :math:`\mathbb{E}_h` the mean over heads, I the identity, and R the
    rollout. The map is the row of the class token, or the mean of the rows that the output reads, which the gradient at
    the last layer identifies. A last layer that pools tokens by a query is averaged over heads, without residual.

    Abnar and Zuidema, *Quantifying Attention Flow in Transformers*, ACL 2020, https://arxiv.org/abs/2005.00928.

    Use it to inspect where a ViT attends; it ignores the target.
    """

    name = "attentionrollout"
    paper = "Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, https://arxiv.org/abs/2005.00928"
    cost = "1 forward, 1 backward through the last layer per target"
    use = "inspecting where a ViT attends; ignores the target"
    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "embedding"})
    class_discriminative = False

    def relevance(self, run: Pass, layers: AttentionLayers, scalars: list[list[Tensor]]) -> list[Tensor]:
        relevance = self.zeros(layers, scalars)
        mixed = [_mixed(layer) for layer in reversed(layers.image)]
        for k, images, total in target_rounds(scalars):
            (gradient,) = attention_gradients(total, [layers.last], self.model)
            tokens = self.output_queries(run, layers, gradient, images, k)
            if layers.crosses:
                tokens = (tokens[:, None] @ _averaged(layers.last)[images])[:, 0]
            for layer in mixed:
                tokens = (tokens[:, None] @ layer[images])[:, 0]
            for row, image in enumerate(images):
                relevance[image][k] = tokens[row]
        return relevance


def _averaged(layer: AttentionRun) -> Tensor:
    """(B, queries, keys), the mean over heads."""
    probabilities = layer.by_head(layer.tensor.detach())
    return layer.per_key(probabilities.to(work_dtype(probabilities))).mean(1)


def _mixed(layer: AttentionRun) -> Tensor:
    """(B, tokens, tokens): mean of attention and identity, rows normalized to 1."""
    average = _averaged(layer)
    mixed = average + torch.eye(average.shape[-1], dtype=average.dtype, device=average.device)
    return mixed / mixed.sum(-1, keepdim=True)
