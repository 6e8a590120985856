"""The boxes and scores that a decode function returns: checks, and one image's candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from detcam.adapters.candidates import best_fit
from detcam.adapters.output_heads import describe_output
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import DetectionTarget
from detcam.trace import flatten_tensors

if TYPE_CHECKING:
    from detcam.adapters.custom_detector import CustomDetectorAdapter

MIN_IOU = 0.5
"""Minimum overlap of a candidate with the box that it is taken for, where rows are no identities."""
MAX_IOU_DIFFERENCE = 0.01
"""Overlaps that differ by less are equal: rows of one box and several classes."""
MAX_INVERTED = 0.1
"""Largest fraction of reported boxes without area; above it the boxes are not corners."""

_EXPECTED = "(boxes_xyxy, class_scores), and optionally objectness and the index of each row's candidate"


@dataclass(frozen=True)
class Decoded:
    """What a decode function returned, for a batch or (without the first axis) for one image.

    Attributes:
        boxes: (B, N, 4) xyxy, network-input pixels.
        scores: (B, N, C) in [0, 1].
        objectness: (B, N) in [0, 1], or None.
        sources: (B, N) int64, the index of the candidate that a row comes from; None where it is not returned.
    """

    boxes: Tensor
    scores: Tensor
    objectness: Tensor | None = None
    sources: Tensor | None = None

    def image(self, index: int) -> Decoded:
        """Return one image's part."""
        parts = (self.boxes, self.scores, self.objectness, self.sources)
        return Decoded(*(None if part is None else part[index] for part in parts))  # type: ignore[arg-type]


def read_decoded(decoded: Any, raw: Any, count: int) -> Decoded:
    """Check what a decode function returned for a batch of `count` images.

    Raises:
        TypeError: not a tuple of tensors.
        ValueError: other shapes, or scores that are not in [0, 1].
        RuntimeError: the scores are detached from a differentiable output.
    """
    if isinstance(decoded, (list, tuple)) and decoded and isinstance(decoded[0], dict):
        raise TypeError(
            f"expected decode to return {_EXPECTED} of the whole batch; got {describe_output(decoded)}, a result per "
            "image. Return the candidates before suppression and thresholds; if there are none, for a batch of one:\n"
            "        found = output[0]\n"
            "        scores = torch.nn.functional.one_hot(found['labels'], classes) * found['scores'][:, None]\n"
            "        return found['boxes'][None], scores[None]\n"
            "with max_batch_size=1"
        )
    if not isinstance(decoded, (tuple, list)) or not 2 <= len(decoded) <= 4:
        raise TypeError(f"expected decode to return {_EXPECTED}; got {describe_output(decoded)}")
    if not all(isinstance(part, Tensor) for part in decoded):
        raise TypeError(f"expected decode to return tensors; got {describe_output(decoded)}")
    boxes, scores, *rest = decoded
    whole = [part for part in rest if not part.is_floating_point()]
    floats = [part for part in rest if part.is_floating_point()]
    fits = boxes.ndim == 3 and boxes.shape[-1] == 4 and scores.ndim == 3 and scores.shape[:2] == boxes.shape[:2]
    fits = fits and all(part.shape == boxes.shape[:2] for part in rest) and len(boxes) == count
    fits = fits and len(whole) <= 1 and len(floats) <= 1
    if not fits:
        one = scores.ndim == 2 and scores.shape == boxes.shape[:2]
        raise ValueError(
            f"expected decode to return boxes ({count}, N, 4) and class scores ({count}, N, C), and objectness "
            f"({count}, N) and int64 indices ({count}, N) if there are any; got "
            f"{', '.join(str(tuple(part.shape)) for part in decoded)}"
            + (". One score a box is scores[..., None] for a detector of one class" if one else "")
        )
    _check_scores(scores, raw)
    return Decoded(boxes, scores, floats[0] if floats else None, whole[0].long() if whole else None)


def _check_scores(scores: Tensor, raw: Any) -> None:
    values = scores.detach()
    low, high = (float(values.amin()), float(values.amax())) if values.numel() else (0.0, 1.0)
    if math.isnan(low):  # as NaN anywhere makes the minimum
        raise ValueError("the class scores that decode returns are NaN; check the network's weights and its input")
    if low < 0 or high > 1:
        raise ValueError("expected class scores in [0, 1]; apply sigmoid or softmax in decode")
    detached = torch.is_grad_enabled() and scores.numel() and not scores.requires_grad
    if detached and any(tensor.requires_grad for tensor in flatten_tensors(raw)):
        raise RuntimeError(
            "the scores that decode returns have no gradient: decode must not detach the output or convert it to "
            "NumPy. Methods that change the image need no gradient: pass target_layers=, any layer, and use drise or "
            "occlusion"
        )


