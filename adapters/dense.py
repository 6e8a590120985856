"""What torchvision's dense detectors, RetinaNet, FCOS and SSD, have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, clip_boxes_to_image

from detcam.adapters.base import Batch
from detcam.adapters.candidates import best_fit, nearest_source
from detcam.adapters.torchvision_detector import (
    TorchvisionDetector,
    at_least_float,
    coco_names,
    input_size,
    scores_of_regions,
)
from detcam.adapters.windows import by_level, cut, restore_order
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import DetectionTarget

HeadOutput = Mapping[str, Tensor]
"""What a head says, by torchvision's own names: ``cls_logits`` (..., C), ``bbox_regression`` (..., 4), ..."""


@dataclass(frozen=True)
class Shortlist:
    """What enters non-maximum suppression, in the model's order.

    Attributes:
        levels: (N,) pyramid level.
        anchors: (N,) flat index of the anchor in its level.
        labels: (N,) class index.
        scores: (N,) in [0, 1].
    """

    levels: Tensor
    anchors: Tensor
    labels: Tensor
    scores: Tensor


class DenseAdapter(TorchvisionDetector):
    """A detector whose head speaks at every anchor of every pyramid level.

    A detection is pinned to its level, anchor index and anchor centre. The head is asked at that anchor alone,
    on the window of the map that it sees; where the head is not local, on the level that emitted the detection.
    """

    source_kind: ClassVar[Literal["anchor", "cell"]] = "anchor"
    background: ClassVar[int | None] = None
    """The class index of nothing being there, where the scores are a softmax."""
    head_type: ClassVar[str]

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model = model
        if not self.knows_head():
            raise TypeError(
                f"expected a {type(self.model).__name__} with torchvision's {self.head_type}; its head is a "
                f"{type(self.model.head).__name__}. Say what it puts out with "
                "detcam.adapters.detector(model, decode=...)"
            )
        super().__init__(model, **options)

    def default_names(self) -> Mapping[int, str]:
        return coco_names(self.classes)

    def forward(self, batch: Batch) -> DenseRaw:
        levels = list(self.pyramid(batch.inputs).values())
        inside = {id(module) for module in self.model.head.modules()}
        live = None
        if any(id(layer) in inside for layer in self.target_layers):  # hooked during this call only
            live = [self.run_head(level, feature, boxes=True) for level, feature in enumerate(levels)]
        return DenseRaw(self, ImageList(batch.inputs, [input_size(g) for g in batch.geometries]), levels, live)

    def outputs(self, raw: DenseRaw, batch: Batch) -> list[DetectorOutput]:
        return [DenseOutput(self, raw, index, geometry) for index, geometry in enumerate(batch.geometries)]

    @abstractmethod
    def knows_head(self) -> bool:
        """Whether the head is of the kind that `run_head` can run on one level."""

    @abstractmethod
    def run_head(self, level: int, feature: Tensor, *, boxes: bool) -> HeadOutput:
        """The head on a map or a window of one level: (B, C, h, w) to entries (B, h * w * anchors, n).

        Without `boxes`, ``bbox_regression`` may be left out, to save the work of half the head.
        """

    @abstractmethod
    def head_reach(self, level: int) -> int | None:
        """How many cells around a cell the head sees at a level; None for the whole map."""

    @abstractmethod
    def class_scores(self, said: HeadOutput) -> Tensor:
        """(..., C) scores as the model reports them, column = class index."""

    @abstractmethod
    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """(N, 4) boxes in input pixels, from box regression (N, 4) and anchors (N, 4)."""

    @abstractmethod
    def shortlist(self, scores: Sequence[Tensor]) -> Shortlist:
        """What the model sends into non-maximum suppression, from the class scores (n, C) of each level."""

    def objectness(self, said: HeadOutput) -> Tensor | None:
        """(...,) in [0, 1], or None where the family has none."""
        return None


