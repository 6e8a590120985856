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


def yolox_decode(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """YOLOX's 85 values a cell, of strides 8, 16 and 32 on 416 pixels, to boxes, scores and objectness."""
    grids = []
    for stride in (8, 16, 32):
        cells = torch.arange(416 // stride)
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        grids.append(torch.stack([x.flatten(), y.flatten(), torch.full((len(cells) ** 2,), stride)], 1))
    grid = torch.cat(grids).to(raw)
    centers = (raw[..., :2] + grid[:, :2]) * grid[:, 2:]
    half = raw[..., 2:4].exp() * grid[:, 2:] / 2
    return torch.cat([centers - half, centers + half], -1), raw[..., 4:5] * raw[..., 5:], raw[..., 4]
