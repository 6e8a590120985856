"""Volumes (B, C, D, H, W): their maps are computed with depth and height as one axis, and resized as volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.geometry import normalize
from detcam.layers import InferredReshape
from detcam.trace import ReshapeTransform, Trace, flatten_tensors

if TYPE_CHECKING:
    from detcam.adapters.base import Batch


class VolumeReshape:
    """Joins depth and height of a layer's output (B, C, d, h, w), so that every formula for (B, C, h, w) applies.

    Args:
        input_size_hw: height and width of the network's input; with them, channels-last outputs (B, d, h, w, C) are
            told from (B, C, d, h, w): a grid has one stride on both axes.
        last_axis_channels: channel counts of the model's channels-last maps.
        reshape_transform: function from the layer's output to (B, C, d, h, w), such as for tokens; None takes the
            output as it is.

    Attributes:
        sizes: the size (d, h, w) of each joined grid (d * h, w).
    """

    def __init__(
        self,
        input_size_hw: tuple[int, int],
        last_axis_channels: frozenset[int],
        reshape_transform: ReshapeTransform | None,
    ) -> None:
        self.planes = InferredReshape(input_size_hw, last_axis_channels=last_axis_channels)
        self.reshape_transform = reshape_transform
        self.sizes: dict[tuple[int, int], tuple[int, int, int]] = {}

    def __call__(self, output: object) -> list[Tensor]:
        reshaped = self.reshape_transform(output) if self.reshape_transform else output
        return [self._joined(tensor) for tensor in flatten_tensors(reshaped)]

    def _joined(self, tensor: Tensor) -> Tensor:
        if tensor.ndim != 5:
            raise ValueError(
                f"a target layer returned shape {tuple(tensor.shape)}; expected (B, C, d, h, w), as the input is a "
                "volume. Choose another layer, or pass reshape_transform="
            )
        if self.planes.is_channels_last(tensor[:, 0]):
            tensor = tensor.movedim(-1, 1)
        depth, height, width = tensor.shape[2:]
        self.sizes[depth * height, width] = (depth, height, width)
        return tensor.flatten(2, 3)

    def split(self, level: Tensor) -> Tensor:
        """Return a level (..., d * h, w) with depth and height as two axes again, (..., d, h, w)."""
        return level.unflatten(-2, self.sizes[level.shape[-2], level.shape[-1]][:2])

    def combine(self, levels: Sequence[Tensor], size: tuple[int, int, int], *, rectified: bool) -> Tensor:
        """Combine raw maps (N, d * h, w) into heatmaps (N, D, H, W) in [0, 1]: normalized, resized, and averaged."""
        total = levels[0].new_zeros((len(levels[0]), *size))
        for level in levels:
            if not len(level):
                continue
            saliency = normalize(level.clamp(min=0) if rectified else level)
            total += VolumeGeometry(size).to_image(self.split(saliency))
        return normalize(total.flatten(1, 2)).unflatten(1, size[:2]) if len(total) else total


@dataclass(frozen=True)
class VolumeGeometry:
    """Position of a volume on the network's input, which it fills; the counterpart of `detcam.geometry.Geometry`.

    Attributes:
        size_dhw: depth, height and width of the volume.
    """

    size_dhw: tuple[int, int, int]

    def valid_cells(self, grid_size: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the index of the cells on the volume: all of them."""
        return (slice(None),) * len(grid_size)

    def to_image(self, maps: Tensor) -> Tensor:
        """Resize maps (N, d, h, w) to the volume's voxels (N, D, H, W), trilinear."""
        return F.interpolate(maps[:, None], self.size_dhw, mode="trilinear", align_corners=False)[:, 0]


def combine_volumes(batch: Batch, trace: Trace, *, rectified: bool) -> Callable[[Sequence[Tensor], object], Tensor]:
    """Return the combination of the raw maps of one volume of a batch into heatmaps (N, D, H, W)."""
    reshape: Any = trace.reshape_transform
    depth, height, width = batch.inputs.shape[2:]
    return lambda levels, geometry: reshape.combine(levels, (depth, height, width), rectified=rectified)


def is_volume(images: object) -> bool:
    """Return whether an input is a batch of volumes (B, C, D, H, W)."""
    return isinstance(images, torch.Tensor) and images.ndim == 5