class DenseRaw:
    """The pyramid of a batch, with what follows from it on demand.

    Attributes:
        images: the network's input, with the sizes of the images on it.
        levels: per pyramid level (B, C, h, w).
        live: the head's output per level, in the graph; only where a target layer lies in the head.
    """

    def __init__(
        self, adapter: DenseAdapter, images: ImageList, levels: list[Tensor], live: list[HeadOutput] | None
    ) -> None:
        self.adapter = adapter
        self.images = images
        self.levels = levels
        self.live = live
        self.features = [level.split(1) for level in levels]

    @cached_property
    def anchors(self) -> list[Tensor]:
        """Per level the anchors (h * w * A, 4), input pixels; every image of a batch has the same."""
        flat: Tensor = self.adapter.model.anchor_generator(self.images, self.levels)[0]
        return list(flat.split(self.counts))

    @cached_property
    def counts(self) -> list[int]:
        """Number of anchors per level."""
        per_cell = self.adapter.model.anchor_generator.num_anchors_per_location()
        cells = [level.shape[-2] * level.shape[-1] for level in self.levels]
        return [count * places for count, places in zip(per_cell, cells, strict=True)]

    @cached_property
    def dense(self) -> list[HeadOutput]:
        """The head's whole output as the model computes it, per level, detached."""
        with torch.no_grad():
            said = self.adapter.model.head([level.detach() for level in self.levels])
        split = {name: value.split(self.counts, dim=1) for name, value in said.items()}
        return [{name: parts[level] for name, parts in split.items()} for level in range(len(self.levels))]


