"""Selection of the candidate that stands for a target: by overlap and score, or by the centre of its source."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import box_iou

from detcam.detections import Source


def best_fit(boxes_xyxy: Tensor, class_scores: Tensor, wanted_xyxy: Tensor, *, mask: Tensor | None = None) -> int:
    """The candidate that fits a box which nobody detected: the greatest IoU times class score.

    Args:
        boxes_xyxy: (N, 4) candidates, same frame as the wanted box.
        class_scores: (N,) score of the wanted class at each candidate.
        wanted_xyxy: (4,).
        mask: (N,) bool, candidates allowed.

    Returns:
        Its index; where no candidate overlaps the box at all, the one whose centre is nearest.
    """
    boxes = boxes_xyxy.detach().float()
    wanted = wanted_xyxy.detach().float()[None]
    fit = box_iou(wanted, boxes)[0] * class_scores.detach().float()
    if mask is not None:
        fit = fit.masked_fill(~mask, -1)
    if float(fit.max()) > 0:
        return int(fit.argmax())
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = (centers - (wanted[:, :2] + wanted[:, 2:]) / 2).norm(dim=1)
    if mask is not None:
        distance = distance.masked_fill(~mask, float("inf"))
    return int(distance.argmin())


def nearest_source(sources_xy: Tensor, source: Source) -> int:
    """Index of the cell or anchor centre (N, 2), image pixels, nearest to a source's centre."""
    if source.center_xy is None:
        raise ValueError(f"source {source} has no centre; it comes from another kind of detector")
    wanted = sources_xy.new_tensor(source.center_xy)
    return int((sources_xy - wanted).square().sum(1).argmin())
