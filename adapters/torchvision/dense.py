"""Base classes of torchvision's dense detectors: RetinaNet, FCOS and SSD."""

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
from detcam.adapters.torchvision.detector import (
    TorchvisionDetector,
    at_least_float,
    coco_names,
    resized_size,
    scores_of_regions,
)
from detcam.adapters.windows import cut, restore_order
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import DetectionTarget
from detcam.utils.batching import group_by

HeadOutput = Mapping[str, Tensor]
"""A head's output by torchvision's names: ``cls_logits`` (..., C), ``bbox_regression`` (..., 4), ..."""


@dataclass(frozen=True)
class Shortlist:
    """The candidates that enter non-maximum suppression, in the model's order.

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


class DenseAdapter(TorchvisionDetector, abstract=True):
    """Base class for detectors with one prediction per anchor and pyramid level.

    The source of a detection is its level, anchor index and anchor center. The head runs for that anchor alone, on the
    window of the map in its receptive field; where the head is not local, on the whole level of the detection.

    Attributes:
        source_kind: kind of the sources of detections.
        background: class index of the background, where the scores are a softmax.
        head_type: name of the supported head, for messages.
    """

    source_kind: ClassVar[Literal["anchor", "cell"]] = "anchor"
    head_type: ClassVar[str]

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model = model
        if not self.supports_head():
            raise TypeError(
                f"expected a {type(self.model).__name__} with torchvision's {self.head_type}; its head is a "
                f"{type(self.model.head).__name__}. Decode its output with "
                "detcam.adapters.detector(model, decode=...)"
            )
        super().__init__(model, **options)

    def default_names(self) -> Mapping[int, str]:
        return coco_names(self.classes)

    def forward(self, batch: Batch) -> DenseRaw:
        levels = list(self.pyramid(batch.inputs).values())
        inside = {id(module) for module in self.model.head.modules()}
        live = None
        if any(id(layer) in inside for layer in self.target_layers):  # hooks are only active during this call
            live = [self.run_head(level, feature, boxes=True) for level, feature in enumerate(levels)]
        return DenseRaw(self, ImageList(batch.inputs, [resized_size(g) for g in batch.geometries]), levels, live)

    def outputs(self, raw: DenseRaw, batch: Batch) -> list[DetectorOutput]:
        return [DenseOutput(self, raw, index, geometry) for index, geometry in enumerate(batch.geometries)]

    @abstractmethod
    def supports_head(self) -> bool:
        """Return whether `run_head` can run the model's head on one level."""

    @abstractmethod
    def run_head(self, level: int, feature: Tensor, *, boxes: bool) -> HeadOutput:
        """Run the head on a map, or a window of a map, of one level.

        Args:
            level: index of the pyramid level.
            feature: (B, C, h, w).
            boxes: whether ``bbox_regression`` is needed; without it, half of the head need not run.

        Returns:
            Entries of shape (B, h * w * anchors, n).
        """

    @abstractmethod
    def head_reach(self, level: int) -> int | None:
        """Return the radius of the head's receptive field at a level, in cells; None for the whole map."""

    @abstractmethod
    def class_scores(self, predictions: HeadOutput) -> Tensor:
        """Return scores (..., C) as the model reports them; the column is the class index."""

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """Return boxes (N, 4) in input pixels from box regression (N, 4) and anchors (N, 4)."""
        return self.model.box_coder.decode_single(regression, anchors)

    @abstractmethod
    def shortlist(self, scores: Sequence[Tensor]) -> Shortlist:
        """Return the candidates for non-maximum suppression from the class scores (n, C) of each level."""

    def objectness(self, predictions: HeadOutput) -> Tensor | None:
        """Return the objectness (...,) in [0, 1], or None where the family has none."""
        return None