class DenseOutput(DetectorOutput):
    """One image's pyramid, with the head that reads it."""

    def __init__(self, adapter: DenseAdapter, raw: DenseRaw, index: int, geometry: Geometry) -> None:
        self.adapter = adapter
        self.raw = raw
        self.index = index
        self.geometry = geometry
        self.classes = adapter.classes
        self.background = adapter.background

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        places = [self._place(target) for target in targets]
        parts, positions = [], []
        for level, members in by_level([place[0] for place in places]).items():
            parts.append(self._on_whole_level(level, [places[i][1] for i in members], boxes=True))
            positions.extend(members)
        return Candidates(
            restore_order([part.boxes_xyxy for part in parts], positions),
            restore_order([part.class_scores for part in parts], positions),
            restore_order([part.class_logits for part in parts], positions),
            None
            if parts[0].objectness is None
            else restore_order([part.objectness for part in parts if part.objectness is not None], positions),
        )

    def box_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        places = [self._place(target) for target in targets]
        scores: list[Tensor] = [torch.empty(0)] * len(targets)
        for level, members in by_level([place[0] for place in places]).items():
            asked = [targets[i] for i in members]
            flat = [places[i][1] for i in members]
            for position, score in zip(members, self._level_scores(level, flat, asked), strict=True):
                scores[position] = score
        return scores

    def _level_scores(self, level: int, flat: list[int], targets: Sequence[DetectionTarget]) -> list[Tensor]:
        """The scalars of targets that one level emitted."""
        radius = self.adapter.head_reach(level)
        sided = any("boxes_xyxy" in target.reads for target in targets)
        if radius is None or self.raw.live is not None:
            candidates = self._on_whole_level(level, flat, boxes=sided)
            return [target.value(candidates, row) for row, target in enumerate(targets)]
        per_cell = self._anchors_per_cell(level)
        index = torch.tensor(flat, device=self.raw.levels[level].device)
        windows, inside = cut(self.raw.features[level][self.index], index // per_cell, radius)
        rows = inside * per_cell + index % per_cell

        def scalars(regions: Tensor, part: slice) -> list[Tensor]:
            said = self.adapter.run_head(level, regions, boxes=sided)
            each = torch.arange(len(regions), device=regions.device)
            picked = {name: value[each, rows[part]] for name, value in said.items()}
            candidates = self._read(picked, self.raw.anchors[level][index[part]])
            return [target.value(candidates, row) for row, target in enumerate(targets[part])]

        return scores_of_regions(windows, scalars)

    def _on_whole_level(self, level: int, flat: Sequence[int], *, boxes: bool) -> Candidates:
        """What the head says at some anchors of a level, run on the level's whole map."""
        index = torch.tensor(flat, device=self.raw.levels[level].device)
        if self.raw.live is not None:
            picked = {name: value[self.index, index] for name, value in self.raw.live[level].items()}
        else:
            said = self.adapter.run_head(level, self.raw.features[level][self.index], boxes=boxes)
            picked = {name: value[0, index] for name, value in said.items()}
        return self._read(picked, self.raw.anchors[level][index])

    def _read(self, said: HeadOutput, anchors: Tensor) -> Candidates:
        adapter = self.adapter
        if "bbox_regression" in said:
            boxes = self.geometry.boxes_to_image(adapter.decode(said["bbox_regression"], anchors))
        else:
            boxes = torch.full_like(anchors, torch.nan)
        return Candidates(boxes, adapter.class_scores(said), said["cls_logits"], adapter.objectness(said))

    def _anchors_per_cell(self, level: int) -> int:
        height, width = self.raw.levels[level].shape[-2:]
        return self.raw.counts[level] // (height * width)

    def _place(self, target: DetectionTarget) -> tuple[int, int]:
        """The level of a target's anchor and its flat index there."""
        source = target.source
        if source is None:
            return self._best_place(target)
        known = 0 <= source.level < len(self.raw.levels)
        if not known or not 0 <= source.anchor < self._anchors_per_cell(source.level):
            raise ValueError(f"source {source} is no anchor of this detector; did another model make it?")
        per_cell = self._anchors_per_cell(source.level)
        anchors = self.raw.anchors[source.level][source.anchor :: per_cell]
        centers = _centers(self.geometry.boxes_to_image(anchors.double()))
        return source.level, nearest_source(centers, source) * per_cell + source.anchor

    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        return self._everything

    def source_of(self, target: DetectionTarget) -> Source:
        level, flat = self._place(target)
        anchor = self.geometry.boxes_to_image(self.raw.anchors[level][flat].double())
        x, y = _centers(anchor[None])[0].tolist()
        return Source(self.adapter.source_kind, level, flat % self._anchors_per_cell(level), (x, y))

    def _best_place(self, target: DetectionTarget) -> tuple[int, int]:
        """Where a box that no detection produced fits best, over the anchors of all levels."""
        boxes, scores = self._everything
        wanted = boxes.new_tensor(target.box_xyxy)
        found = best_fit(boxes, scores[:, target.label], wanted)
        for level, count in enumerate(self.raw.counts):
            if found < count:
                return level, found
            found -= count
        raise RuntimeError("the best candidate lies outside the pyramid")

    @cached_property
    def _everything(self) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4), clipped, image pixels, and class scores (N, C) of all anchors; detached."""
        with torch.no_grad():
            boxes, scores = [], []
            for level in range(len(self.raw.levels)):
                said = {name: value[self.index] for name, value in self.raw.dense[level].items()}
                candidates = self._read(said, self.raw.anchors[level])
                boxes.append(self.geometry.clip(candidates.boxes_xyxy))
                scores.append(candidates.class_scores)
            return torch.cat(boxes), torch.cat(scores)

    @torch.no_grad()
    def detections(self) -> Detections:
        model, size = self.adapter.model, self.raw.images.image_sizes[self.index]
        said = [{name: value[self.index] for name, value in level.items()} for level in self.raw.dense]
        found = self.adapter.shortlist([self.adapter.class_scores(level) for level in said])
        starts = torch.tensor([0, *self.raw.counts[:-1]], device=found.levels.device).cumsum(0)
        index = starts[found.levels] + found.anchors
        anchors = torch.cat(self.raw.anchors)[index]
        regression = torch.cat([level["bbox_regression"] for level in said])[index]
        boxes = clip_boxes_to_image(self.adapter.decode(regression, anchors), size)
        keep = batched_nms(at_least_float(boxes), at_least_float(found.scores), found.labels, model.nms_thresh)
        keep = keep[: model.detections_per_img]
        done = model.transform.postprocess([{"boxes": boxes[keep]}], [size], [self.geometry.image_size_hw])[0]
        centers = _centers(self.geometry.boxes_to_image(anchors[keep].double())).tolist()
        levels, flat = found.levels[keep].tolist(), found.anchors[keep].tolist()
        kind = self.adapter.source_kind
        return Detections(
            done["boxes"].float().cpu(),
            found.labels[keep].cpu(),
            found.scores[keep].float().cpu(),
            self.geometry.image_size_hw,
            tuple(
                Source(kind, level, anchor % self._anchors_per_cell(level), (center[0], center[1]))
                for level, anchor, center in zip(levels, flat, centers, strict=True)
            ),
            names=self.adapter.names,
        )


def _centers(boxes_xyxy: Tensor) -> Tensor:
    """(N, 2) centres of boxes (N, 4)."""
    return (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
