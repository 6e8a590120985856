"""Heatmaps that are computed from raw maps when they are read, so that many boxes of a large image fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detcam.geometry import Geometry

HeatmapArray: TypeAlias = NDArray[np.float32]
"""Heatmaps (N, H, W) or (B, H, W) in [0, 1]."""

Combine: TypeAlias = Callable[[Sequence[Tensor], Geometry], Tensor]
"""From the raw maps of one image, per level (N, h, w) signed saliency over the network's input, and its position there,
to heatmaps (N, H, W) in [0, 1], image pixels."""

MAX_PIXELS_TOGETHER = 2**23
"""Pixels of the heatmaps of one image that are rendered at once; more are rendered one by one, when they are read."""
MAX_PREVIEW_SIDE = 256
"""Maximum longer side, pixels, of the heatmaps that are rendered to find out which are empty."""


@dataclass(frozen=True, eq=False)
class RawMaps:
    """The raw maps of one image in one view.

    Attributes:
        levels: per level, (N, h, w) signed saliency over the network's input.
        geometry: position of the image on that input.
        rectified: whether negative saliency is set to 0 first.
        mirrored: whether the view is the mirrored image.
        combine: formula of a method that combines the levels; None takes `combine_levels`.
    """

    levels: tuple[Tensor, ...]
    geometry: Geometry
    rectified: bool = True
    mirrored: bool = False
    combine: Combine | None = None

    def __getitem__(self, rows: list[int]) -> RawMaps:
        return replace(self, levels=tuple(level[rows] for level in self.levels))

    def render(self) -> Tensor:
        """Return the heatmaps (N, H, W) in [0, 1], image pixels."""
        if self.combine is None:
            maps = combine_levels(self.levels, self.geometry, rectified=self.rectified)
        else:
            maps = self.combine(self.levels, self.geometry)
        return maps.flip(-1) if self.mirrored else maps

    def heatmaps(self) -> Tensor | DeferredHeatmaps:
        """Return the heatmaps; large ones are left to be computed when they are read."""
        height, width = self.geometry.image_size_hw
        if len(self.levels[0]) * height * width <= MAX_PIXELS_TOGETHER:
            return self.render()
        return DeferredHeatmaps((replace(self, levels=tuple(level.cpu() for level in self.levels)),))

    def has_evidence(self) -> bool:
        """Whether a heatmap is not zero everywhere."""
        if self.combine is None:
            return bool(_span(self).any())
        return bool(replace(self, geometry=_preview(self.geometry)).render().any())


@dataclass(frozen=True, eq=False)
class DeferredHeatmaps:
    """Heatmaps (N, H, W) of one image, float32 in [0, 1], that are computed when they are read.

    ``maps[i]`` is an array (H, W), a list or a slice selects others, and ``np.asarray(maps)`` computes all.

    Attributes:
        views: the raw maps in each view, whose heatmaps are averaged.
    """

    views: tuple[RawMaps, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        return (len(self), *self.views[0].geometry.image_size_hw)

    def __len__(self) -> int:
        return len(self.views[0].levels[0])

    def __getitem__(self, index: int | np.integer[Any] | slice | list[int]) -> HeatmapArray | DeferredHeatmaps:
        if not isinstance(index, (int, np.integer)):
            rows = list(range(len(self))[index]) if isinstance(index, slice) else index
            return DeferredHeatmaps(tuple(view[rows] for view in self.views))
        row = range(len(self))[index]
        maps = [view[[row]].render()[0] for view in self.views]
        mean = maps[0] if len(maps) == 1 else torch.stack(maps).mean(0)
        return mean.float().cpu().numpy()

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.generic]:
        array = np.empty(self.shape, np.float32)
        for row in range(len(self)):
            array[row] = self[row]
        return array if dtype is None else array.astype(dtype)  # type: ignore[call-overload]

    def count_empty(self) -> int:
        """Return the number of maps that are zero everywhere."""
        count = 0
        for row in range(len(self)):
            count += not any(view[[row]].has_evidence() for view in self.views)
        return count


def _span(maps: RawMaps) -> Tensor:
    """Return the difference of maximum and minimum of each level on the image."""
    spans = []
    for level in maps.levels:
        rows, columns = maps.geometry.valid_cells((level.shape[-2], level.shape[-1]))
        inside = level[:, rows, columns].flatten(1)
        inside = inside.clamp(min=0) if maps.rectified else inside
        spans.append(inside.amax(1) - inside.amin(1))
    return torch.cat(spans)


def _preview(geometry: Geometry) -> Geometry:
    """Return the geometry of a small copy of the image at the same position."""
    height, width = geometry.image_size_hw
    factor = max(1.0, max(height, width) / MAX_PREVIEW_SIDE)
    return geometry.with_image_size((max(1, round(height / factor)), max(1, round(width / factor))))


def combine_levels(levels: Sequence[Tensor], geometry: Geometry, *, rectified: bool = True) -> Tensor:
    """Combine the raw maps of one image into heatmaps.

    Each level is normalized over the cells that lie on the image, and resized; their mean is normalized again.

    Args:
        levels: per level, (N, h, w) signed saliency over the network's input.
        geometry: position of the image on that input.
        rectified: whether negative saliency is set to 0 first.

    Returns:
        (N, H, W) in [0, 1], original image pixels.
    """
    height, width = geometry.image_size_hw
    count = len(levels[0])
    if count > 1 and count * height * width > MAX_PIXELS_TOGETHER:  # one by one, so that memory holds one map more
        combined = levels[0].new_empty((count, height, width))
        for row in range(count):
            one = combine_levels([level[row : row + 1] for level in levels], geometry, rectified=rectified)
            combined[row] = one[0]
        return combined
    if not count:
        return levels[0].new_zeros((0, height, width))
    scaled = []
    for level in levels:
        rows, columns = geometry.valid_cells((level.shape[-2], level.shape[-1]))
        saliency = level.clamp(min=0) if rectified else level
        inside = saliency[:, rows, columns]
        low, high = inside.amin((1, 2), keepdim=True), inside.amax((1, 2), keepdim=True)
        span = high - low
        scaled.append(torch.where(span > 0, (saliency - low) / span.clamp(min=torch.finfo(level.dtype).tiny), 0))
    total = geometry.sum_to_image(scaled)
    low, high = total.flatten(1).amin(1), total.flatten(1).amax(1)  # three times as fast as aminmax
    span = (high - low)[:, None, None]
    return total.sub_(low[:, None, None]).div_(span.where(span > 0, torch.inf))  # in place: large images fill memory


def mean_of_views(views: Sequence[HeatmapArray | DeferredHeatmaps]) -> HeatmapArray | DeferredHeatmaps:
    """Return the mean of the heatmaps of all views of an image."""
    if len(views) == 1:
        return views[0]
    if all(isinstance(view, DeferredHeatmaps) for view in views):
        return DeferredHeatmaps(tuple(raw for view in views for raw in view.views))  # type: ignore[union-attr]
    stacked: list[HeatmapArray] = [np.asarray(view) for view in views]
    mean: HeatmapArray = np.mean(stacked, axis=0)
    return mean