@dataclass(eq=False)
class DenseRaw:
    """The pyramid of a batch; anchors and the head's output are computed on first use.

    Attributes:
        images: the network's input and the sizes of the images on it.
        levels: per pyramid level (B, C, h, w).
        live: the head's output per level, in the autograd graph; None unless a target layer lies in the head.
    """

    adapter: DenseAdapter
    images: ImageList
    levels: list[Tensor]
    live: list[HeadOutput] | None

    def __post_init__(self) -> None:
        self.features = [level.split(1) for level in self.levels]

    @cached_property
    def anchors(self) -> list[Tensor]:
        """Per level the anchors (h * w * A, 4), input pixels; the same for every image of a batch."""
        flat: Tensor = self.adapter.model.anchor_generator(self.images, self.levels)[0]
        return list(flat.split(self.counts))

    @cached_property
    def counts(self) -> list[int]:
        """Number of anchors per level."""
        per_cell = self.adapter.model.anchor_generator.num_anchors_per_location()
        cells = [level.shape[-2] * level.shape[-1] for level in self.levels]
        return [anchors * level_cells for anchors, level_cells in zip(per_cell, cells, strict=True)]

    @cached_property
    def dense(self) -> list[HeadOutput]:
        """The head's complete output per level, as the model computes it, detached."""
        with torch.no_grad():
            predictions = self.adapter.model.head([level.detach() for level in self.levels])
        split = {name: value.split(self.counts, dim=1) for name, value in predictions.items()}
        return [{name: parts[level] for name, parts in split.items()} for level in range(len(self.levels))]


