"""The annotated regions that localization metrics compare heatmaps with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from detcam.data.ground_truth import GroundTruth, box_mask

Shape = Literal["mask", "box"]


@dataclass(frozen=True)
class TargetRegions:
    """The annotated regions of the N objects that an image's heatmaps explain.

    Attributes:
        objects: (N, H, W) bool, the annotated object that each heatmap explains; empty where there is none.
        other_objects: (N, H, W) bool, the union of all other annotated objects.
        ignored: (N, H, W) bool, crowd regions of the object's class; heat there is not counted.
    """

    objects: Tensor
    other_objects: Tensor
    ignored: Tensor

    @classmethod
    def from_masks(cls, masks: Tensor) -> TargetRegions:
        """Regions from object masks (N, H, W) alone.

        The other objects of a heatmap are those of the image's other heatmaps; nothing is ignored.
        """
        other_objects = torch.zeros_like(masks)
        for row, mask in enumerate(masks):
            different = (masks != mask).flatten(1).any(1)
            other_objects[row] = masks[different].any(0)
        return cls(masks, other_objects, torch.zeros_like(masks))

    def select(self, rows: Sequence[int]) -> TargetRegions:
        """The regions of some heatmaps, by position."""
        index = list(rows)
        return TargetRegions(self.objects[index], self.other_objects[index], self.ignored[index])


def ground_truth_regions(
    truth: GroundTruth, objects: Sequence[int | None], *, shape: Shape = "mask", same_class: bool = False
) -> TargetRegions:
    """The regions of one image, from its annotations.

    Args:
        truth: the annotations of the image.
        objects: for each heatmap, the index of the annotated object that it explains; None or -1 for a false
            positive. `detcam.auditing.matching.Match.ground_truth_index` holds them for all detections.
        shape: ``"mask"`` takes the masks of the objects, and the box of an object without a mask; ``"box"`` takes
            the boxes.
        same_class: whether only objects of the same class count as other objects.

    Returns:
        Regions (N, H, W) for N heatmaps.

    Raises:
        ValueError: an index is out of range or belongs to a crowd region, or `shape` is unknown.
    """
    if shape not in ("mask", "box"):
        raise ValueError(f'expected shape "mask" or "box"; got {shape!r}')
    masks = truth.masks() if shape == "mask" else _box_masks(truth)
    crowd, labels = truth.crowd, truth.labels
    size = (len(objects), *truth.image_size_hw)
    object_masks, other_objects, ignored = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
    for row, index in enumerate(objects):
        if index is None or index == -1:
            continue
        if not 0 <= index < len(truth):
            raise ValueError(f"expected an index of one of the image's {len(truth)} annotated objects; got {index}")
        if bool(crowd[index]):
            raise ValueError(f"annotated object {index} is a crowd region; a heatmap explains one object")
        object_masks[row] = masks[index]
        same_label = labels == labels[index]
        others = ~crowd & same_label if same_class else ~crowd
        others[index] = False
        other_objects[row] = masks[others].any(0)
        ignored[row] = masks[crowd & same_label].any(0)
    return TargetRegions(object_masks, other_objects, ignored)


def _box_masks(truth: GroundTruth) -> Tensor:
    boxes = [box_mask(box, truth.image_size_hw) for box in truth.boxes_xyxy.tolist()]
    return torch.from_numpy(np.stack(boxes)) if boxes else torch.zeros(0, *truth.image_size_hw, dtype=torch.bool)
