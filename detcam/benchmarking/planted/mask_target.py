"""A target for the part of an instance's mask that is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from detcam.adapters.torchvision.two_stage import TwoStageOutput
from detcam.outputs import DetectionTarget, ModelOutput, Part


@dataclass(frozen=True, eq=False)
class MaskRestTarget(DetectionTarget):
    """Mean logit of an instance's mask over the pixels of its box that do not belong to the object.

    Mask R-CNN only. The mean over the whole mask would explain the object, to which most of a wrong mask belongs.

    Attributes:
        region: (H, W) bool in image pixels, the object.
    """

    part: ClassVar[Part] = "output"
    quantity = "mask beside the object"

    region: Tensor = field(kw_only=True)

    def hflip(self, width: int) -> MaskRestTarget:
        mirrored = super().hflip(width)
        return replace(self, box_xyxy=mirrored.box_xyxy, source=mirrored.source, region=self.region.flip(-1))

    def __call__(self, output: ModelOutput) -> Tensor:
        if not isinstance(output, TwoStageOutput) or not output.heads.has_mask():
            raise TypeError(f"expected the output of a Mask R-CNN; got {type(output).__name__}")
        box = output.geometry.boxes_to_input(torch.tensor([self.box_xyxy], dtype=torch.float64)).float()
        logits = output.heads.mask_predictor(output.heads.mask_head(output.pool("mask_roi_pool", box)))[0, self.label]
        rest = ~self.region[self._rows(logits.shape[0], axis=1)][:, self._rows(logits.shape[1], axis=0)]
        value: Tensor = logits[rest].mean() if bool(rest.any()) else logits.mean()
        return value

    def _rows(self, cells: int, axis: int) -> Tensor:
        """Rows (axis 1) or columns (axis 0) of the image at the centers of the mask's cells."""
        start, end = self.box_xyxy[axis], self.box_xyxy[axis + 2]
        centers = start + (torch.arange(cells) + 0.5) / cells * (end - start)
        return centers.long().clamp(0, self.region.shape[1 - axis] - 1)
