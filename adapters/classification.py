"""Classifiers and feature extractors: any module that returns logits, or an object with ``.logits``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter, Batch, Target
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.layers import find_target_layers
from detcam.targets import ClassifierOutputTarget
from detcam.trace import ReshapeTransform

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ClassificationAdapter(Adapter):
    """Any module from a picture to class scores.

    Images are resized to `image_size` and normalised; a (B, C, H, W) tensor is taken as it is.

    Args:
        model: the module.
        target_layers: as in `Adapter`; None takes the last layer with a spatial map that the score depends on.
        reshape_transform: as in `Adapter`.
        names: class index to name.
        image_size: height and width of the network's input; None takes what the model declares, else 224.
        mean: per channel, of pixels in [0, 1]; None takes what the model declares, else ImageNet's.
        std: likewise.
    """

    family = "classification"
    task: ClassVar[Any] = "classification"

    def __init__(
        self,
        model: nn.Module,
        *,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        names: Mapping[int, str] | Sequence[str] | None = None,
        image_size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        declared: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
        size = image_size or declared_size(model, declared)
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.mean = tuple(mean or declared.get("mean") or IMAGENET_MEAN)
        self.std = tuple(std or declared.get("std") or IMAGENET_STD)
        super().__init__(model, target_layers=target_layers, reshape_transform=reshape_transform, names=names)

    @classmethod
    def supports(cls, model: Any) -> bool:
        return isinstance(model, nn.Module)

    def default_target_layers(self) -> Sequence[nn.Module]:
        return find_target_layers(self.model, self.image_size, self.device, self.dtype)

    def group_key(self, image_size_hw: tuple[int, int]) -> int:
        return 0

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        resized = [F.interpolate(i[None].cpu(), self.image_size, mode="bilinear", antialias=True)[0] for i in images]
        inputs = torch.stack([(image - mean) / std for image in resized]).to(self.device, self.dtype)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return Batch(inputs, tuple(Geometry.resize(size, self.image_size) for size in sizes))

    def forward(self, batch: Batch) -> Any:
        return self.model(batch.inputs, *batch.extra_inputs, **batch.model_kwargs)

    def outputs(self, raw: Any, batch: Batch) -> list[Any]:
        logits = getattr(raw, "logits", raw)
        if isinstance(logits, Mapping) and "logits" in logits:
            logits = logits["logits"]
        if not isinstance(logits, Tensor) or len(logits) != len(batch.inputs):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(
                f"expected logits of shape ({len(batch.inputs)}, C) from {type(self.model).__name__}; got {got}. For a "
                "detector or segmenter of your own use detcam.adapters.detector(model, decode=...) or segmenter(...)"
            )
        return list(logits)

    def default_targets(
        self, outputs: Sequence[Tensor], batch: Batch
    ) -> tuple[list[Detections], list[list[Target]]]:
        found = []
        for output, geometry in zip(outputs, batch.geometries, strict=True):
            if output.ndim != 1:
                raise ValueError(
                    f"targets=None needs class scores of shape (C,) per image; got {tuple(output.shape)}: say what to "
                    "explain with targets=, e.g. SemanticSegmentationTarget"
                )
            found.append(self.ranked(output, geometry.image_size_hw))
        return found, [self.targets_of(detections) for detections in found]

    def ranked(
        self,
        logits: Tensor,
        image_size_hw: tuple[int, int],
        *,
        labels: Sequence[int] | None = None,
        top_k: int | None = 1,
    ) -> Detections:
        """Classes of one picture as findings that fill it: the best ones, or the best of the given ones."""
        scores = logits.detach().float().softmax(-1).cpu()
        wanted = torch.arange(len(scores)) if labels is None else torch.tensor(list(labels), dtype=torch.int64)
        wanted = wanted[scores[wanted].argsort(descending=True, stable=True)][:top_k]
        height, width = image_size_hw
        return Detections(
            torch.tensor([[0.0, 0.0, width, height]]).expand(len(wanted), 4),
            wanted,
            scores[wanted],
            image_size_hw,
            (Source("image"),) * len(wanted),
            names=self.names,
        )

    def targets_of(self, detections: Detections) -> list[Target]:
        return [ClassifierOutputTarget(label) for label in detections.labels.tolist()]


def declared_size(model: nn.Module, declared: Mapping[str, Any]) -> int | tuple[int, int]:
    """The input size that a model declares, else 224."""
    if declared.get("input_size"):
        return int(declared["input_size"][-2]), int(declared["input_size"][-1])
    size = getattr(model, "image_size", None)
    return size if isinstance(size, int) else 224
