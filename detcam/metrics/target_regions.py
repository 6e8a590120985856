"""Where a heatmap should be hot: the true object's pixels, those of the others, and those nobody can judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from detcam.data.ground_truth import GroundTruth, box_mask
from detcam.metrics.base import read_heatmaps, read_truth

Shape = Literal["mask", "box"]


@dataclass(frozen=True)
class TargetRegions:
    """What each of N heatmaps of one image should show, and what it should not.

    Attributes:
        own: (N, H, W) bool, the true object that each heatmap explains; empty where there is none.
        others: (N, H, W) bool, all other true objects together.
        ignored: (N, H, W) bool, crowd regions of the object's class: heat there says nothing.
    """

    own: Tensor
    others: Tensor
    ignored: Tensor


def ground_truth_regions(
    truth: GroundTruth, objects: Sequence[int | None], *, shape: Shape = "mask", same_class: bool = False
) -> TargetRegions:
    """The regions of one image, from its annotations.

    Args:
        truth: the image's annotations.
        objects: for each heatmap, the index of the true object that it should show; None or -1 where there is none,
            as for a false positive. `detcam.auditing.Match.ground_truth_index` holds them for all detections.
        shape: the objects' masks (their boxes where they have none), or their boxes.
        same_class: whether only objects of the same class count as others.

    Raises:
        ValueError: no such object, or a crowd region.
    """
    if shape not in ("mask", "box"):
        raise ValueError(f'expected shape "mask" or "box"; got {shape!r}')
    masks = truth.masks() if shape == "mask" else _boxes(truth)
    crowd, labels = truth.crowd, truth.labels
    size = (len(objects), *truth.image_size_hw)
    own, others, ignored = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
    for row, index in enumerate(objects):
        if index is None or index == -1:
            continue
        if not 0 <= index < len(truth):
            raise ValueError(f"expected an index of one of the image's {len(truth)} true objects; got {index}")
        if bool(crowd[index]):
            raise ValueError(f"true object {index} is a crowd region; a heatmap explains one object")
        own[row] = masks[index]
        same = labels == labels[index]
        other = ~crowd & same if same_class else ~crowd
        other[index] = False
        others[row] = masks[other].any(0)
        ignored[row] = masks[crowd & same].any(0)
    return TargetRegions(own, others, ignored)


def read_regions(truth: Any, heatmaps: Any) -> tuple[list[TargetRegions], list[Tensor]]:
    """Check truth and heatmaps: per image the regions, and (N, H, W) heatmaps in floating point.

    Where truth is masks alone, the others of a heatmap are the true objects of the image's other heatmaps, and
    nothing is ignored.

    Raises:
        TypeError, ValueError: missing, or not of each other's shapes.
    """
    if not isinstance(truth, (list, tuple)):
        truth = read_truth(truth, [])
    own = [entry.own if isinstance(entry, TargetRegions) else torch.as_tensor(entry) for entry in truth]
    sizes = [(int(entry.shape[-2]), int(entry.shape[-1])) for entry in own]
    maps = read_heatmaps(heatmaps, sizes)
    masks = read_truth(own, maps)
    return [
        entry if isinstance(entry, TargetRegions) else TargetRegions(mask, _others(mask), torch.zeros_like(mask))
        for entry, mask in zip(truth, masks, strict=True)
    ], maps


def bounding_box(mask: Tensor) -> tuple[int, int, int, int]:
    """The smallest half-open box x, y, x, y around the True pixels (H, W), of which there must be some."""
    rows, columns = (torch.nonzero(mask.any(axis))[:, 0] for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _others(masks: Tensor) -> Tensor:
    others = torch.zeros_like(masks)
    for row, mask in enumerate(masks):
        different = (masks != mask).flatten(1).any(1)
        others[row] = masks[different].any(0)
    return others


def _boxes(truth: GroundTruth) -> Tensor:
    boxes = [box_mask(box, truth.image_size_hw) for box in truth.boxes_xyxy.tolist()]
    return torch.from_numpy(np.stack(boxes)) if boxes else torch.zeros(0, *truth.image_size_hw, dtype=torch.bool)
