"""LeGrad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.base import ModelLike
from detcam.layers import LayersLike
from detcam.methods.common.attention_base import (
    AttentionCAM,
    AttentionLayers,
    NoAttentionError,
    attention_gradients,
    enclosing_blocks,
    target_rounds,
)
from detcam.methods.common.attention_capture import AttentionRecorder, AttentionRun
from detcam.perturbation.base import pin_targets
from detcam.perturbation.replay_recorder import ReplayRecorder
from detcam.results import Pass
from detcam.trace import ReshapeTransform, map_tensors
from detcam.utils.precision import work_dtype


class LeGrad(AttentionCAM):
    r"""Sensitivity of the score to attention, layer by layer, with the model's head applied to each layer.

    .. math:: \hat E^l = \frac{1}{h n} \sum_h \sum_i \left(\frac{\partial s^l}{\partial A^l_{h, i, \cdot}}\right)^+,
        \quad L = \frac{1}{|l|} \sum_l \hat E^l

    with :math:`A^l` the attention of layer l, with h heads and n queries i, and :math:`s^l` the target's score if the
    output of block l replaces that of the last block: the model's pooling (class token or mean), normalization and head
    are applied to that layer's tokens. Cross-attention of a decoder (DETR, RT-DETR) is treated alike. If a query pools
    the tokens of the last block (SigLIP), :math:`A^l` is its attention to the tokens of block l.

    Bousselham et al., *LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity*,
    ICCV 2025, https://arxiv.org/abs/2404.03214.

    Use it for vision transformers, with a class or a text concept as target.

    Args:
        model: a transformer, or its adapter.
        target_layers: accepted for interchangeability; see `depth`.
        reshape_transform: from tokens (B, N, 1) to (B, 1, h, w), prefix tokens dropped; None infers it.
        depth: number of last layers that are read; None reads all.
    """

    name = "legrad"
    paper = "Bousselham et al., LeGrad, ICCV 2025, https://arxiv.org/abs/2404.03214"
    cost = "2 forwards, then per layer its head and 1 backward per target"
    use = "vision transformers, class or concept; DETR-like decoders"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        depth: int | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if depth is not None and depth < 1:
            raise ValueError(f"expected depth of at least 1, or None for all layers; got {depth}")
        self.depth = depth

    def relevance(self, run: Pass, layers: AttentionLayers, scalars: list[list[Tensor]]) -> list[Tensor]:
        count = min(self.depth or len(self._read_layers(layers)), len(self._read_layers(layers)))
        relevance = self.zeros(layers, scalars)
        for layer, read in self._layer_scores(run, layers, count, scalars):
            for k, images, total in target_rounds(read):
                (gradient,) = attention_gradients(total, [layer], self.model)
                positive = layer.by_head(gradient)[images].clamp(min=0).to(work_dtype(gradient))
                tokens = layer.per_key(positive).mean((1, 2)) / count
                for row, image in enumerate(images):
                    relevance[image][k] += tokens[row]
        return relevance

    def _read_layers(self, layers: AttentionLayers) -> Sequence[AttentionRun]:
        """The layers that are read: those of a decoder, or those of the image."""
        return layers.crosses if self.adapter.task == "detection" else layers.image or layers.crosses

    def _layer_scores(
        self, run: Pass, layers: AttentionLayers, count: int, scalars: list[list[Tensor]]
    ) -> Iterator[tuple[AttentionRun, list[list[Tensor]]]]:
        """Yield, from the last layer back, the attention to differentiate and the scores of the layer's tokens.

        If a query pools the tokens, this is its attention to the tokens of the layer.
        """
        yield layers.last, scalars
        if count == 1:
            return
        adapter, recorder = run.adapter, run.recorded
        blocks = self._blocks(layers, recorder)[-count:]
        attentions = self._read_layers(layers)[-count:]
        pools = layers.last is not attentions[-1]
        targets = [pin_targets(output, row) for output, row in zip(run.outputs, run.targets, strict=True)]
        replay = ReplayRecorder(self.model, blocks[-1])
        with torch.no_grad(), replay.record():
            adapter.forward(run.batch)
        for layer, block in zip(reversed(attentions[:-1]), reversed(blocks[:-1]), strict=True):
            # Downstream modules may modify the tokens in place, so they get a copy in the graph of the first pass.
            tokens = map_tensors(recorder.output_of(block), torch.clone)
            with replay.replay(tokens, len(run.batch.inputs)), self.recording(run.batch) as replayed:
                raw = adapter.forward(run.batch)
            yield replayed.attentions[-1] if pools else layer, adapter.score(adapter.outputs(raw, run.batch), targets)

    def _blocks(self, layers: AttentionLayers, recorder: AttentionRecorder) -> list[nn.Module]:
        """The block of each attention layer, whose output is the input of the next block."""
        blocks = enclosing_blocks(self._read_layers(layers))
        if not all(blocks):
            raise NoAttentionError(
                f"{type(self.model).__name__} runs the same attention several times, so its layers cannot be read one "
                "by one; use LeGrad with depth=1, or CheferCAM"
            )
        shapes = {str(_shapes(recorder.output_of(block[0]))) for block in blocks}
        if len(shapes) > 1:
            raise NoAttentionError(
                f"the blocks of {type(self.model).__name__} return different shapes ({', '.join(sorted(shapes))}), so "
                "the head cannot read them all; use LeGrad with depth=1, or CheferCAM"
            )
        return [block[0] for block in blocks]


def _shapes(output: Any) -> Any:
    return map_tensors(output, lambda tensor: tuple(tensor.shape))
