"""Mask targets: a class over a region of a semantic map, or the mask of one instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detcam.outputs import DetectorOutput, SegmenterOutput
from detcam.detections import class_name
from detcam.targets.box import DetectionTarget, check_label


@dataclass(frozen=True, eq=False)
class MaskTarget:
    """Mean logit of a class over a region of the picture.

    Attributes:
        label: class index of the segmentation network.
        mask: (H, W) bool in original image pixels, a tensor or an array; None takes the whole picture.
        against: another class index: explain the difference of the two logits.
    """

    label: int
    mask: Any = None
    against: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", int(self.label))
        if self.mask is not None:
            object.__setattr__(self, "mask", _region(self.mask))

    def hflip(self, width: int) -> MaskTarget:
        """The same target in the picture mirrored left to right."""
        return self if self.mask is None else replace(self, mask=self.mask.flip(-1))

    def check(self, image_size_hw: tuple[int, int], names: Mapping[int, str], classes: int) -> None:
        """Raise ValueError where the mask is not of the image's size or the model has no such class."""
        for label in (self.label, self.against):
            if label is not None:
                check_label(label, names, classes)
        if self.mask is not None and tuple(self.mask.shape) != tuple(image_size_hw):
            raise ValueError(f"expected a mask of the image's size {image_size_hw}; got {tuple(self.mask.shape)}")

    def describe(self, names: Mapping[int, str]) -> str:
        """The target in words, for captions."""
        words = class_name(names, self.label)
        return words if self.against is None else f"{words} rather than {class_name(names, self.against)}"

    def __call__(self, output: SegmenterOutput) -> Tensor:
        if not isinstance(output, SegmenterOutput):
            raise TypeError(
                f"MaskTarget needs a segmentation network's output; got {type(output).__name__}. Wrap the model with "
                "detcam.adapters.segmenter(...), or use SemanticSegmentationTarget on raw (C, h, w) output"
            )
        logits = output.class_map(self.label)
        if self.against is not None:
            logits = logits - output.class_map(self.against)
        weights = output.cells(self.mask)
        return (logits * weights).sum() / weights.sum().clamp(min=1e-9)


@dataclass(frozen=True)
class InstanceMaskTarget(DetectionTarget):
    """Mean logit of one instance's mask over the pixels that the mask covers (where its logit is positive).

    For Mask R-CNN the mask head's logits in the box, for YOLO's segmentation heads the prototypes times coefficients.
    """

    part: ClassVar[Literal["box", "mask"]] = "mask"

    def describe(self, names: Mapping[int, str]) -> str:
        return f"mask of {class_name(names, self.label)}"

    def __call__(self, output: DetectorOutput) -> Tensor:
        return output.score([self])[0]


class SemanticSegmentationTarget:
    """Sum of a class's scores over a mask at the resolution of the model's output, as in pytorch_grad_cam.

    Args:
        category: class index.
        mask: (h, w), bool or float, of the output's size; a tensor or an array.
    """

    def __init__(self, category: int, mask: Any) -> None:
        self.category = int(category)
        self.mask = torch.as_tensor(mask)

    def hflip(self, width: int) -> SemanticSegmentationTarget:
        """The same target in the picture mirrored left to right."""
        return SemanticSegmentationTarget(self.category, self.mask.flip(-1))

    def __call__(self, model_output: Any) -> Tensor:
        scores = model_output[self.category]
        if self.mask.shape != scores.shape:
            raise ValueError(f"expected a mask of the output's size {tuple(scores.shape)}; got {tuple(self.mask.shape)}")
        return (scores * self.mask.to(scores.device)).sum()


def _region(mask: Any) -> Tensor:
    region = torch.as_tensor(mask)
    if region.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W); got {tuple(region.shape)}")
    region = region.bool()
    if not region.any():
        raise ValueError("the mask is empty; give a region with at least one pixel, or mask=None for the whole picture")
    return region
