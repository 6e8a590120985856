"""Volumes (B, C, D, H, W): their maps are computed with depth and height as one axis, and resized as volumes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.geometry import normalize
from detcam.trace import flatten_tensors


class VolumeReshape:
    """Joins depth and height of a layer's output (B, C, d, h, w), so that every formula for (B, C, h, w) applies.

    Attributes:
        sizes: the size (d, h, w) of each joined grid (d * h, w).
    """

    def __init__(self) -> None:
        self.sizes: dict[tuple[int, int], tuple[int, int, int]] = {}

    def __call__(self, output: object) -> list[Tensor]:
        return [self._joined(tensor) for tensor in flatten_tensors(output)]

    def _joined(self, tensor: Tensor) -> Tensor:
        if tensor.ndim != 5:
            raise ValueError(
                f"a target layer returned shape {tuple(tensor.shape)}; expected (B, C, d, h, w), as the input is a "
                "volume. Choose another layer"
            )
        depth, height, width = tensor.shape[2:]
        self.sizes[depth * height, width] = (depth, height, width)
        return tensor.flatten(2, 3)

    def combine(self, levels: Sequence[Tensor], size: tuple[int, int, int], *, rectified: bool) -> Tensor:
        """Combine raw maps (N, d * h, w) into heatmaps (N, D, H, W) in [0, 1]: normalized, resized, and averaged."""
        total = levels[0].new_zeros((len(levels[0]), *size))
        for level in levels:
            if not len(level):
                continue
            saliency = normalize(level.clamp(min=0) if rectified else level)
            grid = self.sizes[level.shape[-2], level.shape[-1]]
            volume = saliency.unflatten(1, grid[:2])[:, None]
            total += F.interpolate(volume, size, mode="trilinear", align_corners=False)[:, 0]
        return normalize(total.flatten(1, 2)).unflatten(1, size[:2]) if len(total) else total


def is_volume(images: object) -> bool:
    """Return whether an input is a batch of volumes (B, C, D, H, W)."""
    return isinstance(images, torch.Tensor) and images.ndim == 5
