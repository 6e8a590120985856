"""Scenes as inputs and training targets of torchvision detectors."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.synthetic.scene import Scene


def scene_tensor(scene: Scene) -> Tensor:
    """Convert a scene to the input of a detector: (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255


def training_pair(scene: Scene, flip: bool, first_label: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Convert a scene to an input and its annotations in torchvision's format.

    Args:
        scene: scene to convert.
        flip: whether to mirror the scene left to right.
        first_label: number to add to the labels.
    """
    image, boxes = scene_tensor(scene), torch.from_numpy(scene.boxes_xyxy).clone()
    if flip:
        image = image.flip(-1)
        boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    return image, {"boxes": boxes, "labels": torch.from_numpy(scene.labels) + first_label}
