"""Open-vocabulary detectors of transformers: Grounding DINO, MM-Grounding DINO, OWL-ViT and OWLv2."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from detcam.adapters.base import AdapterOptions, Batch
from detcam.adapters.transformers.detector import OPEN_VOCABULARY_FAMILIES, TransformersDetector
from detcam.adapters.transformers.layers import token_levels
from detcam.adapters.transformers.model import find_tokenizer, has_head, model_type
from detcam.adapters.transformers.prompts import WordHeat, check_prompts, encode_joined, encode_separately
from detcam.adapters.transformers.queries import ChosenTokens, Queries, corners, grids_of
from detcam.detections import Detections
from detcam.outputs import Target
from detcam.trace import guarded
from detcam.utils.hooks import active_hooks

JOINED_FAMILIES = frozenset({"grounding_dino", "mm_grounding_dino"})
"""Families that read all prompts as one text and score each of its tokens."""

SEPARATE_FAMILIES = frozenset({"owlvit", "owlv2"})
"""Families that read each prompt as a text of its own and score it."""


class TransformersOpenVocabulary(TransformersDetector):
    """Grounding DINO, MM-Grounding DINO, OWL-ViT and OWLv2: the prompts are the classes.

    A detection is a query and the prompt that it fits best; both are pinned. The score of a prompt is that of its best
    token (Grounding DINO, the full stop after the prompt included) or of the whole prompt (OWL-ViT). `words` says which
    word of the prompt made a box.

    Args:
        model: a model such as ``GroundingDinoForObjectDetection``.
        prompts: what to look for, such as ``["a boat", "a buoy"]``.
        processor: the processor with image processor and tokenizer, or the folder that holds it; None takes the one
            saved beside the model's weights.
        image_size: as in `TransformersDetector`.
        score_threshold: minimum score of a detection, in [0, 1]; None takes the library's, 0.25 for Grounding DINO and
            0.1 for OWL-ViT.
        max_detections: maximum number of detections per image.
        **options: further arguments of `Adapter`, such as `target_layers` and `names`.

    Raises:
        ValueError: no prompts, prompts that are too long, or no tokenizer.
    """

    family = "transformers open vocabulary"
    fixed_options = frozenset({"activation"})
    one_label_per_query = True

    def __init__(
        self,
        model: nn.Module,
        *,
        prompts: Sequence[str] | str | None = None,
        processor: Any = None,
        image_size: int | tuple[int, int] | None = None,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        **options: Unpack[AdapterOptions],
    ) -> None:
        family = model_type(model)
        if family not in JOINED_FAMILIES | SEPARATE_FAMILIES:
            raise ValueError(
                f"{type(model).__name__} is not supported; use detcam.adapters.detector(model, decode=...) with a "
                "module that contains the model and its prompts"
            )
        self.reads_joined = family in JOINED_FAMILIES
        checked = check_prompts(prompts)
        self.tokenizer = find_tokenizer(model, processor)
        self._encode(model, checked)
        default = 0.25 if self.reads_joined else 0.1
        super().__init__(
            model,
            processor=processor,
            image_size=image_size,
            activation="sigmoid",
            score_threshold=default if score_threshold is None else score_threshold,
            max_detections=max_detections,
            **options,
        )

    @classmethod
    def supports(cls, model: object) -> bool:
        return has_head(model, "ForObjectDetection") and model_type(model) in OPEN_VOCABULARY_FAMILIES

    def _encode(self, model: Any, prompts: tuple[str, ...]) -> None:
        if self.reads_joined:
            self.encoded = encode_joined(self.tokenizer, prompts, model.config.max_text_len)
        else:
            length = model.config.text_config.max_position_embeddings
            self.encoded = encode_separately(self.tokenizer, prompts, length)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, in the order of the classes."""
        return self.encoded.prompts

    def with_prompts(self, prompts: Sequence[str]) -> Self:
        """Return a copy that looks for other prompts."""
        changed = copy.copy(self)
        changed._encode(self.model, check_prompts(prompts))
        changed.names = dict(changed.default_names())
        return changed

    def default_names(self) -> Mapping[int, str]:
        return dict(enumerate(self.prompts))

    def call_settings(self, batch: Batch) -> dict[str, Any]:
        count = len(batch.inputs)
        text = {name: ids.repeat(count, 1).to(self.device) for name, ids in self.encoded.inputs.items()}
        return {**super().call_settings(batch), **text}

    def read(self, output: Any, batch: Batch, chosen: ChosenTokens) -> Queries:
        boxes, size = corners(output.pred_boxes), (batch.inputs.shape[-2], batch.inputs.shape[-1])
        if self.reads_joined:
            spans = self.encoded.spans
            logits = torch.stack([output.logits[..., list(span)].amax(-1) for span in spans], -1)
            grids = grids_of(chosen, size, token_levels(self.model))
            return Queries(logits, boxes, None if grids is None else chosen.tokens, grids)
        config: Any = self.model.config
        patch = config.vision_config.patch_size
        count, queries = output.logits.shape[:2]
        tokens = torch.arange(queries, device=boxes.device).expand(count, -1)  # a query is a patch
        return Queries(output.logits, boxes, tokens, ((size[0] // patch, size[1] // patch),))

    def words(self, image: Tensor, detections: Detections) -> list[WordHeat]:
        """Return what each word of its prompt contributes to the score of each detection.

        Args:
            image: (3, H, W) in [0, 1].
            detections: detections of the image, as `predict` returns them.

        Returns:
            One entry per detection.
        """
        targets = self.targets_of(detections)
        embeddings: list[Tensor] = []

        def hold(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            embeddings.append(output.detach().requires_grad_(True))
            return embeddings[-1]

        with guarded(self.model, gradients=True):
            with active_hooks([(self._text_embeddings(), hold)]):
                scores = self._scores(image, targets)
            gradients = [torch.autograd.grad(score, embeddings[0], retain_graph=True)[0] for score in scores]
            heats = [(gradient * embeddings[0]).sum(-1).detach().float().cpu() for gradient in gradients]
        labels = detections.labels.tolist()
        drops: list[Tensor] = [torch.empty(0)] * len(targets)
        for label in sorted(set(labels)):
            rows = [row for row, other in enumerate(labels) if other == label]
            without = self._scores_without_words(image, [targets[row] for row in rows], label)
            for row, scores_without in zip(rows, without, strict=True):
                drops[row] = scores[row].detach().float().cpu() - scores_without
        return [self._word_heat(label, heat, drop) for label, heat, drop in zip(labels, heats, drops, strict=True)]

    def _scores_without_words(self, image: Tensor, targets: Sequence[Target], label: int) -> Tensor:
        """Return the scores (T, W) of targets of one prompt when each word of it is left out, one pass per word."""
        words = [word.text for word in self.encoded.words[label]]
        scores = torch.full((len(targets), len(words)), torch.nan)
        for left_out in range(len(words) if len(words) > 1 else 0):
            rest = " ".join(words[:left_out] + words[left_out + 1 :])
            changed = self.with_prompts([*self.prompts[:label], rest, *self.prompts[label + 1 :]])
            with guarded(self.model, gradients=False):
                scores[:, left_out] = torch.stack(changed._scores(image, targets)).float().cpu()
        return scores

    def _word_heat(self, label: int, heat: Tensor, drops: Tensor) -> WordHeat:
        words = self.encoded.words[label]
        values = [float(heat[word.row, list(word.tokens)].sum()) for word in words]
        return WordHeat(self.prompts[label], tuple(word.text for word in words), torch.tensor(values), drops)

    def _scores(self, image: Tensor, targets: Sequence[Target]) -> list[Tensor]:
        batch = self.prepare([image])
        return self.score(self.outputs(self.forward(batch), batch), [targets])[0]

    def _text_embeddings(self) -> nn.Module:
        """The layer from tokens to vectors."""
        model: Any = self.model
        if self.reads_joined:
            return model.model.text_backbone.get_input_embeddings()
        return getattr(model, model_type(model)).text_model.embeddings.token_embedding
