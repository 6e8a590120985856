"""Small ultralytics networks that are trained in a plain loop, without the package's own trainer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.ultralytics import build

GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}
"""Weights of the parts of the loss: the package's own."""


def trainable(config: str, names: Sequence[str]) -> nn.Module:
    """A detection network with random weights, ready for `network_loss`.

    Args:
        config: one of the package's own, such as ``"yolo11n.yaml"``.
        names: of the classes, from 0.

    Raises:
        ImportError: ultralytics is not installed.
    """
    network = build(config, num_classes=len(names))
    known: Any = network
    known.names, known.args = dict(enumerate(names)), SimpleNamespace(**GAINS)
    return network


def network_loss(model: nn.Module, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """A network's own loss of some images of one size.

    Args:
        model: from `trainable`, in training mode.
        images: (3, H, W) in [0, 1].
        targets: per image ``boxes``, (N, 4) xyxy pixels, and ``labels``, (N,).
    """
    height, width = images[0].shape[-2:]
    boxes = torch.cat([target["boxes"] for target in targets])
    x1, y1, x2, y2 = boxes.unbind(1)
    centred = torch.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], 1)
    batch = {
        "img": torch.stack(list(images)),
        "bboxes": centred,
        "cls": torch.cat([target["labels"] for target in targets]).float()[:, None],
        "batch_idx": torch.cat([torch.full((len(t["labels"]),), float(i)) for i, t in enumerate(targets)]),
    }
    network: Any = model
    loss: Tensor = network.loss(batch)[0].sum()
    return loss / len(images)
