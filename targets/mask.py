"""Mask targets: a class over a region of a semantic map, or the mask of one instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy.typing as npt
import torch
from torch import Tensor

from detcam.detections import class_name, label_index
from detcam.geometry import mask_to_box
from detcam.outputs import BaseTarget, DetectionTarget, Part, check_label, set_indices
from detcam.segmenter_output import SegmenterOutput
from detcam.utils.precision import work_dtype


@dataclass(frozen=True, eq=False)
class MaskTarget(BaseTarget):
    r"""Mean logit of a class over a region of the image.

    :math:`\frac{1}{|M|} \sum_{p \in M} y^c_p` over the pixels p of the region M, as in Seg-Grad-CAM
    (https://arxiv.org/abs/2002.11434) up to the factor. A pixel has the logits of its output cell, or the mean of
    several cells weighted by area. For a head with one channel, class 1 is its logit and class 0 the negative of it.

    Attributes:
        label: class index of the segmentation network; a method also takes its name.
        mask: (H, W) in original image pixels, a tensor or an array, bool or of two values, with at least one pixel.
            None takes the whole image.
        against: another class index, whose logit is subtracted.

    Example:
        >>> from detcam.targets import MaskTarget
        >>> MaskTarget(1, [[0, 1, 1], [0, 0, 0]]).box_xyxy
        (1.0, 0.0, 3.0, 1.0)
    """

    quantity = "logit"
    has_position = True

    label: int = field()
    mask: Any = None
    against: int | None = None

    def __post_init__(self) -> None:
        set_indices(self)
        if self.against is not None and self.against == self.label:
            raise ValueError(f"expected another class in against=; got class {self.label} against itself")
        if self.mask is not None:
            object.__setattr__(self, "mask", _bool_mask(self.mask))
            object.__setattr__(self, "box_xyxy", mask_to_box(self.mask))

    def named(self, names: Mapping[int, str]) -> MaskTarget:
        if not isinstance(self.label, str) and not isinstance(self.against, str):
            return self
        against = None if self.against is None else label_index(names, self.against)
        return replace(self, label=label_index(names, self.label), against=against)

    def hflip(self, width: int) -> MaskTarget:
        return self if self.mask is None else replace(self, mask=self.mask.flip(-1))

    def check(self, image_size_hw: tuple[int, int], names: Mapping[int, str], classes: int) -> None:
        for label in (self.label, self.against):
            if label is not None:
                check_label(label, names, classes)
        if self.mask is not None:
            _check_size(self.mask, image_size_hw)

    def describe(self, names: Mapping[int, str]) -> str:
        name = class_name(names, self.label)
        return name if self.against is None else f"{name} rather than {class_name(names, self.against)}"

    def __call__(self, output: SegmenterOutput) -> Tensor:
        if not isinstance(output, SegmenterOutput):
            raise TypeError(
                f"MaskTarget needs a segmentation network's output; got {type(output).__name__}. Wrap the model with "
                "detcam.adapters.segmenter(...), or use SemanticSegmentationTarget on raw (C, h, w) output"
            )
        self.check(output.geometry.image_size_hw, {}, output.classes)
        logits = output.class_map(self.label)
        if self.against is not None:
            logits = logits - output.class_map(self.against)
        weights = output.cells(self.mask)
        return (logits.to(work_dtype(logits)) * weights).sum() / weights.sum()


@dataclass(frozen=True)
class InstanceMaskTarget(DetectionTarget):
    """Mean logit of one instance's mask over the pixels of the mask (where its logit is positive).

    The logits are those of the mask head for Mask R-CNN, and prototypes times coefficients for YOLO.
    """

    part: ClassVar[Part] = "mask"
    quantity = "mask"

    def describe(self, names: Mapping[int, str]) -> str:
        return f"mask of {class_name(names, self.label)}"


@dataclass(frozen=True, eq=False)
class MaskErrorTarget(DetectionTarget):
    r"""How far an instance's mask is off its object.

    .. math:: y = \frac{1}{n} \sum_p \max(0, d_p\, z_p), \quad d_p = 1 \text{ beside the object},\ -1 \text{ on it}

    with :math:`z_p` the logits of the n cells of the instance's mask, as those of `InstanceMaskTarget`. It is 0 for a
    mask that is right. The mean over the whole mask would explain the object, to which most of a wrong mask belongs.
    Only cells that are wrong contribute; those outside the mask's cells, such as pixels outside the box of a Mask R-CNN
    or a YOLO, do not.

    Attributes:
        mask: (H, W) in original image pixels, the object; a tensor or an array, bool or of two values.

    Example:
        >>> import torch
        >>> from detcam.targets import MaskErrorTarget
        >>> target = MaskErrorTarget((0, 0, 2, 1), label=1, mask=[[1, 0], [0, 0]])
        >>> target.mask_value(torch.tensor([[3.0, 4.0]]), (0.0, 0.0, 2.0, 1.0))
        tensor(2.)
    """

    part: ClassVar[Part] = "mask"
    quantity = "mask error"

    mask: Any = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mask", _bool_mask(self.mask))

    def hflip(self, width: int) -> MaskErrorTarget:
        return replace(super().hflip(width), mask=self.mask.flip(-1))

    def check(self, image_size_hw: tuple[int, int], names: Mapping[int, str], classes: int) -> None:
        super().check(image_size_hw, names, classes)
        _check_size(self.mask, image_size_hw)

    def describe(self, names: Mapping[int, str]) -> str:
        return f"error of the mask of {class_name(names, self.label)}"

    def mask_value(self, logits: Tensor, area_xyxy: tuple[float, float, float, float]) -> Tensor:
        left, top, right, bottom = area_xyxy
        height, width = logits.shape
        rows = _pixels_at_centers(top, bottom, height, self.mask.shape[0])
        columns = _pixels_at_centers(left, right, width, self.mask.shape[1])
        on_object = self.mask[rows][:, columns].to(logits.device)
        return torch.where(on_object, -logits, logits).clamp(min=0).mean()


class SemanticSegmentationTarget(BaseTarget):
    """Sum of a class's scores over a mask at the resolution of the model's output, as in pytorch_grad_cam.

    The mask refers to the network's output, padding included; that of a `MaskTarget` refers to the image.

    Args:
        category: class index, the channel of the model's output.
        mask: (h, w), bool or float weights, of the output's size; a tensor or an array.
    """

    has_position = True

    def __init__(self, category: int, mask: npt.ArrayLike) -> None:
        self.category = self.label = int(category)
        self.mask = torch.as_tensor(mask)

    def hflip(self, width: int) -> SemanticSegmentationTarget:
        return SemanticSegmentationTarget(self.category, self.mask.flip(-1))

    def __call__(self, model_output: Tensor | SegmenterOutput) -> Tensor:
        shape = getattr(model_output, "shape", None)
        if shape is None or len(shape) != 3:
            got = type(model_output).__name__ if shape is None else f"shape {tuple(shape)}"
            raise TypeError(f"SemanticSegmentationTarget needs class maps (C, h, w) for each image; got {got}")
        if not 0 <= self.category < shape[0]:
            raise ValueError(f"expected a channel of the model's output, 0 to {shape[0] - 1}; got {self.category}")
        scores: Tensor = model_output[self.category]
        if self.mask.shape != scores.shape:
            raise ValueError(
                f"expected a mask of the output's size {tuple(scores.shape)}; got {tuple(self.mask.shape)}. For a mask "
                "in image pixels use MaskTarget"
            )
        return (scores * self.mask.to(scores.device)).sum()


def _pixels_at_centers(start: float, end: float, cells: int, pixels: int) -> Tensor:
    """The pixels (cells,) at the centers of cells that divide an interval evenly; the nearest ones of the image."""
    centers = start + (torch.arange(cells) + 0.5) / cells * (end - start)
    return centers.floor().long().clamp(0, pixels - 1)


def _check_size(mask: Tensor, image_size_hw: tuple[int, int]) -> None:
    if tuple(mask.shape) != tuple(image_size_hw):
        raise ValueError(
            f"expected a mask of the image's height and width {tuple(image_size_hw)}; got {tuple(mask.shape)}"
        )


def _bool_mask(mask: Any) -> Tensor:
    """Return a (H, W) bool copy of a mask."""
    values = torch.as_tensor(mask)
    if values.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W); got {tuple(values.shape)}")
    region = values.bool().clone()
    if not region.any():
        raise ValueError("the mask is empty; expected at least one pixel, or mask=None for the whole image")
    inside = values[region]
    if values.dtype != torch.bool and (inside != inside[0]).any():
        raise ValueError(
            "expected a mask of two values, 0 and another; got more of them. From a label map take `labels == class`, "
            "from probabilities `probabilities > 0.5`"
        )
    return region
