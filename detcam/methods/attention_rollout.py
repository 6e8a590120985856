"""AttentionRollout."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from detcam.methods.common.attention_base import AttentionCAM, Layers, gradients, rounds
from detcam.methods.common.attention_capture import Attention
from detcam.outputs import work_dtype
from detcam.results import Pass


class AttentionRollout(AttentionCAM):
    r"""How attention mixes tokens from layer to layer, residual connections included; ignores the target.

    .. math:: \tilde A^l = \tfrac12\left(\mathbb{E}_h[A^l] + I\right),\quad R = \tilde A^L \cdots \tilde A^1

    The row of the class token is the map, or the mean of the rows that the output reads; which these are is seen from
    the gradient at the last layer, which has no other part. A last layer that pools tokens by a query is averaged
    over heads, without residual.

    Abnar and Zuidema, *Quantifying Attention Flow in Transformers*, ACL 2020, https://arxiv.org/abs/2005.00928.
    """

    name = "attentionrollout"
    paper = "Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, https://arxiv.org/abs/2005.00928"
    cost = "1 forward, 1 backward through the last layer per target"
    use = "a look at where a ViT attends; ignores the target"
    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "embedding"})
    class_discriminative = False

    def relevance(self, run: Pass, layers: Layers, scalars: list[list[Tensor]]) -> list[Tensor]:
        found = self.empty(layers, scalars)
        mixed = [_mixed(layer) for layer in reversed(layers.image)]
        for k, images, total in rounds(scalars):
            (gradient,) = gradients(total, [layers.last], self.model)
            tokens = self.rows(run, layers, gradient, images, k)
            if layers.crosses:
                tokens = (tokens[:, None] @ _averaged(layers.last)[images])[:, 0]
            for layer in mixed:
                tokens = (tokens[:, None] @ layer[images])[:, 0]
            for row, image in enumerate(images):
                found[image][k] = tokens[row]
        return found


def _averaged(layer: Attention) -> Tensor:
    """(B, queries, keys), the mean over heads."""
    probabilities = layer.split(layer.tensor.detach())
    return layer.over_keys(probabilities.to(work_dtype(probabilities))).mean(1)


def _mixed(layer: Attention) -> Tensor:
    """(B, tokens, tokens): attention and residual connection in equal parts, rows that sum to 1."""
    average = _averaged(layer)
    both = average + torch.eye(average.shape[-1], dtype=average.dtype, device=average.device)
    return both / both.sum(-1, keepdim=True)
