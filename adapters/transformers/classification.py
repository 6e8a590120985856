"""Classifiers of transformers, and models that compare images with text: CLIP, SigLIP and their kin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detcam.adapters.base import Batch
from detcam.adapters.classification import ClassificationAdapter
from detcam.adapters.output_heads import OutputKind
from detcam.adapters.stored_config import stored_size
from detcam.adapters.transformers.base import TransformersModel
from detcam.adapters.transformers.model import find_tokenizer, has_head, has_processor, pretrained_bases
from detcam.adapters.transformers.processor import ImagePreparation
from detcam.adapters.transformers.prompts import check_prompts, encode_separately
from detcam.geometry import checked_size
from detcam.layers import find_target_layers


class TransformersClassificationModel(TransformersModel, ClassificationAdapter, abstract=True):
    """What the two adapters share: the image processor, without its crop.

    The whole image is resized to the processor's size, without keeping its aspect ratio, so that every pixel can be
    explained. A processor that cannot stretch is used with its crop.
    """

    def _use_whole_images(self, model: nn.Module, processor: Any, image_size: int | tuple[int, int] | None) -> None:
        """Set the image processor so that it stretches images to one size."""
        self.use_processor(model, processor, None)
        own = self.preparation
        expected = own.geometry((64, 64)).input_size_hw
        chosen = checked_size(image_size) or expected
        if image_size is None and not has_processor(model, processor):
            # The defaults of its family say nothing about this model's size.
            chosen = stored_size(model, {"input_size": (3, *expected)})
        size = (chosen, chosen) if isinstance(chosen, int) else chosen
        stretching = ImagePreparation(own.processor, size)
        try:
            if stretching.geometry((60, 90)).input_size_hw == size:
                self.preparation = stretching
        except (ValueError, KeyError, TypeError, AttributeError):  # a processor that only knows the shorter side
            if image_size is not None:
                raise

    def group_key(self, image_size_hw: tuple[int, int]) -> Any:
        return super().group_key(image_size_hw)

    def _fixed_options(self) -> dict[str, Any]:
        """Arguments of the base class that follow from the processor."""
        return {
            "image_size": self.preparation.geometry((64, 64)).input_size_hw,
            "mean": self.preparation.mean or (0.0, 0.0, 0.0),
            "std": self.preparation.std or (1.0, 1.0, 1.0),
        }


class TransformersClassifier(TransformersClassificationModel):
    """Image classifiers of transformers, with the size, mean and standard deviation of their image processor.

    The whole image is resized to the processor's size, without its crop, so that every pixel can be explained.

    Args:
        model: a model such as ``ViTForImageClassification``.
        processor: as in `TransformersDetector`.
        image_size: height and width of the network's input, or one number for both; None takes the processor's.
        **options: further arguments of `ClassificationAdapter`, such as `target_layers`, `names` and `output`.
    """

    family = "transformers classification"
    fixed_options = frozenset({"mean", "std", "output_key", "decode"})

    def __init__(
        self, model: Any, *, processor: Any = None, image_size: int | tuple[int, int] | None = None, **options: Any
    ) -> None:
        self._use_whole_images(model, processor, image_size)
        if getattr(model.config, "problem_type", None) == "multi_label_classification":
            options.setdefault("output", "multilabel")
        super().__init__(model, **self._fixed_options(), **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        return has_head(model, "ForImageClassification", "ForImageClassificationWithTeacher")


class TransformersImageText(TransformersClassificationModel):
    """CLIP, SigLIP and their kin: the prompts are the classes, and a class logit is the similarity to its prompt.

    The logits are the model's ``logits_per_image``. CLIP's scores are their softmax over the prompts, those of SigLIP,
    which has a bias, their sigmoid. Images are prepared as in `TransformersClassifier`.

    Args:
        model: a model such as ``CLIPModel``.
        prompts: what to compare images with, such as ``["a photo of a boat", "a photo of a gull"]``.
        processor: the processor with image processor and tokenizer, or the folder that holds it; None takes the one
            saved beside the model's weights.
        image_size: as in `TransformersClassifier`.
        **options: further arguments of `Adapter`, such as `target_layers` and `names`.

    Raises:
        ValueError: no prompts, a prompt that is too long, or no tokenizer.
    """

    family = "transformers image-text"
    fixed_options = frozenset({"mean", "std", "output", "output_key", "decode"})

    def __init__(
        self,
        model: Any,
        *,
        prompts: Sequence[str] | str | None = None,
        processor: Any = None,
        image_size: int | tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        checked = check_prompts(prompts)
        length = model.config.text_config.max_position_embeddings
        self.encoded = encode_separately(find_tokenizer(model, processor), checked, length)
        self._use_whole_images(model, processor, image_size)
        output: OutputKind = "multilabel" if hasattr(model, "logit_bias") else "logits"
        super().__init__(model, output=output, **self._fixed_options(), **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        return (
            bool(pretrained_bases(model))
            and hasattr(model, "get_text_features")
            and hasattr(model, "get_image_features")
        )

    def default_names(self) -> Mapping[int, str]:
        return dict(enumerate(self.encoded.prompts))

    def default_target_layers(self) -> Sequence[nn.Module]:
        """Return the last layer of the image tower with a map that the embedding depends on."""
        tower: Any = self.model.vision_model
        return find_target_layers(tower, self.image_size, self.device, self.dtype, lambda output: output.pooler_output)

    def call_settings(self, batch: Batch) -> dict[str, Any]:
        text = {name: ids.to(self.device) for name, ids in self.encoded.inputs.items()}
        return {**super().call_settings(batch), **text}

    def forward(self, batch: Batch) -> Tensor:
        similarity: Tensor = super().forward(batch).logits_per_image
        return similarity
