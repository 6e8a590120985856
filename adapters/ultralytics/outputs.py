"""The output of YOLO heads: per-cell predictions on a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detcam.adapters.candidates import best_fit
from detcam.adapters.grid_cells import GridCells
from detcam.adapters.torchvision.detector import scores_of_regions
from detcam.adapters.windows import cut
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import DetectionTarget
from detcam.utils.batching import group_by

if TYPE_CHECKING:
    from detcam.adapters.ultralytics.detector import UltralyticsAdapter


@dataclass(frozen=True)
class HeadLevel:
    """A YOLO head's output on one pyramid level.

    Attributes:
        logits: (B, C, h, w) class logits.
        boxes: (B, 4 R, h, w) distances to the box's sides in cells, each a distribution over R bins (or R = 1).
        extra: (B, E, h, w) mask coefficients, angle in radians, or keypoints; None where the task has none.
    """

    logits: Tensor
    boxes: Tensor
    extra: Tensor | None


class YoloPyramid:
    """The input of a YOLO head and its output, which is computed on first use.

    A box's scalar only needs a window of the features. The whole head runs for detections, for masks, for boxes
    without a source, and where a target layer lies inside it.

    Args:
        adapter: runs the head.
        features: (B, C, h, w) per level, in the autograd graph.

    Attributes:
        decoded: the output of all cells of each image, detached, as `YoloOutput` reads it; None before its first use.
    """

    def __init__(self, adapter: UltralyticsAdapter, features: Sequence[Tensor]) -> None:
        self.adapter = adapter
        self.features = list(features)
        self.strides = [float(adapter.head.stride[level]) for level in range(len(features))]
        self.decoded: tuple[Tensor, Tensor | None, Tensor, Tensor | None] | None = None
        self._in_graph = torch.is_grad_enabled()  # the first use may be under no_grad

    @cached_property
    def levels(self) -> list[HeadLevel]:
        """The head's output on each level, in the autograd graph."""
        with torch.set_grad_enabled(self._in_graph):
            return [self.adapter.run_head(level, feature) for level, feature in enumerate(self.features)]

    @cached_property
    def logits(self) -> Tensor:
        """(B, A, C) class logits of all cells, detached."""
        return torch.cat([level.logits.detach().flatten(2) for level in self.levels], 2).transpose(1, 2)

    @cached_property
    def prototypes(self) -> Tensor | None:
        """(B, M, h, w) mask prototypes, in the autograd graph, or None where the task has none."""
        with torch.set_grad_enabled(self._in_graph):
            return self.adapter.run_prototypes(self.features)


