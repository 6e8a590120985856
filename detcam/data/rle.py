"""Detections with masks as run lengths, so that those of many images fit in memory."""

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
    """The detections of an image, with masks as run lengths.

    Attributes:
        detections: the detections, without masks.
        masks: COCO's compressed run lengths (``size``, ``counts`` as bytes), one per detection; None where there are
            no masks.
    """

    detections: Detections
    masks: tuple[dict[str, Any], ...] | None = None

    @classmethod
    def of(cls, detections: Detections) -> PackedDetections:
        """Pack detections; `Detections.extras` are left out."""
        masks = None
        if detections.masks is not None:
            masks = tuple(
                coco_masks.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in detections.masks
            )
        return cls(replace(detections, masks=None, extras={}), masks)

    def unpack(self) -> Detections:
        """Return the detections with masks (N, H, W) bool."""
        if self.masks is None:
            return self.detections
        decoded = [torch.from_numpy(coco_masks.decode(mask)).bool() for mask in self.masks]
        empty = torch.zeros((0, *self.detections.image_size_hw), dtype=torch.bool)
        return replace(self.detections, masks=torch.stack(decoded) if decoded else empty)


class UnpackedDetections(Sequence[Detections]):
    """A sequence of the detections of images with their masks, each unpacked on access."""

    def __init__(self, packed: Sequence[PackedDetections]) -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, index: int) -> Detections: ...

    @overload
    def __getitem__(self, index: slice) -> UnpackedDetections: ...

    def __getitem__(self, index: int | slice) -> Detections | UnpackedDetections:
        """Return the detections of one image, or a sequence for several images."""
        return UnpackedDetections(self.packed[index]) if isinstance(index, slice) else self.packed[index].unpack()
