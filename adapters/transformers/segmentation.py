"""Semantic segmentation networks of transformers whose output has ``.logits``: SegFormer, UperNet, DPT, BEiT, ..."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from typing_extensions import Unpack

from detcam.adapters.base import AdapterOptions
from detcam.adapters.custom_segmenter import CustomSegmentationAdapter
from detcam.adapters.normalization import Normalization
from detcam.adapters.transformers.base import TransformersModel
from detcam.adapters.transformers.model import has_head


class TransformersSegmenter(TransformersModel, CustomSegmentationAdapter):
    """Semantic segmentation networks of transformers with ``.logits`` of any stride.

    Images are prepared by the model's image processor. Logits are resized to the image, undoing padding and crop, and
    classes are assigned by their maximum, as in `post_process_semantic_segmentation`.

    Args:
        model: a model such as ``SegformerForSemanticSegmentation``.
        processor: as in `TransformersDetector`.
        image_size: height and width of the input, or one number: the shorter side where the processor keeps the aspect
            ratio. None takes the processor's.
        background: as in `SegmentationAdapter`.
        **options: further arguments of `Adapter`, such as `target_layers` and `names`. By default, the target layer is
            the one that the last layer reads.
    """

    family = "transformers segmentation"
    fixed_options = frozenset({"mean", "std", "multilabel", "multiple", "output", "output_key"})

    def __init__(
        self,
        model: nn.Module,
        *,
        processor: Any = None,
        image_size: int | tuple[int, int] | None = None,
        background: int | Literal["auto"] | None = "auto",
        **options: Unpack[AdapterOptions],
    ) -> None:
        self.use_processor(model, processor, image_size)
        super().__init__(model, output="logits", multilabel=False, background=background, **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        return has_head(model, "ForSemanticSegmentation")

    def default_normalization(self) -> Normalization:
        return Normalization(self.preparation.mean or (0.0, 0.0, 0.0), self.preparation.std or (1.0, 1.0, 1.0))

    def canvas(self, image_size_hw: tuple[int, int]) -> tuple[int, int]:
        return self.preparation.geometry(image_size_hw).input_size_hw
