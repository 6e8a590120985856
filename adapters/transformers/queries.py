"""The queries of a DETR-like detector of transformers: class scores, boxes and identities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detcam.adapters.candidates import best_fit
from detcam.adapters.grid_cells import GridCells
from detcam.adapters.transformers.tokens import token_grids
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectionTarget, DetectorOutput

if TYPE_CHECKING:
    from detcam.adapters.transformers.detector import TransformersDetector

QueryActivation: TypeAlias = Literal["sigmoid", "softmax"]
"""From class logits to scores: independent classes, or exclusive ones of which the last is "no object"."""


@dataclass(frozen=True)
class Queries:
    """What a detector predicts for a batch.

    Attributes:
        logits: (B, Q, C), the class "no object" included where the head has one.
        boxes: (B, Q, 4) x1, y1, x2, y2, in units of the input's sides.
        tokens: (B, Q) index of the encoder's token from which each query starts; None where queries are learned.
        grids: height and width of each level of these tokens; None where they are unknown.
        masks: (B, Q, h, w) mask logits over the input; None where the model predicts none.
    """

    logits: Tensor
    boxes: Tensor
    tokens: Tensor | None = None
    grids: tuple[tuple[int, int], ...] | None = None
    masks: Tensor | None = None


class ChosenTokens(TorchFunctionMode):
    """Records which tokens of the encoder a two-stage detector chooses as its queries.

    The choice is a ``topk`` over the tokens (B, N), whose result the models do not return.

    Args:
        queries: number of queries.

    Attributes:
        tokens: (B, Q) the chosen tokens, or None if nothing was chosen.
        count: the number of tokens that were chosen from.
    """

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = queries
        self.tokens: Tensor | None = None
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.topk, Tensor.topk) and self.tokens is None:
            scores: Tensor = args[0]
            indices: Tensor = result[1]
            if scores.ndim == 2 and indices.shape == (len(scores), self.queries):
                self.tokens, self.count = indices.detach(), scores.shape[1]
        return result


def corners(boxes: Tensor) -> Tensor:
    """Return x1, y1, x2, y2 of boxes (..., 4) given by center, width and height."""
    center, size = boxes.split(2, -1)
    return torch.cat([center - size / 2, center + size / 2], -1)


class QueryOutput(DetectorOutput):
    """The queries of one image."""

    def __init__(self, adapter: TransformersDetector, raw: Queries, index: int, geometry: Geometry) -> None:
        self.adapter = adapter
        self.geometry = geometry
        self.logits = raw.logits[index]
        self.boxes = raw.boxes[index]
        self.masks = None if raw.masks is None else raw.masks[index]
        self.classes = self.logits.shape[-1]
        self.background = self.classes - 1 if adapter.activation == "softmax" else None
        self.tokens = None if raw.tokens is None or raw.grids is None else raw.tokens[index].cpu()
        self.cells = None
        if self.tokens is not None and raw.grids is not None:
            height, width = geometry.input_size_hw
            steps = [(width / columns, height / rows) for rows, columns in raw.grids]
            self.cells = GridCells(raw.grids, steps, geometry)

    def class_scores(self, logits: Tensor) -> Tensor:
        """Return scores (..., C) in [0, 1]."""
        return logits.softmax(-1) if self.adapter.activation == "softmax" else logits.sigmoid()

    def boxes_in_image(self, boxes: Tensor) -> Tensor:
        """Return boxes (K, 4) in image pixels, not clipped."""
        height, width = self.geometry.input_size_hw
        return self.geometry.boxes_to_image(boxes * boxes.new_tensor([width, height, width, height]))

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        rows = torch.tensor([self.query(target) for target in targets], device=self.logits.device)
        logits = self.logits[rows]
        return Candidates(self.boxes_in_image(self.boxes[rows]), self.class_scores(logits), logits)

    def query(self, target: DetectionTarget) -> int:
        """Return the query of a target: by the token that it starts from, by its number, or the one that fits best."""
        source = target.source
        if source is not None and source.kind == "query" and source.anchor >= 0:
            if self.cells is None or self.tokens is None or source.center_xy is None:
                if source.anchor >= len(self.logits):
                    raise ValueError(f"source {source} is not a query of this detector; was it made by another model?")
                return source.anchor
            same_token = (self.tokens == self.cells.number(source)).nonzero()
            if len(same_token):
                return int(same_token[0])
        boxes = self.boxes_in_image(self.boxes.detach())
        scores = self.class_scores(self.logits.detach())[:, target.label]
        return best_fit(boxes, scores, boxes.new_tensor(target.box_xyxy))

    def source_of(self, target: DetectionTarget) -> Source:
        return self._source(self.query(target))

    def _source(self, query: int) -> Source:
        if self.cells is None or self.tokens is None:
            return Source("query", anchor=query)
        return self.cells.source("query", query, int(self.tokens[query]))

    @torch.no_grad()
    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        return self.geometry.clip(self.boxes_in_image(self.boxes)), self.class_scores(self.logits)

    def ranked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, label and score of each candidate, best first, as the family's post-processing ranks them."""
        scores = self.class_scores(self.logits.detach().float())
        if self.background is not None or self.adapter.one_label_per_query:
            best, labels = scores[:, : self.background].max(-1)
            order = best.argsort(descending=True, stable=True)
            return order, labels[order], best[order]
        best, flat = scores.flatten().topk(min(self.adapter.candidate_limit(len(scores)), scores.numel()))
        return flat // self.classes, flat % self.classes, best

    @torch.no_grad()
    def detections(self) -> Detections:
        queries, labels, scores = self.ranked()
        boxes = self.boxes_in_image(self.boxes.detach().float())[queries]
        inside = self.geometry.clip(boxes)
        keep = (scores >= self.adapter.score_threshold) & (inside[:, 2:] > inside[:, :2]).all(1)
        kept = keep.nonzero()[: self.adapter.max_detections, 0]
        return Detections(
            boxes[kept].cpu(),
            labels[kept].cpu(),
            scores[kept].cpu(),
            self.geometry.image_size_hw,
            tuple(self._source(query) for query in queries[kept].tolist()),
            masks=self._masks(queries[kept]),
            names=self.adapter.names,
        )

    def _masks(self, queries: Tensor) -> Tensor | None:
        """Return masks (K, H, W) in image pixels, one at a time to save memory; None without a mask head."""
        if self.masks is None:
            return None
        masks = [self.geometry.to_image(self.masks[query][None].float())[0] > 0 for query in queries.tolist()]
        empty = torch.zeros((0, *self.geometry.image_size_hw), dtype=torch.bool)
        return torch.stack(masks).cpu() if masks else empty

    def mask_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        if self.masks is None:
            return super().mask_scores(targets)
        return mask_values(self.masks, targets, [self.query(target) for target in targets], self.geometry)


def grids_of(tokens: ChosenTokens, input_size_hw: tuple[int, int], levels: int) -> tuple[tuple[int, int], ...] | None:
    """Return the grids of the tokens that queries were chosen from, or None."""
    return None if tokens.tokens is None else token_grids(tokens.count, input_size_hw, levels)


def mask_values(
    masks: Tensor, targets: Sequence[DetectionTarget], queries: Sequence[int], geometry: Geometry
) -> list[Tensor]:
    """Return `DetectionTarget.mask_value` of each target, of its query's mask on the image.

    Args:
        masks: (Q, h, w) mask logits over the input.
        targets: the targets.
        queries: the query of each target.
        geometry: position of the image on the input.
    """
    size_hw = (masks.shape[-2], masks.shape[-1])
    rows, columns = geometry.valid_cells(size_hw)
    area = geometry.area_of_cells(rows, columns, size_hw)
    return [
        target.mask_value(masks[query, rows, columns], area) for target, query in zip(targets, queries, strict=True)
    ]
