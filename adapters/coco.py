"""COCO's class names as torchvision's reference weights know them."""

from __future__ import annotations

from collections.abc import Mapping


def coco_names(classes: int, *, keypoints: bool = False) -> Mapping[int, str]:
    """Names by class index for a head of torchvision's reference size; empty for any other head."""
    from torchvision.models.detection import (
        FasterRCNN_ResNet50_FPN_Weights,
        KeypointRCNN_ResNet50_FPN_Weights,
    )

    weights = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1 if keypoints else FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    names = weights.meta["categories"]
    known = dict(enumerate(names)) if len(names) == classes else {}
    return {index: name for index, name in known.items() if name != "N/A"}
