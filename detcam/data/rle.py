"""Detections with their masks as run lengths: a folder's worth of them fits in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from pycocotools import mask as coco_masks

from detcam.detections import Detections


@dataclass(frozen=True)
class PackedDetections:
    """What was found in an image.

    Attributes:
        found: the detections, without masks.
        masks: COCO's compressed run lengths (``size``, ``counts`` as bytes), one per detection; None where there are
            no masks.
    """

    found: Detections
    masks: tuple[dict[str, Any], ...] | None = None

    @classmethod
    def of(cls, found: Detections) -> PackedDetections:
        """Pack detections; what a family says beside boxes, classes, scores and masks is left out."""
        masks = None
        if found.masks is not None:
            masks = tuple(coco_masks.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in found.masks)
        return cls(replace(found, masks=None, extras={}), masks)

    def unpack(self) -> Detections:
        """The detections with their masks (N, H, W) bool."""
        if self.masks is None:
            return self.found
        decoded = [torch.from_numpy(coco_masks.decode(mask)).bool() for mask in self.masks]
        empty = torch.zeros((0, *self.found.image_size_hw), dtype=torch.bool)
        return replace(self.found, masks=torch.stack(decoded) if decoded else empty)


class UnpackedDetections(Sequence[Detections]):
    """Images' detections with their masks, each unpacked while it is looked at."""

    def __init__(self, packed: Sequence[PackedDetections]) -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, index: int) -> Detections: ...

    @overload
    def __getitem__(self, index: slice) -> UnpackedDetections: ...

    def __getitem__(self, index: int | slice) -> Detections | UnpackedDetections:
        """One image's detections, or some images'."""
        return UnpackedDetections(self.packed[index]) if isinstance(index, slice) else self.packed[index].unpack()
