"""Detectors of ultralytics with an open vocabulary: YOLO-World and YOLOE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.ultralytics.detector import UltralyticsAdapter
from detcam.adapters.ultralytics.network import PROMPTED, base_names, head_names, inner_module, is_ultralytics


class UltralyticsVocabularyAdapter(UltralyticsAdapter):
    """YOLO-World and YOLOE with the classes that were set: boxes, and masks of YOLOE.

    The classes are those of ``model.set_classes``, whose embeddings the network keeps. The text encoder does not run.

    Args:
        model: a `YOLOWorld` or `YOLOE` object, or the module inside one.
        **options: as in `UltralyticsAdapter`.

    Raises:
        ValueError: no classes are set.
        TypeError: a prompt-free YOLOE, whose head has a vocabulary of thousands of classes.
    """

    family = "ultralytics open vocabulary"

    def __init__(self, model: object, **options: Any) -> None:
        module = inner_module(model)
        if hasattr(module.model[-1], "lrpc"):
            raise TypeError(
                "a prompt-free YOLOE selects anchors inside its head; use the YOLOE with text prompts and set_classes, "
                "or decode its output with detcam.adapters.detector(model, decode=...)"
            )
        text = getattr(module, "pe" if "YOLOEDetect" in head_names(module) else "txt_feats", None)
        if not isinstance(text, Tensor):
            raise ValueError(
                f"{type(module).__name__} has no classes yet; call set_classes(names) of the YOLOE object, which runs "
                "the text encoder, or model.set_classes(names, embeddings) with embeddings (1, C, E)"
            )
        self._embeddings = text.detach()
        super().__init__(model, **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        return is_ultralytics(model) and not head_names(model).isdisjoint(PROMPTED)

    def default_names(self) -> Mapping[int, str]:
        names = super().default_names()
        return names if len(names) == self._embeddings.shape[1] else {}

    def text(self, like: Tensor) -> Tensor:
        """Return the embeddings of the classes (B, C, E) for a batch `like`."""
        return self._embeddings.to(like).expand(len(like), -1, -1)

    def layer_runner(self, count: int) -> Callable[[nn.Module, Any], Any]:
        text = self.text(torch.zeros(count, device=self.device, dtype=self.dtype))

        def run(layer: nn.Module, value: Any) -> Any:
            nonlocal text
            kinds = base_names(layer)
            if "C2fAttn" in kinds:
                return layer(value, text)
            if "ImagePoolingAttn" in kinds:  # the image changes the embeddings that later layers read
                text = layer(value, text)
                return value
            return layer(value)

        return run

    def classify(self, level: int, feature: Tensor) -> Tensor:
        similarity = self.branch.get("contrastive_head") or self.head.cv4
        logits: Tensor = similarity[level](super().classify(level, feature), self.text(feature))
        return logits