def check_boxes(boxes: Tensor, input_size_hw: tuple[int, int]) -> None:
    """Check that reported boxes (K, 4) are corners in pixels of the network's input.

    Raises:
        ValueError: they are fractions of the input, or have no area, as xywh read as corners has.
    """
    if not len(boxes):
        return
    if min(input_size_hw) > 8 and float(boxes.min()) > -0.5 and float(boxes.max()) < 1.5:
        raise ValueError(
            "expected boxes in pixels of the network's input; all of them lie in [0, 1]. Multiply x by the input's "
            f"width {input_size_hw[1]} and y by its height {input_size_hw[0]} in decode"
        )
    inverted = int((boxes[:, 2:] <= boxes[:, :2]).any(1).sum())
    if inverted > MAX_INVERTED * len(boxes):
        raise ValueError(
            f"expected boxes as corners x1, y1, x2, y2; {inverted} of {len(boxes)} have x2 <= x1 or y2 <= y1. Convert "
            "them in decode: torchvision.ops.box_convert(boxes, 'xywh', 'xyxy'), or 'cxcywh' for centers"
        )


class DecodedOutput(DetectorOutput):
    """The decoded candidates of one image."""

    def __init__(self, adapter: CustomDetectorAdapter, decoded: Decoded, geometry: Geometry) -> None:
        self.adapter = adapter
        self.geometry = geometry
        self.boxes, self.scores = decoded.boxes, decoded.scores
        self.objectness, self.sources = decoded.objectness, decoded.sources
        self.classes = self.scores.shape[-1]

    def _row(self, target: DetectionTarget) -> int:
        """The row of a target's candidate; -1 where there is none."""
        if not len(self.boxes):
            return -1
        source = target.source
        if source is None or source.anchor < 0 and source.box_xyxy is None:
            target_xyxy = self.geometry.boxes_to_input(self.boxes.new_tensor(target.box_xyxy))
            return best_fit(self.boxes, self.scores[:, target.label], target_xyxy)
        if self.sources is not None and source.anchor >= 0:
            return self._best_of(self.sources == source.anchor, target.label)
        if self.adapter.rows_are_sources:
            return source.anchor if source.anchor < len(self.boxes) else -1
        box = self._clipped.new_tensor(source.box_xyxy or target.box_xyxy)
        overlaps = box_iou(box[None], self._clipped)[0]
        return self._best_of(overlaps >= max(float(overlaps.max()) - MAX_IOU_DIFFERENCE, MIN_IOU), target.label)

    def _best_of(self, rows: Tensor, label: int) -> int:
        """The row with the greatest score of a class, of those selected by a mask (N,)."""
        if not rows.any():
            return -1
        return int(self.scores[:, label].detach().float().masked_fill(~rows, -1).argmax())

    @property
    def _clipped(self) -> Tensor:
        """(N, 4) boxes in image pixels, clipped to the image."""
        return self.geometry.clip(self.geometry.boxes_to_image(self.boxes.detach().float()))

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        rows = [self._row(target) for target in targets]

        def select(table: Tensor) -> Tensor:
            if min(rows, default=0) < 0:  # a candidate without score, for a target that this image does not have
                table = torch.cat([table, table.new_zeros(1, *table.shape[1:])])
            return table[rows]

        scores = select(self.scores)
        return Candidates(
            self.geometry.boxes_to_image(select(self.boxes)),
            scores,
            torch.logit(scores, eps=1e-6),
            None if self.objectness is None else select(self.objectness),
        )

    def central_scores(self, count: int) -> list[Tensor]:
        """Return the best class score of each of the `count` candidates nearest the input's center, as scalars."""
        height, width = self.geometry.input_size_hw
        centers = (self.boxes[:, :2] + self.boxes[:, 2:]).detach() / 2
        distance = (centers - centers.new_tensor([width / 2, height / 2])).norm(dim=1)
        nearest = distance.argsort(stable=True)[:count]
        return [self.scores[row].max() for row in nearest.tolist()]

    def source_of(self, target: DetectionTarget) -> Source | None:
        row = self._row(target)
        return target.source if row < 0 else self._source(row)

    def _source(self, row: int) -> Source:
        anchor = row if self.sources is None else int(self.sources[row])
        if self.adapter.rows_are_sources or self.sources is not None:
            return Source("query", anchor=anchor)
        x1, y1, x2, y2 = self._clipped[row].tolist()
        return Source("query", anchor=anchor, box_xyxy=(x1, y1, x2, y2))

    @torch.no_grad()
    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        return self.geometry.clip(self.geometry.boxes_to_image(self.boxes)), self.scores

    @torch.no_grad()
    def detections(self) -> Detections:
        adapter = self.adapter
        scores, labels = self.scores.float().max(1)
        rows = torch.nonzero(scores >= adapter.score_threshold)[:, 0]
        check_boxes(self.boxes[rows].float(), self.geometry.input_size_hw)
        # Before boxes are clipped, as in ultralytics, YOLOX and MMDetection: clipped ones overlap more at the border.
        whole = self.boxes.detach().float()
        kept = rows[batched_nms(whole[rows], scores[rows], labels[rows], adapter.iou_threshold)]
        kept = kept[: adapter.max_detections]
        boxes = self._clipped
        kept = kept[(boxes[kept, 2:] > boxes[kept, :2]).all(1)]
        return Detections(
            boxes[kept].cpu(),
            labels[kept].cpu(),
            scores[kept].cpu(),
            self.geometry.image_size_hw,
            tuple(self._source(row) for row in kept.tolist()),
            names=adapter.names,
        )
