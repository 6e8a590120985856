"""The annotated regions that localization metrics compare heatmaps with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
    crowd, labels = truth.crowd, truth.labels
    size = (len(objects), *truth.image_size_hw)
    object_masks, other_objects, ignored = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
    is_other, is_ignored = (torch.zeros(len(objects), len(truth), dtype=torch.bool) for _ in range(2))

    def region(index: int) -> Tensor:
        if shape == "mask":
            return truth.mask(index)
        return torch.from_numpy(box_mask(truth.boxes_xyxy[index].tolist(), truth.image_size_hw))

    for row, index in enumerate(objects):
        if index is None or index == -1:
            continue
        if not 0 <= index < len(truth):
            raise ValueError(f"expected an index of one of the image's {len(truth)} annotated objects; got {index}")
        if bool(crowd[index]):
            raise ValueError(f"annotated object {index} is a crowd region; a heatmap explains one object")
        object_masks[row] = region(index)
        same_label = labels == labels[index]
        is_other[row] = ~crowd & same_label if same_class else ~crowd
        is_other[row, index] = False
        is_ignored[row] = crowd & same_label
    for index in (is_other | is_ignored).any(0).nonzero()[:, 0].tolist():  # one by one, since there may be thousands
        mask = region(index)
        other_objects[is_other[:, index]] |= mask
        ignored[is_ignored[:, index]] |= mask
    return TargetRegions(object_masks, other_objects, ignored)