class YoloOutput(DetectorOutput):
    """The grids of one image. The source of a detection is its cell; its scalar only reads that level and branch."""

    def __init__(self, adapter: UltralyticsAdapter, raw: YoloPyramid, index: int, geometry: Geometry) -> None:
        self.adapter = adapter
        self.head: Any = adapter.head
        self.raw = raw
        self.index = index
        self.geometry = geometry
        self.classes = int(self.head.nc)
        self.rotated = "angle_head" in adapter.branch
        grids = [(feature.shape[-2], feature.shape[-1]) for feature in raw.features]
        self.cells = GridCells(grids, [(stride, stride) for stride in raw.strides], geometry)

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        if not torch.is_grad_enabled() and self.raw.decoded is not None:
            rows = [self._cell(target) for target in targets]
            boxes_xywh, angles, scores, _ = self._all_cells
            boxes = self._to_image(boxes_xywh[rows], None if angles is None else angles[rows])[0]
            return Candidates(boxes, scores[rows], self.raw.logits[self.index, rows])
        parts = []
        for number in (self._cell(target) for target in targets):
            level, y, x = self.cells.position(number)
            output = self.raw.levels[level]
            extra = None if output.extra is None else output.extra[self.index, :, y, x][None]
            boxes, logits = output.boxes[self.index, :, y, x][None], output.logits[self.index, :, y, x][None]
            parts.append(self._read(logits, boxes, extra, torch.tensor([number])))
        return Candidates(
            torch.cat([part.boxes_xyxy for part in parts]),
            torch.cat([part.class_scores for part in parts]),
            torch.cat([part.class_logits for part in parts]),
        )

    def box_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        numbers = [self._cell(target) for target in targets]
        scores: list[Tensor] = [torch.empty(0)] * len(targets)
        for level, members in group_by(range(len(numbers)), lambda i: self.cells.position(numbers[i])[0]).items():
            cells = torch.tensor([numbers[i] for i in members])
            for i, score in zip(members, self._level_scores(level, [targets[i] for i in members], cells), strict=True):
                scores[i] = score
        return scores

    def _level_scores(self, level: int, targets: Sequence[DetectionTarget], numbers: Tensor) -> list[Tensor]:
        """The scalars of targets at cells (K,) of one level.

        Each is computed from the window of the features in the cell's receptive field. Where this is unknown, or a
        target layer lies inside the head, each is read separately from the whole level: with a common tensor, each
        backward pass would visit the levels and branches of all targets.
        """
        radius = None if self.adapter.hooks_head else self.adapter.head_reach(level)
        if radius is None:
            return [target.value(self.candidates([target]), 0) for target in targets]
        feature = self.raw.features[level][self.index : self.index + 1]
        windows, inside = cut(feature, numbers - self.cells.starts[level], radius)

        def scalars(regions: Tensor, part: slice) -> list[Tensor]:
            output = self.adapter.run_head(level, regions)
            each = torch.arange(len(regions)), inside[part]
            extra = None if output.extra is None else output.extra.flatten(2).transpose(1, 2)[each]
            boxes, logits = (value.flatten(2).transpose(1, 2)[each] for value in (output.boxes, output.logits))
            candidates = self._read(logits, boxes, extra, numbers[part])
            return [target.value(candidates, row) for row, target in enumerate(targets[part])]

        return scores_of_regions(windows, scalars)

    def _read(self, logits: Tensor, boxes: Tensor, extra: Tensor | None, numbers: Tensor) -> Candidates:
        """Candidates from the head's output, each (K, ...), at cells (K,)."""
        angles = extra if self.rotated else None
        on_image = self._to_image(self._decode(boxes.T, numbers, angles), angles)[0]
        return Candidates(on_image, logits.sigmoid(), logits)

    def mask_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        if self.raw.prototypes is None:
            return super().mask_scores(targets)
        prototypes = self.raw.prototypes[self.index]
        scores = []
        for target in targets:
            level, y, x = self.cells.position(self._cell(target))
            coefficients: Any = self.raw.levels[level].extra
            rows, columns = self._prototype_cells(target.box_xyxy, prototypes.shape[-2], prototypes.shape[-1])
            logits = torch.tensordot(coefficients[self.index, :, y, x], prototypes[:, rows, columns], 1)
            area = self.geometry.area_of_cells(rows, columns, (prototypes.shape[-2], prototypes.shape[-1]))
            scores.append(target.mask_value(logits, area))
        return scores

    def source_of(self, target: DetectionTarget) -> Source:
        return self.cells.source("cell", 0, self._cell(target))

    @torch.no_grad()
    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        boxes_xywh, angles, scores, _ = self._all_cells
        return self.geometry.clip(self._to_image(boxes_xywh, angles)[0]), scores

    @torch.no_grad()
    def detections(self) -> Detections:
        boxes_xywh, angles, scores, extra = self._all_cells
        chosen, labels = self.adapter.select_anchors(boxes_xywh, scores, angles)
        angles = None if angles is None else angles[chosen]
        boxes, corners = self._to_image(boxes_xywh[chosen], angles)
        boxes = self.geometry.clip(boxes)
        extras: dict[str, Tensor] = {} if corners is None else {"corners_xy": corners.float().cpu()}
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)  # a box on the padding covers no pixel of the image
        masks = None
        if self.raw.prototypes is not None and extra is not None:
            masks = self.adapter.masks(
                self.raw.prototypes[self.index], extra[chosen], boxes, self.geometry.image_size_hw
            )
            keep &= masks.flatten(1).any(1)
        elif extra is not None and not self.rotated:
            extras["keypoints"] = self._keypoints(extra[chosen], chosen).float().cpu()
        kept = keep.nonzero()[:, 0].cpu()
        detections = Detections(
            boxes.float().cpu(),
            labels.cpu(),
            scores[chosen, labels].float().cpu(),
            self.geometry.image_size_hw,
            tuple(self.cells.source("cell", 0, number) for number in chosen.tolist()),
            masks=None if masks is None else masks.cpu(),
            names=self.adapter.names,
            extras=extras,
        )
        return detections[kept]

    def _cell(self, target: DetectionTarget) -> int:
        """The cell of a target's source, or the one that fits best."""
        if target.source is not None:
            return self.cells.number(target.source)
        boxes_xywh, angles, scores, _ = self._all_cells
        boxes = self._to_image(boxes_xywh, angles)[0]
        return best_fit(boxes, scores[:, target.label], boxes.new_tensor(target.box_xyxy))

    @cached_property
    def _all_cells(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """The output of all A cells, detached.

        Returns:
            Boxes (A, 4), center and size in input pixels; angles (A, 1) or None; scores (A, C); extra (A, E) or None.
        """
        if self.raw.decoded is None:
            self.raw.decoded = self._decode_batch()
        boxes, angles, scores, extra = (None if part is None else part[self.index] for part in self.raw.decoded)
        return boxes, angles, scores, extra  # type: ignore[return-value]

    @torch.no_grad()
    def _decode_batch(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """As `_all_cells`, with a first axis for the images of the batch."""
        levels = self.raw.levels
        raw = torch.cat([level.boxes.flatten(2).transpose(0, 1) for level in levels], 2)  # (4 R, B, A)
        extras = [level.extra.flatten(2) for level in levels if level.extra is not None]
        extra = torch.cat(extras, 2).transpose(1, 2) if extras else None
        angles = extra if self.rotated else None
        count, cells = raw.shape[1:]
        numbers = torch.arange(cells).repeat(count)
        boxes = self._decode(raw.flatten(1), numbers, None if angles is None else angles.flatten(0, 1))
        return boxes.view(count, cells, 4), angles, self.raw.logits.sigmoid(), extra

    def _decode(self, raw: Tensor, numbers: Tensor, angles: Tensor | None) -> Tensor:
        """Center and size (K, 4), input pixels, of raw boxes (4 R, K) at cells (K,)."""
        points = self.cells.points[numbers].to(raw)
        strides = self.cells.steps[numbers, :1].to(raw)
        before, after = (self.head.dfl(raw.contiguous()[None])[0].T * strides).split(2, 1)
        shift = (after - before) / 2
        if angles is not None:
            cos, sin = angles.cos(), angles.sin()
            x, y = shift.split(1, 1)
            shift = torch.cat([x * cos - y * sin, x * sin + y * cos], 1)
        return torch.cat([points + shift, before + after], 1)

    def _to_image(self, boxes_xywh: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Boxes (K, 4) and corners (K, 4, 2) of rotated ones, image pixels, from center and size, input pixels."""
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
        # Distances from the cell's center (YOLO26) or, doubled, from its corner.
        shift = xy if "kpts_head" in self.adapter.branch else xy * 2 - 0.5
        xy = points[:, None] + shift * strides[:, None]
        xy = self.geometry.clip(self.geometry.boxes_to_image(torch.cat([xy, xy], -1)))[..., :2]
        seen = values[..., 2:].sigmoid() if values.shape[-1] == 3 else torch.ones_like(xy[..., :1])
        return torch.cat([xy, seen], -1)

    def _prototype_cells(self, box_xyxy: Sequence[float], height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the prototypes whose centers lie in a box; at least one of each."""
        x1, y1, x2, y2 = self.geometry.boxes_to_input(torch.tensor(box_xyxy, dtype=torch.float64)).tolist()
        slices = []
        for low, high, cells, side in ((y1, y2, height, 0), (x1, x2, width, 1)):
            per_cell = self.geometry.input_size_hw[side] / cells
            first = min(max(math.ceil(low / per_cell - 0.5), 0), cells - 1)
            slices.append(slice(first, min(max(math.ceil(high / per_cell - 0.5), first + 1), cells)))
        return slices[0], slices[1]
