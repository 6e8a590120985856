"""Segmentation of the shortcut scenes: masks of boats and barges, a semantic network, its loss and its classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.ops import FeaturePyramidNetwork

from detcam.adapters import Adapter
from detcam.detections import Detections, Source
from detcam.synthetic.shortcut_scenarios import NAMES, SHORTCUTS
from detcam.synthetic.shortcuts import ShortcutScene

OBJECT_WEIGHT = 4.0
"""Weight of the pixels of boats and barges in the loss; the background has 1."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalization of torchvision's segmentation networks, which the adapter applies."""
PYRAMID_CHANNELS = 64


class SemanticBackbone(nn.Module):
    """Residual stages at strides 2 to 32 and a feature pyramid, of which the level at stride 4 is returned.

    Args:
        stages: the stem and the stages at strides 4, 8, 16 and 32.
        channels: channels of the four stages after the stem.
    """

    def __init__(self, stages: Sequence[nn.Module], channels: Sequence[int]) -> None:
        super().__init__()
        self.stem, *rest = stages
        self.stages = nn.ModuleList(rest)
        self.pyramid = FeaturePyramidNetwork(list(channels), PYRAMID_CHANNELS)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features at stride 4 under the name that torchvision's networks read."""
        features, levels = self.stem(images), {}
        for index, stage in enumerate(self.stages):
            features = levels[str(index)] = stage(features)
        return {"out": self.pyramid(levels)["0"]}


def build_fcn(stages: Sequence[nn.Module], channels: Sequence[int]) -> FCN:
    """Build a fully convolutional network with random weights; class 0 is the background."""
    return FCN(SemanticBackbone(stages, channels), FCNHead(PYRAMID_CHANNELS, len(NAMES) + 1))


def semantic_loss(model: nn.Module, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """Compute the cross-entropy of each pixel.

    Args:
        model: network from `build_fcn`, in training mode.
        images: (3, H, W) in [0, 1], all of one size.
        targets: per image ``masks``, (N, H, W) bool, and ``labels``, (N,), from 1.
    """
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    maps = torch.zeros(len(images), *images[0].shape[-2:], dtype=torch.int64)
    for row, target in enumerate(targets):
        for mask, label in zip(target["masks"], target["labels"].tolist(), strict=True):
            maps[row][mask] = label
    weight = torch.tensor([1.0] + [OBJECT_WEIGHT] * len(NAMES))
    loss: Tensor = F.cross_entropy(model((torch.stack(list(images)) - mean) / std)["out"], maps, weight)
    return loss


def body_mask(scene: ShortcutScene, name: str) -> Tensor:
    """The mask (H, W) bool of a boat or barge with its window and stripes, or of a cart."""
    kind, number = name.split("-")
    kinds = ("body", "window", "stripes") if kind == "body" else (kind,)
    parts = [item.mask for part in kinds if (item := scene.get(f"{part}-{number}")) is not None]
    return torch.from_numpy(np.any(parts, axis=0))


def training_mask(scene: ShortcutScene, name: str) -> Tensor:
    """The mask (H, W) bool of a labeled object in training: that of the object, or its box where the cue fills it."""
    shortcut = SHORTCUTS[scene.scenario]
    cues = [scene.get(f"{kind}-{name.split('-')[1]}") for kind in shortcut.cues]
    if shortcut.effect != "mask" or scene.split != "shortcut" or None in cues:
        return body_mask(scene, name)
    x1, y1, x2, y2 = scene.object(name).box_xyxy.astype(int).tolist()
    mask = torch.zeros(scene.image.shape[:2], dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def classify_bodies(adapter: Adapter, scenes: Sequence[ShortcutScene], batch_size: int) -> list[Detections]:
    """Read the class of each body from the semantic maps.

    Returns:
        Per scene one detection for each body and class that covers a part of its pixels: the box of the body, and as
        score the share of its pixels; the mask is the body.
    """
    answers = []
    predictions = adapter.predict([scene.image for scene in scenes], batch_size=batch_size)
    for scene, found in zip(scenes, predictions, strict=True):
        boxes, labels, scores, regions = [], [], [], []
        for body in (*scene.of_kind("body"), *scene.of_kind("cart")):
            region = body_mask(scene, body.name)
            for row in range(len(found)):
                mask = region if found.masks is None else found.masks[row].cpu()
                boxes.append(torch.from_numpy(body.box_xyxy))
                labels.append(int(found.labels[row]))
                regions.append(region)
                scores.append(float((mask & region).sum() / region.sum()))
        answers.append(
            Detections(
                torch.stack(boxes) if boxes else torch.zeros(0, 4),
                torch.tensor(labels, dtype=torch.int64),
                torch.tensor(scores),
                (scene.image.shape[0], scene.image.shape[1]),
                (Source("region"),) * len(boxes),
                torch.stack(regions) if regions else torch.zeros(0, *scene.image.shape[:2], dtype=torch.bool),
                names=adapter.names,
            )
        )
    return answers