class DenseOutput(DetectorOutput):
    """The pyramid of one image and the head that reads it."""

    def __init__(self, adapter: DenseAdapter, raw: DenseRaw, index: int, geometry: Geometry) -> None:
        self.adapter = adapter
        self.raw = raw
        self.index = index
        self.geometry = geometry
        self.classes = adapter.classes
        self.background = adapter.background

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        positions = [self._position(target) for target in targets]
        parts, order = [], []
        for level, members in group_by(range(len(positions)), lambda i: positions[i][0]).items():
            parts.append(self._on_whole_level(level, [positions[i][1] for i in members], boxes=True))
            order.extend(members)
        return Candidates(
            restore_order([part.boxes_xyxy for part in parts], order),
            restore_order([part.class_scores for part in parts], order),
            restore_order([part.class_logits for part in parts], order),
            None
            if parts[0].objectness is None
            else restore_order([part.objectness for part in parts if part.objectness is not None], order),
        )

    def box_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        positions = [self._position(target) for target in targets]
        scores: list[Tensor] = [torch.empty(0)] * len(targets)
        for level, members in group_by(range(len(positions)), lambda i: positions[i][0]).items():
            flat = [positions[i][1] for i in members]
            for i, score in zip(members, self._level_scores(level, flat, [targets[i] for i in members]), strict=True):
                scores[i] = score
        return scores

    def _level_scores(self, level: int, flat: list[int], targets: Sequence[DetectionTarget]) -> list[Tensor]:
        """The scalars of targets whose sources lie on one level."""
        radius = self.adapter.head_reach(level)
        boxes = any("boxes_xyxy" in target.reads for target in targets)
        if radius is None or self.raw.live is not None:
            candidates = self._on_whole_level(level, flat, boxes=boxes)
            return [target.value(candidates, row) for row, target in enumerate(targets)]
        per_cell = self._anchors_per_cell(level)
        index = torch.tensor(flat, device=self.raw.levels[level].device)
        windows, inside = cut(self.raw.features[level][self.index], index // per_cell, radius)
        rows = inside * per_cell + index % per_cell

        def scalars(regions: Tensor, part: slice) -> list[Tensor]:
            predictions = self.adapter.run_head(level, regions, boxes=boxes)
            each = torch.arange(len(regions), device=regions.device)
            selected = {name: value[each, rows[part]] for name, value in predictions.items()}
            candidates = self._read(selected, self.raw.anchors[level][index[part]])
            return [target.value(candidates, row) for row, target in enumerate(targets[part])]

        return scores_of_regions(windows, scalars)

    def _on_whole_level(self, level: int, flat: Sequence[int], *, boxes: bool) -> Candidates:
        """Predictions at given anchors of a level, from the head on the level's whole map."""
        index = torch.tensor(flat, device=self.raw.levels[level].device)
        if self.raw.live is not None:
            selected = {name: value[self.index, index] for name, value in self.raw.live[level].items()}
        else:
            predictions = self.adapter.run_head(level, self.raw.features[level][self.index], boxes=boxes)
            selected = {name: value[0, index] for name, value in predictions.items()}
        return self._read(selected, self.raw.anchors[level][index])

    def _read(self, predictions: HeadOutput, anchors: Tensor) -> Candidates:
        adapter = self.adapter
        if "bbox_regression" in predictions:
            boxes = self.geometry.boxes_to_image(adapter.decode(predictions["bbox_regression"], anchors))
        else:
            boxes = torch.full_like(anchors, torch.nan)
        return Candidates(
            boxes, adapter.class_scores(predictions), predictions["cls_logits"], adapter.objectness(predictions)
        )

    def _anchors_per_cell(self, level: int) -> int:
        height, width = self.raw.levels[level].shape[-2:]
        return self.raw.counts[level] // (height * width)

    def _position(self, target: DetectionTarget) -> tuple[int, int]:
        """The level of a target's anchor and the anchor's flat index on that level."""
        source = target.source
        if source is None:
            return self._best_position(target)
        known = 0 <= source.level < len(self.raw.levels)
        if not known or not 0 <= source.anchor < self._anchors_per_cell(source.level):
            raise ValueError(f"source {source} is not an anchor of this detector; was it made by another model?")
        per_cell = self._anchors_per_cell(source.level)
        anchors = self.raw.anchors[source.level][source.anchor :: per_cell]
        centers = _centers(self.geometry.boxes_to_image(anchors.cpu().double()))
        return source.level, nearest_source(centers, source) * per_cell + source.anchor

    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        return self._raw_candidates

    def source_of(self, target: DetectionTarget) -> Source:
        level, flat = self._position(target)
        anchor = self.geometry.boxes_to_image(self.raw.anchors[level][flat].cpu().double())
        x, y = _centers(anchor[None])[0].tolist()
        return Source(self.adapter.source_kind, level, flat % self._anchors_per_cell(level), (x, y))

    def _best_position(self, target: DetectionTarget) -> tuple[int, int]:
        """The position of the candidate that fits a target without a source best, over all levels."""
        boxes, scores = self._raw_candidates
        index = best_fit(boxes, scores[:, target.label], boxes.new_tensor(target.box_xyxy))
        for level, count in enumerate(self.raw.counts):
            if index < count:
                return level, index
            index -= count
        raise RuntimeError("the best candidate lies outside the pyramid")

    @cached_property
    def _raw_candidates(self) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4), clipped, image pixels, and class scores (N, C) of all anchors, detached."""
        with torch.no_grad():
            boxes, scores = [], []
            for level in range(len(self.raw.levels)):
                predictions = {name: value[self.index] for name, value in self.raw.dense[level].items()}
                candidates = self._read(predictions, self.raw.anchors[level])
                boxes.append(self.geometry.clip(candidates.boxes_xyxy))
                scores.append(candidates.class_scores)
            return torch.cat(boxes), torch.cat(scores)

    @torch.no_grad()
    def detections(self) -> Detections:
        model, size = self.adapter.model, self.raw.images.image_sizes[self.index]
        dense = [{name: value[self.index] for name, value in level.items()} for level in self.raw.dense]
        shortlist = self.adapter.shortlist([self.adapter.class_scores(level) for level in dense])
        starts = torch.tensor([0, *self.raw.counts[:-1]], device=shortlist.levels.device).cumsum(0)
        index = starts[shortlist.levels] + shortlist.anchors
        anchors = torch.cat(self.raw.anchors)[index]
        regression = torch.cat([level["bbox_regression"] for level in dense])[index]
        boxes = clip_boxes_to_image(self.adapter.decode(regression, anchors), size)
        keep = batched_nms(at_least_float(boxes), at_least_float(shortlist.scores), shortlist.labels, model.nms_thresh)
        keep = keep[: model.detections_per_img]
        processed = model.transform.postprocess([{"boxes": boxes[keep]}], [size], [self.geometry.image_size_hw])[0]
        centers = _centers(self.geometry.boxes_to_image(anchors[keep].cpu().double())).tolist()
        levels, flat = shortlist.levels[keep].tolist(), shortlist.anchors[keep].tolist()
        kind = self.adapter.source_kind
        return Detections(
            processed["boxes"].float().cpu(),
            shortlist.labels[keep].cpu(),
            shortlist.scores[keep].float().cpu(),
            self.geometry.image_size_hw,
            tuple(
                Source(kind, level, anchor % self._anchors_per_cell(level), (center[0], center[1]))
                for level, anchor, center in zip(levels, flat, centers, strict=True)
            ),
            names=self.adapter.names,
        )


def _centers(boxes_xyxy: Tensor) -> Tensor:
    """Return the centers (N, 2) of boxes (N, 4)."""
    return (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
