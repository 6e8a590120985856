"""The region proposal network's objectness at given proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import box_iou, clip_boxes_to_image

from detcam.adapters.torchvision.detector import scores_of_regions
from detcam.adapters.windows import cut, reach
from detcam.utils.batching import group_by


def objectness_scores(
    rpn: object, features: Mapping[str, Tensor], image: ImageList, proposals: Tensor, pinned: Sequence[bool]
) -> list[Tensor]:
    """Return the objectness of the anchors that produced given proposals, one scalar in [0, 1] each.

    Args:
        rpn: torchvision's `RegionProposalNetwork`.
        features: one image's pyramid, (1, C, h, w) by level name, in the graph.
        image: the network's input for that image.
        proposals: (K, 4), input pixels.
        pinned: per proposal, whether this network produced it. Then its anchor is the one whose decoded box it is,
            else the one with the greatest overlap times objectness.
    """
    levels = list(features.values())
    counts = [count * f.shape[-2] * f.shape[-1] for count, f in zip(_per_cell(rpn), levels, strict=True)]
    chosen = _anchors_of(rpn, [level.detach() for level in levels], image, proposals, pinned)
    starts = torch.tensor([0, *counts], device=chosen.device).cumsum(0)
    level_of = torch.searchsorted(starts, chosen, right=True) - 1
    inside = chosen - starts[level_of]
    scores: list[Tensor] = [torch.empty(0)] * len(proposals)
    for level, members in group_by(range(len(level_of)), lambda i: int(level_of[i])).items():
        level_scores = _level_scores(rpn, levels[level], inside[members], _per_cell(rpn)[level])
        for position, score in zip(members, level_scores, strict=True):
            scores[position] = score
    return scores


@torch.no_grad()
def _anchors_of(rpn: Any, levels: list[Tensor], image: ImageList, proposals: Tensor, pinned: Sequence[bool]) -> Tensor:
    """(K,) indices of anchors, over all levels."""
    logits, deltas = concat_box_prediction_layers(*rpn.head(levels))
    boxes = rpn.box_coder.decode(deltas, rpn.anchor_generator(image, levels))[:, 0]
    overlap = box_iou(proposals, clip_boxes_to_image(boxes, image.image_sizes[0]))
    weight = logits[:, 0].sigmoid()
    # Clipped boxes may coincide; of these, non-maximum suppression kept the one with the greatest objectness.
    same = (overlap >= overlap.amax(1, keepdim=True) - 1e-5) * (1 + weight)
    exact = torch.tensor(list(pinned), device=overlap.device)[:, None]
    return torch.where(exact, same, overlap * weight).argmax(1)


def _level_scores(rpn: Any, feature: Tensor, flat: Tensor, per_cell: int) -> list[Tensor]:
    """Objectness at anchors (K,) of one level."""
    radius = reach(rpn.head)
    if radius is None:  # a custom head: the whole level
        maps = rpn.head([feature])[0][0]
        return list(maps.permute(0, 2, 3, 1).reshape(-1)[flat].sigmoid().unbind())
    windows, cells = cut(feature, flat // per_cell, radius)
    rows = cells * per_cell + flat % per_cell

    def scalars(regions: Tensor, part: slice) -> list[Tensor]:
        maps = rpn.head([regions])[0][0].permute(0, 2, 3, 1).flatten(1)
        return list(maps.gather(1, rows[part, None])[:, 0].sigmoid().unbind())

    return scores_of_regions(windows, scalars)


def _per_cell(rpn: Any) -> list[int]:
    return rpn.anchor_generator.num_anchors_per_location()
