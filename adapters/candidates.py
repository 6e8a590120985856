"""Selection of a target's candidate, by overlap and score or by the center of its source."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import box_iou

from detcam.detections import Source


def best_fit(boxes_xyxy: Tensor, class_scores: Tensor, target_xyxy: Tensor) -> int:
    """Return the index of the candidate with the greatest IoU times class score for a target without a source.

    Args:
        boxes_xyxy: (N, 4) candidates, in the frame of the target's box.
        class_scores: (N,) score of the target's class at each candidate.
        target_xyxy: (4,) the target's box.

    Returns:
        The index; if no candidate overlaps the box, that of the candidate with the nearest center.
    """
    boxes = boxes_xyxy.detach().float()
    target = target_xyxy.detach().float()[None]
    fit = box_iou(target, boxes)[0] * class_scores.detach().float()
    if float(fit.max()) > 0:
        return int(fit.argmax())
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = (centers - (target[:, :2] + target[:, 2:]) / 2).norm(dim=1)
    return int(distance.argmin())


def nearest_source(sources_xy: Tensor, source: Source) -> int:
    """Return the index of the cell or anchor center (N, 2), image pixels, nearest to a source's center."""
    if source.center_xy is None:
        raise ValueError(f"source {source} has no center; it was made by another kind of detector")
    center = sources_xy.new_tensor(source.center_xy)
    return int((sources_xy - center).square().sum(1).argmin())
