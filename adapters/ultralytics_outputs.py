"""What the heads of ultralytics' detectors say, as targets see it: grid cells (YOLO) and queries (RT-DETR)."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput, best_fit, nearest_source
from detcam.targets import BoxTarget, DetectionTarget, InstanceMaskTarget

if TYPE_CHECKING:
    from detcam.adapters.ultralytics import UltralyticsAdapter, UltralyticsQueryAdapter


@dataclass(frozen=True)
class Level:
    """One pyramid level of a YOLO head, inside the graph.

    Attributes:
        logits: (B, C, h, w) class logits.
        boxes: (B, 4 R, h, w) distances to the box's sides in cells, each as a distribution over R bins (R may be 1).
        extra: (B, E, h, w) mask coefficients, angle in radians, or keypoints; None where the task has none.
        stride: input pixels per cell.
    """

    logits: Tensor
    boxes: Tensor
    extra: Tensor | None
    stride: float


@dataclass(frozen=True)
class Levels:
    """A YOLO head's output: its levels, and (B, M, h, w) mask prototypes or None."""

    levels: tuple[Level, ...]
    prototypes: Tensor | None


@dataclass(frozen=True)
class Queries:
    """RT-DETR's output.

    Attributes:
        boxes: (B, Q, 4) centre, width, height, in units of the input's sides.
        logits: (B, Q, C) class logits.
        tokens: (B, Q) the encoder's token from which each query grew, counted over all levels.
        grids: height and width of each level in tokens.
    """

    boxes: Tensor
    logits: Tensor
    tokens: Tensor
    grids: tuple[tuple[int, int], ...]


