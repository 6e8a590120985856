"""Decode functions of other people's detectors."""

from __future__ import annotations

import torch
from torch import Tensor


def fastestdet_decode(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """FastestDet's 85 maps to boxes, scores and objectness."""
    height, width = raw.shape[-2:]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    x, y = (columns + raw[:, 1].tanh()) / width, (rows + raw[:, 2].tanh()) / height
    w, h = raw[:, 3].sigmoid(), raw[:, 4].sigmoid()
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).flatten(1, 2) * 352
    scores = raw[:, :1] ** 0.6 * raw[:, 5:] ** 0.4
    return boxes, scores.flatten(2).transpose(1, 2), raw[:, 0].flatten(1)
