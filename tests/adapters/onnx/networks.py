"""A small network that finds red and blue squares, exported in the box formats of several libraries."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

SIDE = 64
BOX = [32.0, 32.0, 64.0, 64.0]
"""Where `patch` has its square."""


class Squares(nn.Module):
    """Cells of the strides 8, 16 and 32; class 0 is red, class 1 is blue; larger cells score higher."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.means = nn.Conv2d(3, 3, 8, 8, bias=False)
        with torch.no_grad():
            self.means.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8) / 64)

    def cells(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Centers and sizes (B, 84, 4), and scores (B, 84, 2)."""
        boxes, scores = [], []
        means = self.means(images)
        for stride in (8, 16, 32):
            pooled = F.avg_pool2d(means, stride // 8)
            color = (pooled[:, [0, 2]] - pooled[:, [1, 1]]).clamp(0, 1) * (0.49 + stride / 64)
            scores.append(color.flatten(2).transpose(1, 2))
            centers = (torch.arange(SIDE // stride) + 0.5) * stride
            y, x = torch.meshgrid(centers, centers, indexing="ij")
            side = torch.full_like(x, float(stride))
            boxes.append(torch.stack([x, y, side, side], -1).reshape(-1, 4))
        found = torch.cat(scores, 1)
        return torch.cat(boxes)[None] + 0 * found[..., :1], found

    def forward(self, images: Tensor) -> Any:
        boxes, scores = self.cells(images if images.ndim == 4 else images[None])
        if self.form == "grid":
            return torch.cat([boxes, scores], -1).transpose(1, 2)
        if self.form == "sigmoid":
            return torch.logit(scores, 1e-4), boxes / SIDE
        if self.form == "softmax":
            nothing = (1 - scores.sum(-1, keepdim=True)).clamp(1e-4, 1)
            return torch.cat([scores.clamp(1e-4, 1), nothing], -1).log(), boxes / SIDE
        best, labels = scores[:, -4:].max(-1)
        corners = box_convert(boxes[:, -4:], "cxcywh", "xyxy")
        if self.form == "end-to-end":
            return torch.cat([corners, best[..., None], labels[..., None].float()], -1)
        return (corners, best) if self.form == "other" else (corners[0], labels[0], best[0])


OUTPUTS = {
    "grid": ["output0"],
    "end-to-end": ["output0"],
    "torchvision": ["boxes", "labels", "scores"],
    "sigmoid": ["logits", "pred_boxes"],
    "softmax": ["logits", "pred_boxes"],
    "other": ["corners", "best"],
}


def export(folder: Path, form: str) -> Path:
    """Write the network in one form."""
    path = folder / f"{form}.onnx"
    shape = (3, SIDE, SIDE) if form == "torchvision" else (1, 3, SIDE, SIDE)
    axes = {} if form == "torchvision" else {"images": {0: "batch"}, **{name: {0: "batch"} for name in OUTPUTS[form]}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Squares(form).eval(),
            (torch.rand(shape),),
            str(path),
            input_names=["images"],
            output_names=OUTPUTS[form],
            dynamic_axes=axes,
            dynamo=False,
        )
    return path


def patch(channel: int = 0) -> Tensor:
    """An image (3, 64, 64) in dark gray with a red (0) or blue (2) square in `BOX`."""
    image = torch.full((3, SIDE, SIDE), 0.2)
    image[:, 32:, 32:] = 0.0
    image[channel, 32:, 32:] = 1.0
    return image
