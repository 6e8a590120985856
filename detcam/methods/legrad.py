"""LeGrad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter
from detcam.methods.common.attention_base import AttentionCAM, Layers, NoAttentionError, blocks, gradients, rounds
from detcam.methods.common.attention_capture import Attention, Recorder
from detcam.outputs import work_dtype
from detcam.perturbation.base import pin_targets
from detcam.perturbation.replay import ReplayRecorder
from detcam.results import Pass
from detcam.trace import ReshapeTransform, map_tensors


class LeGrad(AttentionCAM):
    r"""How much more attention to a token would help, layer by layer, each layer read by the model's own head.

    .. math:: \hat E^l = \frac{1}{h n} \sum_h \sum_i \left(\frac{\partial s^l}{\partial A^l_{h, i, \cdot}}\right)^+,
        \quad L = \frac{1}{|l|} \sum_l \hat E^l

    s^l is the target's score where the last block puts out what block l put out: the model's own pooling (class token
    or mean), normalisation and head read that layer's tokens. A decoder's cross-attention (DETR, RT-DETR) is treated
    alike. Where a query pools the last block's tokens (SigLIP), A^l is its attention to the tokens of block l.

    Bousselham et al., *LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity*,
    ICCV 2025, https://arxiv.org/abs/2404.03214.

    Args:
        model: a transformer, or its adapter.
        target_layers: accepted so that methods can be swapped; see `depth`.
        reshape_transform: from tokens (B, N, 1) to (B, 1, h, w), prefix tokens dropped; None infers it.
        depth: how many of the last layers are read; None reads all.
    """

    name = "legrad"
    paper = "Bousselham et al., LeGrad, ICCV 2025, https://arxiv.org/abs/2404.03214"
    cost = "2 forwards, then per layer its head and 1 backward per target"
    use = "vision transformers, class or concept; DETR-like decoders"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if depth is not None and depth < 1:
            raise ValueError(f"expected depth of at least 1, or None for all layers; got {depth}")
        self.depth = depth

    def relevance(self, run: Pass, layers: Layers, scalars: list[list[Tensor]]) -> list[Tensor]:
        count = min(self.depth or len(self._layers(layers)), len(self._layers(layers)))
        found = self.empty(layers, scalars)
        for layer, read in self._read(run, layers, count, scalars):
            for k, images, total in rounds(read):
                (gradient,) = gradients(total, [layer], self.model)
                helpful = layer.split(gradient)[images].clamp(min=0).to(work_dtype(gradient))
                tokens = layer.over_keys(helpful).mean((1, 2)) / count
                for row, image in enumerate(images):
                    found[image][k] += tokens[row]
        return found

    def _layers(self, layers: Layers) -> Sequence[Attention]:
        """The layers that are read one by one: a decoder's, or those of the image."""
        return layers.crosses if self.adapter.task == "detection" else layers.image or layers.crosses

    def _read(
        self, run: Pass, layers: Layers, count: int, scalars: list[list[Tensor]]
    ) -> Iterator[tuple[Attention, list[list[Tensor]]]]:
        """For the last layers, the last one first: the attention that matters, and the scores of what the block says.

        Where a query pools the tokens, its attention matters, as it falls on that block's tokens.
        """
        yield layers.last, scalars
        if count == 1:
            return
        adapter, recorder = run.adapter, run.watched
        around = self._blocks(layers, recorder)[-count:]
        attentions = self._layers(layers)[-count:]
        pools = layers.last is not attentions[-1]
        targets = [pin_targets(output, row) for output, row in zip(run.outputs, run.targets, strict=True)]
        behind = ReplayRecorder(self.model, around[-1])
        with torch.no_grad(), behind.record():
            adapter.forward(run.batch)
        for layer, block in zip(reversed(attentions[:-1]), reversed(around[:-1]), strict=True):
            # What follows may work in place; it gets a copy, which stands in the first pass's graph.
            tokens = map_tensors(recorder.output_of(block), torch.clone)
            with behind.replay(tokens, len(run.batch.inputs)), self.watching(run.batch) as again:
                raw = adapter.forward(run.batch)
            yield again.attentions[-1] if pools else layer, adapter.score(adapter.outputs(raw, run.batch), targets)

    def _blocks(self, layers: Layers, recorder: Recorder) -> list[nn.Module]:
        """The block around each attention layer, whose output the next block takes."""
        found = blocks(self._layers(layers))
        if not all(found):
            raise NoAttentionError(
                f"{type(self.model).__name__} runs the same attention several times, so its layers cannot be read one "
                "by one; use LeGrad with depth=1, or CheferCAM"
            )
        shapes = {str(_shapes(recorder.output_of(block[0]))) for block in found}
        if len(shapes) > 1:
            raise NoAttentionError(
                f"the blocks of {type(self.model).__name__} put out different shapes ({', '.join(sorted(shapes))}), so "
                "the head cannot read them all; use LeGrad with depth=1, or CheferCAM"
            )
        return [block[0] for block in found]


def _shapes(output: Any) -> Any:
    return map_tensors(output, lambda tensor: tuple(tensor.shape))
