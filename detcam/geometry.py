"""Coordinates of the original image and of the network's input: one affine map per axis, one resize for heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MAX_CACHED_MATRICES = 8
"""Number of matrices of weights that are kept for further maps of the same sizes."""
MAX_GATHERED_PIXELS = 2**22
"""Maximum number of pixels of maps that are interpolated pixel by pixel, which is fast, but takes three times the
result's memory; beyond, matrix products do it."""
MAX_CACHED_SIZE = 2**20
"""Maximum number of weights of a matrix that is kept."""
ROWS_PER_BLOCK = 32
"""Number of rows of an image that are interpolated together."""
CELLS_PER_BLOCK = 32
"""Number of cells of a grid that are averaged together."""


@dataclass(frozen=True)
class Geometry:
    """Position of an image on the network's input canvas: ``x_input = x_image * scale + offset``, per axis.

    Attributes:
        image_size_hw: height and width of the original image, pixels.
        input_size_hw: height and width of the network's input, padding included, pixels.
        scale_xy: input pixels per image pixel.
        offset_xy: input pixels left of and above the image (letterbox padding).

    Example:
        >>> from detcam.geometry import Geometry
        >>> Geometry.resize((100, 200), (50, 50)).point_to_input((100, 50))
        (25.0, 25.0)
    """

    image_size_hw: tuple[int, int]
    input_size_hw: tuple[int, int]
    scale_xy: tuple[float, float] = (1.0, 1.0)
    offset_xy: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def identity(cls, size_hw: tuple[int, int]) -> Geometry:
        """Return the geometry of an image that is the input."""
        return cls(size_hw, size_hw)

    @classmethod
    def resize(cls, image_size_hw: tuple[int, int], input_size_hw: tuple[int, int]) -> Geometry:
        """Return the geometry of an image that is stretched to the input's size."""
        (height, width), (input_height, input_width) = image_size_hw, input_size_hw
        return cls(image_size_hw, input_size_hw, (input_width / width, input_height / height))

    def boxes_to_input(self, boxes_xyxy: Tensor) -> Tensor:
        """Convert boxes (..., 4) from image pixels to input pixels."""
        return boxes_xyxy * self._box_tensor(self.scale_xy, boxes_xyxy) + self._box_tensor(self.offset_xy, boxes_xyxy)

    def boxes_to_image(self, boxes_xyxy: Tensor) -> Tensor:
        """Convert boxes (..., 4) from input pixels to image pixels, without clipping."""
        return (boxes_xyxy - self._box_tensor(self.offset_xy, boxes_xyxy)) / self._box_tensor(self.scale_xy, boxes_xyxy)

    def point_to_input(self, xy: tuple[float, float]) -> tuple[float, float]:
        """Convert a point from image pixels to input pixels."""
        return xy[0] * self.scale_xy[0] + self.offset_xy[0], xy[1] * self.scale_xy[1] + self.offset_xy[1]

    def point_to_image(self, xy: tuple[float, float]) -> tuple[float, float]:
        """Convert a point from input pixels to image pixels."""
        return (xy[0] - self.offset_xy[0]) / self.scale_xy[0], (xy[1] - self.offset_xy[1]) / self.scale_xy[1]

    def with_image_size(self, image_size_hw: tuple[int, int]) -> Geometry:
        """Return the geometry of the same image at another size, at the same position on the input."""
        (height, width), (scale_x, scale_y) = self.image_size_hw, self.scale_xy
        scale_xy = (scale_x * width / image_size_hw[1], scale_y * height / image_size_hw[0])
        return replace(self, image_size_hw=image_size_hw, scale_xy=scale_xy)

    def hflip(self) -> Geometry:
        """Return the geometry of the image on the horizontally mirrored input."""
        right = self.input_size_hw[1] - self.offset_xy[0] - self.image_size_hw[1] * self.scale_xy[0]
        return replace(self, offset_xy=(right, self.offset_xy[1]))

    def clip(self, boxes_xyxy: Tensor) -> Tensor:
        """Clip boxes (..., 4) in image pixels to the image."""
        height, width = self.image_size_hw
        limit = boxes_xyxy.new_tensor([width, height, width, height])
        return torch.minimum(boxes_xyxy.clamp(min=0), limit)

    def valid_cells(self, grid_size_hw: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns of a feature map that lie at least partly on the image."""
        slices = []
        for axis, cells in enumerate(grid_size_hw):
            canvas, xy = self.input_size_hw[axis], 1 - axis
            start = self.offset_xy[xy] / canvas * cells
            stop = (self.offset_xy[xy] + self.image_size_hw[axis] * self.scale_xy[xy]) / canvas * cells
            first = min(max(int(start + 1e-4), 0), cells - 1)
            last = min(max(int(-(-(stop - 1e-4) // 1)), first + 1), cells)
            slices.append(slice(first, last))
        return slices[0], slices[1]

    def area_of_cells(
        self, rows: slice, columns: slice, grid_size_hw: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """Return the area (xyxy) in image pixels, not clipped, that rows and columns of a feature map cover."""
        ends = [
            [end * self.input_size_hw[axis] / cells for end in (part.start, part.stop)]
            for axis, (part, cells) in enumerate(zip((rows, columns), grid_size_hw, strict=True))
        ]
        (top, bottom), (left, right) = ends
        return (*self.point_to_image((left, top)), *self.point_to_image((right, bottom)))

    def to_image(self, maps: Tensor) -> Tensor:
        """Resize maps from a feature map's grid to image pixels, undoing padding and scale.

        Bilinear with half-pixel centers and clamped borders; for an image that fills the input it equals
        ``F.interpolate(mode="bilinear", align_corners=False)``.

        Args:
            maps: (N, h, w), any floating dtype, over the whole input canvas.

        Returns:
            (N, H, W), same dtype and device.
        """
        height, width = self.image_size_hw
        if len(maps) * height * width > MAX_GATHERED_PIXELS:
            return self.sum_to_image([maps])
        return _interpolate(_interpolate(maps, self, 0), self, 1)

    def sum_to_image(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the sum (N, H, W) of maps (N, h, w) of several grids, each resized by `to_image`.

        Blocks of rows of the image are products of all grids' cells near them, so that no resized map but the sum is in
        memory.
        """
        height, width = self.image_size_hw
        columns = [_interpolate(maps, self, 1) for maps in levels]
        total = levels[0].new_empty((len(levels[0]), height, width))
        matrices = [_interpolation_matrix(maps, self, 0) for maps in levels]
        lows = [_interpolation(maps, self, 0)[0].tolist() for maps in levels]
        for start in range(0, height, ROWS_PER_BLOCK):
            stop = min(start + ROWS_PER_BLOCK, height)
            near = [slice(low[start], low[stop - 1] + 2) for low in lows]
            weights = torch.cat([each[start:stop, cells] for each, cells in zip(matrices, near, strict=True)], 1)
            values = torch.cat([each[:, cells] for each, cells in zip(columns, near, strict=True)], 1)
            total[:, start:stop] = torch.matmul(weights, values)
        return total

    def from_image(self, maps: Tensor, grid_size_hw: tuple[int, int]) -> Tensor:
        """Average maps over image pixels (N, H, W) into the cells (N, h, w) of a grid over the input canvas.

        A cell is the mean of its pixels; cells on padding are 0.
        """
        return self._binned(self._binned(maps, grid_size_hw[0], 0).mT, grid_size_hw[1], 1).mT.contiguous()

    def _binned(self, maps: Tensor, cells: int, axis: int) -> Tensor:
        """Average maps over the image's pixels along an axis, their rows (N, n, m), into cells (N, cells, m).

        A cell's weights are zero but for a few pixels, so that blocks of cells are multiplied by their pixels only.
        """
        weights = _binning_weights(self, axis, cells, maps)
        xy = 1 - axis
        pixels_per_cell = self.input_size_hw[axis] / cells / self.scale_xy[xy]
        padding = self.offset_xy[xy] / self.scale_xy[xy]
        blocks = []
        for start in range(0, cells, CELLS_PER_BLOCK):
            stop = min(start + CELLS_PER_BLOCK, cells)
            first, last = (round(edge * pixels_per_cell - padding) for edge in (start, stop))
            near = slice(max(first - 2, 0), max(last + 2, 0))
            blocks.append(torch.matmul(weights[start:stop, near], maps[:, near]))
        return torch.cat(blocks, 1)

    @staticmethod
    def _box_tensor(xy: tuple[float, float], like: Tensor) -> Tensor:
        dtype = like.dtype if like.is_floating_point() else torch.float32
        return like.new_tensor([*xy, *xy], dtype=dtype)


def normalize(maps: Tensor) -> Tensor:
    """Min-max normalize each map of (N, h, w) to [0, 1]; a constant map becomes 0."""
    flat = maps.flatten(1)
    low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    span = high - low
    return torch.where(span > 0, (maps - low) / span.clamp(min=torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))


def _cell_coordinates(maps: Tensor, geometry: Geometry, axis: int) -> Tensor:
    """Return the centers of the image pixels in cells of the map, along an axis (0 rows, 1 columns)."""
    xy = 1 - axis
    pixels = torch.arange(geometry.image_size_hw[axis], dtype=torch.float64) + 0.5  # some devices have no float64
    position = pixels * geometry.scale_xy[xy] + geometry.offset_xy[xy]
    return position * (maps.shape[1 + axis] / geometry.input_size_hw[axis])


def _interpolation(maps: Tensor, geometry: Geometry, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells on both sides of each pixel of the image along an axis, and the second one's weight, each (n,)."""
    cells = maps.shape[1 + axis]
    position = (_cell_coordinates(maps, geometry, axis) - 0.5).clamp(0, cells - 1)
    low = position.floor().long()
    fraction = (position - low).to(maps.device, maps.dtype)
    low = low.to(maps.device)
    return low, (low + 1).clamp(max=cells - 1), fraction


def _interpolate(maps: Tensor, geometry: Geometry, axis: int) -> Tensor:
    """Interpolate maps (N, h, w) to the image's pixels along an axis (0 rows, 1 columns)."""
    low, high, fraction = _interpolation(maps, geometry, axis)
    first, second = maps.index_select(1 + axis, low), maps.index_select(1 + axis, high)
    return torch.lerp(first, second, fraction[:, None] if axis == 0 else fraction)


def _interpolation_matrix(maps: Tensor, geometry: Geometry, axis: int) -> Tensor:
    low, high, fraction = _interpolation(maps, geometry, axis)
    matrix = maps.new_zeros(len(low), maps.shape[1 + axis])
    matrix.scatter_add_(1, low[:, None], (1 - fraction)[:, None])
    matrix.scatter_add_(1, high[:, None], fraction[:, None])
    return matrix


def _binning_weights(geometry: Geometry, axis: int, cells: int, maps: Tensor) -> Tensor:
    """Return the matrix of `_binning_matrix` for maps of some dtype and device; small ones are kept."""
    is_small = cells * geometry.image_size_hw[axis] <= MAX_CACHED_SIZE
    matrix = _cached_binning_matrix if is_small else _binning_matrix
    return matrix(geometry, axis, cells, maps.dtype, maps.device)


@torch.inference_mode(False)  # kept for passes with gradients too
def _binning_matrix(geometry: Geometry, axis: int, cells: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return weights (cells, pixels): the fraction of each cell that a pixel covers along an axis.

    Rows sum to 1, or to 0 on padding. Overlaps are exact, so a grid may be finer than the image (an upscaled input).
    """
    xy = 1 - axis
    pixels = geometry.image_size_hw[axis]
    cells_per_input = cells / geometry.input_size_hw[axis]
    edges = torch.arange(pixels + 1, dtype=torch.float64)
    edges = (edges * geometry.scale_xy[xy] + geometry.offset_xy[xy]) * cells_per_input
    starts = torch.arange(cells, dtype=torch.float64)[:, None]
    overlap = torch.minimum(edges[None, 1:], starts + 1) - torch.maximum(edges[None, :-1], starts)
    overlap = overlap.clamp(min=0)
    return (overlap / overlap.sum(1, keepdim=True).clamp(min=1e-12)).to(device, dtype)


_cached_binning_matrix = lru_cache(MAX_CACHED_MATRICES)(_binning_matrix)


def to_pixels(maps: Tensor, geometry: Geometry) -> Tensor:
    """Resize maps (N, H, W) of the network's input size to image pixels, with averaging.

    If the input is finer than the image, a pixel is the mean of its input pixels, since interpolation alone would
    skip lines of the maps.
    """
    kernel = [2 * int(scale / 2 + 0.25) + 1 for scale in reversed(geometry.scale_xy)]
    if max(kernel) > 1:
        padding = [side // 2 for side in kernel]
        maps = F.avg_pool2d(maps[:, None], kernel, 1, padding, count_include_pad=False)[:, 0]
    return geometry.to_image(maps)


def mask_to_box(mask: Tensor) -> tuple[float, float, float, float]:
    """Return the bounding box (xyxy, half-open) of a mask (H, W) with at least one pixel."""
    rows, columns = (torch.nonzero(mask.any(axis))[:, 0].tolist() for axis in (1, 0))
    return float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0


def checked_size(image_size: Any) -> int | tuple[int, int] | None:
    """Return a size that a user gives, one number or height and width, as integers of Python.

    Raises:
        ValueError: it is something else.

    Example:
        >>> from detcam.geometry import checked_size
        >>> checked_size([480, 640]), checked_size(None)
        ((480, 640), None)
    """
    if image_size is None:
        return None
    is_array = isinstance(image_size, np.ndarray) and image_size.ndim == 1
    is_pair = (is_array or isinstance(image_size, (tuple, list))) and len(image_size) == 2
    sides = list(image_size) if is_pair else [image_size]
    if not all(isinstance(side, Integral) and not isinstance(side, bool) and int(side) > 0 for side in sides):
        raise ValueError(
            f"expected image_size as (height, width) in pixels, one positive number, or None; got {image_size!r}"
        )
    return (int(sides[0]), int(sides[1])) if is_pair else int(sides[0])