class DenseOutput(DetectorOutput):
    """One image's grids. A detection is pinned to its cell, and its scalar reads that level and branch alone."""

    def __init__(self, adapter: UltralyticsAdapter, raw: Levels, index: int, geometry: Geometry) -> None:
        self.adapter = adapter
        self.head: Any = adapter.head
        self.raw = raw
        self.index = index
        self.geometry = geometry
        self.classes = raw.levels[0].logits.shape[1]
        self.rotated = "angle_head" in adapter.branch
        grids = [(level.logits.shape[-2], level.logits.shape[-1]) for level in raw.levels]
        strides = [level.stride for level in raw.levels]
        self.cells = Cells(grids, [(stride, stride) for stride in strides], geometry)

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        boxes, logits = [], []
        for target in targets:
            number, (level, y, x) = self._cell(target)
            grid = self.raw.levels[level]
            angle = self._at(grid.extra, y, x) if self.rotated and grid.extra is not None else None
            rows = torch.tensor([number])
            boxes.append(self._to_image(self._decode(self._at(grid.boxes, y, x), rows, angle), angle)[0])
            logits.append(self._at(grid.logits, y, x))
        stacked = torch.cat(logits)
        return Candidates(torch.cat(boxes), stacked.sigmoid(), stacked)

    def box_scores(self, targets: Sequence[BoxTarget]) -> list[Tensor]:
        """One scalar per target; each is read by itself, as a common tensor would drag every level into each graph."""
        return [target.of(self.candidates([target]), 0) for target in targets]

    def mask_scores(self, targets: Sequence[InstanceMaskTarget]) -> list[Tensor]:
        if self.raw.prototypes is None:
            return super().mask_scores(targets)
        prototypes = self.raw.prototypes[self.index]
        scores = []
        for target in targets:
            _, (level, y, x) = self._cell(target)
            extra = self.raw.levels[level].extra
            rows, columns = self._prototype_cells(target.box_xyxy, prototypes.shape[-2], prototypes.shape[-1])
            logits = torch.tensordot(self._at(extra, y, x)[0], prototypes[:, rows, columns], 1)  # type: ignore[arg-type]
            inside = logits.detach() > 0
            scores.append(logits[inside].mean() if inside.any() else logits.max())
        return scores

    @torch.no_grad()
    def detections(self) -> Detections:
        boxes_xywh, angles, scores, extra = self._everywhere
        chosen, labels = self.adapter.select(boxes_xywh, scores, angles)
        angles = None if angles is None else angles[chosen]
        boxes, corners = self._to_image(boxes_xywh[chosen], angles)
        boxes = self.geometry.clip(boxes)
        extras: dict[str, Tensor] = {} if corners is None else {"corners_xy": corners.float().cpu()}
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)  # a box that lies on the padding has no pixel to explain
        masks = None
        if self.raw.prototypes is not None and extra is not None:
            masks = self.adapter.masks(self.raw.prototypes[self.index], extra[chosen], boxes, self.geometry.image_size_hw)
            keep &= masks.flatten(1).any(1)
        elif extra is not None and not self.rotated:
            extras["keypoints"] = self._keypoints(extra[chosen], chosen).float().cpu()
        kept = keep.nonzero()[:, 0].cpu()
        found = Detections(
            boxes.float().cpu(),
            labels.cpu(),
            scores[chosen, labels].float().cpu(),
            self.geometry.image_size_hw,
            tuple(self.cells.source("cell", 0, number) for number in chosen.tolist()),
            masks=None if masks is None else masks.cpu(),
            names=self.adapter.names,
            extras=extras,
        )
        return found[kept]

    def _at(self, grid: Tensor | None, y: int, x: int) -> Tensor:
        """(1, C) values of a grid (B, C, h, w) at one cell of this image."""
        if grid is None:
            raise RuntimeError("the head has no such output")
        return grid[self.index, :, y, x][None]

    def _cell(self, target: DetectionTarget) -> tuple[int, tuple[int, int, int]]:
        """The cell that answers for a target: its number over all levels, and its level, row and column."""
        if target.source is None:
            boxes_xywh, angles, scores, _ = self._everywhere
            boxes = self._to_image(boxes_xywh, angles)[0]
            number = best_fit(boxes, scores[:, target.label], boxes.new_tensor(target.box_xyxy))
        else:
            number = self.cells.number(target.source)
        return number, self.cells.position(number)

    @cached_property
    def _everywhere(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """What all A cells say, detached: boxes (A, 4) as centre and size, input pixels; angles (A, 1); scores (A, C);
        and the raw further outputs (A, E)."""
        with torch.no_grad():
            levels = [level for level in self.raw.levels]
            extra = None
            if levels[0].extra is not None:
                extra = torch.cat([level.extra[self.index].flatten(1) for level in levels if level.extra is not None], 1).T
            raw = torch.cat([level.boxes[self.index].flatten(1) for level in levels], 1).T
            scores = torch.cat([level.logits[self.index].flatten(1) for level in levels], 1).T.sigmoid()
            angles = extra if self.rotated else None
            return self._decode(raw, torch.arange(len(raw)), angles), angles, scores, extra

    def _decode(self, raw: Tensor, numbers: Tensor, angles: Tensor | None) -> Tensor:
        """Centre and size (K, 4), input pixels, of raw boxes (K, 4 R) at cells (K,)."""
        points = self.cells.points[numbers].to(raw)
        strides = self.cells.steps[numbers, :1].to(raw)
        before, after = (self.head.dfl(raw.T.contiguous()[None])[0].T * strides).split(2, 1)
        shift = (after - before) / 2
        if angles is not None:
            cos, sin = angles.cos(), angles.sin()
            x, y = shift.split(1, 1)
            shift = torch.cat([x * cos - y * sin, x * sin + y * cos], 1)
        return torch.cat([points + shift, before + after], 1)

    def _to_image(self, boxes_xywh: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Boxes (K, 4) and, of rotated ones, corners (K, 4, 2), image pixels, from centre and size in input pixels."""
        center, size = boxes_xywh.split(2, 1)
        if angles is None:
            return self.geometry.boxes_to_image(torch.cat([center - size / 2, center + size / 2], 1)), None
        center = self.geometry.boxes_to_image(torch.cat([center, center], 1))[:, :2]
        width, height = (size / size.new_tensor(self.geometry.scale_xy)).split(1, 1)
        along = width / 2 * torch.cat([angles.cos(), angles.sin()], 1)
        across = height / 2 * torch.cat([-angles.sin(), angles.cos()], 1)
        corners = torch.stack(
            [center + along + across, center + along - across, center - along - across, center - along + across], 1
        )
        return torch.cat([corners.amin(1), corners.amax(1)], 1), corners

    def _keypoints(self, raw: Tensor, numbers: Tensor) -> Tensor:
        """Keypoints (K, P, 3), x and y in image pixels and score, from raw ones (K, E) at cells (K,)."""
        numbers = numbers.cpu()
        points, strides = self.cells.points[numbers].to(raw), self.cells.steps[numbers].to(raw)
        values = raw.view(len(raw), *self.head.kpt_shape)
        xy = values[..., :2]
        # Distances from the cell's centre (YOLO26) or, doubled, from its corner.
        shift = xy if "kpts_head" in self.adapter.branch else xy * 2 - 0.5
        xy = points[:, None] + shift * strides[:, None]
        xy = self.geometry.clip(self.geometry.boxes_to_image(torch.cat([xy, xy], -1)))[..., :2]
        seen = values[..., 2:].sigmoid() if values.shape[-1] == 3 else torch.ones_like(xy[..., :1])
        return torch.cat([xy, seen], -1)

    def _prototype_cells(self, box_xyxy: Sequence[float], height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the prototypes whose centres lie in a box, image pixels; at least one of each."""
        x1, y1, x2, y2 = self.geometry.boxes_to_input(torch.tensor(box_xyxy, dtype=torch.float64)).tolist()
        slices = []
        for low, high, cells, side in ((y1, y2, height, 0), (x1, x2, width, 1)):
            per_cell = self.geometry.input_size_hw[side] / cells
            first = min(max(math.ceil(low / per_cell - 0.5), 0), cells - 1)
            slices.append(slice(first, min(max(math.ceil(high / per_cell - 0.5), first + 1), cells)))
        return slices[0], slices[1]


class QueryOutput(DetectorOutput):
    """One image's queries. A detection is pinned to the encoder's token from which its query grew."""

    def __init__(self, adapter: UltralyticsQueryAdapter, raw: Queries, index: int, geometry: Geometry) -> None:
        self.adapter = adapter
        self.logits = raw.logits[index]
        self.boxes = raw.boxes[index]
        self.tokens = raw.tokens[index].cpu()
        self.geometry = geometry
        self.classes = self.logits.shape[1]
        height, width = geometry.input_size_hw
        self.cells = Cells(raw.grids, [(width / columns, height / rows) for rows, columns in raw.grids], geometry)

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        rows = torch.tensor([self._query(target) for target in targets], device=self.logits.device)
        logits = self.logits[rows]
        return Candidates(self._to_image(self.boxes[rows]), logits.sigmoid(), logits)

    @torch.no_grad()
    def detections(self) -> Detections:
        count = len(self.logits)
        scores, best = self.logits.sigmoid().flatten().topk(min(count, self.logits.numel()))
        keep = scores > self.adapter.conf
        scores, best = scores[keep][: self.adapter.max_det], best[keep][: self.adapter.max_det]
        queries, labels = best // self.classes, best % self.classes
        boxes = self._to_image(self.boxes[queries])
        inside = self.geometry.clip(boxes)
        sources = tuple(
            self.cells.source("query", query, int(self.tokens[query])) for query in queries.tolist()
        )
        found = Detections(
            boxes.float().cpu(),
            labels.cpu(),
            scores.float().cpu(),
            self.geometry.image_size_hw,
            sources,
            names=self.adapter.names,
        )
        return found[(inside[:, 2:] > inside[:, :2]).all(1).nonzero()[:, 0].cpu()]

    def _to_image(self, boxes: Tensor) -> Tensor:
        """Boxes (K, 4), image pixels, from centre and size in units of the input's sides."""
        height, width = self.geometry.input_size_hw
        center, size = (boxes * boxes.new_tensor([width, height, width, height])).split(2, 1)
        return self.geometry.boxes_to_image(torch.cat([center - size / 2, center + size / 2], 1))

    def _query(self, target: DetectionTarget) -> int:
        """The query that grew from the target's token; where none did, the one that fits best."""
        source = target.source
        if source is not None and source.anchor >= 0:
            grown = (self.tokens == self.cells.number(source)).nonzero()
            if len(grown):
                return int(grown[0])
        boxes = self._to_image(self.boxes.detach())
        scores = self.logits.detach()[:, target.label].sigmoid()
        return best_fit(boxes, scores, boxes.new_tensor(target.box_xyxy))


class Cells:
    """The cells of several grids, numbered through, row by row and level after level.

    Args:
        grids: rows and columns of each level.
        steps_xy: width and height of a cell of each level, input pixels.
        geometry: how the image was placed on the input.

    Attributes:
        points: (A, 2) float64, centres of the cells, input pixels, on the CPU.
        steps: (A, 2) float64, width and height of each cell, input pixels, on the CPU.
    """

    def __init__(
        self, grids: Sequence[tuple[int, int]], steps_xy: Sequence[tuple[float, float]], geometry: Geometry
    ) -> None:
        self.grids = list(grids)
        self.starts = [0, *itertools.accumulate(rows * columns for rows, columns in grids)]
        self.geometry = geometry
        points, steps = [], []
        for (rows, columns), step in zip(grids, steps_xy, strict=True):
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            size = torch.tensor(step, dtype=torch.float64)
            points.append((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * size)
            steps.append(size.expand(rows * columns, 2))
        self.points, self.steps = torch.cat(points), torch.cat(steps)

    def position(self, number: int) -> tuple[int, int, int]:
        """Level, row and column of a cell."""
        level = bisect.bisect_right(self.starts, number) - 1
        return level, *divmod(number - self.starts[level], self.grids[level][1])

    def source(self, kind: Literal["cell", "query"], anchor: int, number: int) -> Source:
        """What pins a detection to a cell."""
        center = self.geometry.point_to_image((float(self.points[number, 0]), float(self.points[number, 1])))
        return Source(kind, self.position(number)[0], anchor, center)

    def number(self, source: Source) -> int:
        """The cell at a source's place.

        Raises:
            ValueError: the source belongs to another kind of detector.
        """
        if not 0 <= source.level < len(self.grids):
            raise ValueError(f"expected a source at level 0 to {len(self.grids) - 1}; got {source}")
        start, stop = self.starts[source.level : source.level + 2]
        points = self.points[start:stop]
        scale, offset = points.new_tensor(self.geometry.scale_xy), points.new_tensor(self.geometry.offset_xy)
        return start + nearest_source((points - offset) / scale, source)
