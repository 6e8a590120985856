"""Box targets from the results of other libraries and from plain arrays of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.targets.box import BoxTarget

BEST_CLASS: Any = None
"""Label of a box without a class: that of the highest score at the candidate that fits the box best."""


def as_box_targets(item: Any) -> list[BoxTarget] | None:
    """Return the boxes of one image as targets; None for an object that holds none.

    Args:
        item: a `Results` or `Boxes` of ultralytics, a `Detections` of supervision, a mapping with ``boxes`` and
            ``labels`` as torchvision's detectors return, or an array or tensor (N, 4) of boxes xyxy in pixels of the
            image.

    Returns:
        One target per box, or None.

    Raises:
        ValueError: an array of another shape.

    Example:
        >>> from detcam.targets import as_box_targets
        >>> as_box_targets({"boxes": [[10, 10, 50, 40]], "labels": [1]})[0].box_xyxy
        (10.0, 10.0, 50.0, 40.0)
    """
    if isinstance(item, (np.ndarray, Tensor)):
        if item.ndim != 2 or item.shape[1] != 4:
            raise ValueError(
                f"expected boxes as an array (N, 4), xyxy in pixels of the image; got {tuple(item.shape)}. Classes go "
                "into BoxTarget(box, label)"
            )
        return _targets(item, None)
    if isinstance(item, Mapping) and "boxes" in item:
        return _targets(item["boxes"], item.get("labels"))
    boxes: Any = getattr(item, "boxes", item)
    if hasattr(boxes, "xyxy") and hasattr(boxes, "cls"):
        return _targets(boxes.xyxy, boxes.cls)
    if hasattr(item, "xyxy") and hasattr(item, "class_id"):
        return _targets(item.xyxy, item.class_id)
    return None


def _targets(boxes: Any, labels: Any) -> list[BoxTarget]:
    rows = torch.as_tensor(boxes).tolist()
    classes = [BEST_CLASS] * len(rows) if labels is None else [int(label) for label in torch.as_tensor(labels).tolist()]
    return [BoxTarget((x1, y1, x2, y2), label) for (x1, y1, x2, y2), label in zip(rows, classes, strict=True)]
