"""Cells of the pyramid levels' grids and their positions in the image."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from detcam.adapters.candidates import nearest_source
from detcam.detections import Source
from detcam.geometry import Geometry

MAX_CACHED_GRIDS = 8
"""Number of input sizes whose cells are kept."""
MAX_CACHED_CELLS = 256
"""Number of sources whose cells are kept."""


class GridCells:
    """The cells of the grids of all levels, numbered row by row and level by level.

    Args:
        grids: rows and columns of each level.
        steps_xy: width and height of a cell of each level, input pixels.
        geometry: the position of the image on the input.

    Attributes:
        points: (A, 2) float64, centers of the cells, input pixels, on the CPU.
        steps: (A, 2) float64, width and height of each cell, input pixels, on the CPU.
    """

    def __init__(
        self, grids: Sequence[tuple[int, int]], steps_xy: Sequence[tuple[float, float]], geometry: Geometry
    ) -> None:
        self.grids, self.steps_xy = list(grids), list(steps_xy)
        self.starts = [0, *itertools.accumulate(rows * columns for rows, columns in grids)]
        self.geometry = geometry
        self.points, self.steps = _points_and_steps(tuple(grids), tuple(steps_xy))

    def position(self, number: int) -> tuple[int, int, int]:
        """Return the level, row and column of a cell."""
        level = bisect.bisect_right(self.starts, number) - 1
        return level, *divmod(number - self.starts[level], self.grids[level][1])

    def source(self, kind: Literal["cell", "query"], anchor: int, number: int) -> Source:
        """Return the source of a detection in a cell."""
        center = self.geometry.point_to_image((float(self.points[number, 0]), float(self.points[number, 1])))
        return Source(kind, self.position(number)[0], anchor, center)

    def number(self, source: Source) -> int:
        """Return the number of the cell at a source's position.

        Raises:
            ValueError: the source belongs to another kind of detector.
        """
        if not 0 <= source.level < len(self.grids):
            raise ValueError(f"expected a source at level 0 to {len(self.grids) - 1}; got {source}")
        return self.starts[source.level] + _nearest_cell(
            self.grids[source.level], self.steps_xy[source.level], self.geometry, source
        )


@lru_cache(MAX_CACHED_CELLS)  # audits read the same few cells in many perturbed images
def _nearest_cell(grid: tuple[int, int], step_xy: tuple[float, float], geometry: Geometry, source: Source) -> int:
    """The number of a level's cell whose center is nearest to that of a source."""
    points, _ = _points_and_steps((grid,), (step_xy,))
    scale, offset = points.new_tensor(geometry.scale_xy), points.new_tensor(geometry.offset_xy)
    return nearest_source((points - offset) / scale, source)


@lru_cache(MAX_CACHED_GRIDS)
@torch.inference_mode(False)  # kept for passes with gradients too
def _points_and_steps(
    grids: tuple[tuple[int, int], ...], steps_xy: tuple[tuple[float, float], ...]
) -> tuple[Tensor, Tensor]:
    points, steps = [], []
    for (rows, columns), step in zip(grids, steps_xy, strict=True):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        size = torch.tensor(step, dtype=torch.float64)
        points.append((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * size)
        steps.append(size.expand(rows * columns, 2))
    return torch.cat(points), torch.cat(steps)
