"""Ultralytics networks with a plain training loss, without the trainer of ultralytics."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.ultralytics.detector import create_ultralytics_model

LOSS_GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}
"""Weights of the loss terms, the defaults of ultralytics."""


def build_network(config: str, names: Sequence[str], image_size_hw: tuple[int, int]) -> nn.Module:
    """Build a detection network with random weights for `network_loss`.

    Args:
        config: name of an ultralytics architecture, such as ``"yolo11n.yaml"``.
        names: class names.
        image_size_hw: size of the network's input, which adapters read from the network.

    Raises:
        ImportError: ultralytics is not installed.
    """
    network = create_ultralytics_model(config, num_classes=len(names))
    untyped: Any = network
    untyped.names = dict(enumerate(names))
    untyped.args = SimpleNamespace(**LOSS_GAINS, imgsz=image_size_hw)
    return network


def network_loss(model: nn.Module, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """Compute the training loss of a network.

    Args:
        model: network from `build_network`, in training mode.
        images: (3, H, W) in [0, 1], all of one size.
        targets: per image ``boxes``, (N, 4) xyxy pixels, and ``labels``, (N,).
    """
    height, width = images[0].shape[-2:]
    boxes = torch.cat([target["boxes"] for target in targets])
    x1, y1, x2, y2 = boxes.unbind(1)
    centered = torch.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], 1)
    batch = {
        "img": torch.stack(list(images)),
        "bboxes": centered,
        "cls": torch.cat([target["labels"] for target in targets]).float()[:, None],
        "batch_idx": torch.cat([torch.full((len(t["labels"]),), float(i)) for i, t in enumerate(targets)]),
    }
    network: Any = model
    loss: Tensor = network.loss(batch)[0].sum()
    return loss / len(images)
