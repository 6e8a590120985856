"""RT-DETR as ultralytics ships it: detections come from queries, each grown from one token of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detcam.adapters.base import Batch
from detcam.adapters.candidates import best_fit
from detcam.adapters.ultralytics import UltralyticsDetector
from detcam.adapters.ultralytics_network import fresh_attributes, head_names, is_ultralytics
from detcam.adapters.ultralytics_outputs import Cells
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import DetectionTarget


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


class UltralyticsQueryAdapter(UltralyticsDetector):
    """RT-DETR. A detection is pinned to the encoder's token from which its query grew.

    Images are stretched to the input size. The arguments are those of `UltralyticsDetector`.
    """

    family = "ultralytics rt-detr"
    stretches = True

    @classmethod
    def supports(cls, model: Any) -> bool:
        return is_ultralytics(model) and "RTDETRDecoder" in head_names(model)

    def forward(self, batch: Batch) -> Queries:
        head = self.head
        features = self.features(batch.inputs)
        with fresh_attributes(head):
            tokens, shapes = head._get_encoder_input(features)
            embedded, reference, _, _ = head._get_decoder_input(tokens, shapes)
            heads = (head.dec_bbox_head, head.dec_score_head, head.query_pos_head)
            boxes, logits = head.decoder(embedded, reference, tokens, shapes, *heads)
            with torch.no_grad():  # which token each query grew from; the head does not tell
                found = head.enc_score_head(head.enc_output(head.valid_mask * tokens.detach()))
                chosen = found.max(-1).values.topk(boxes.shape[2], dim=1).indices
        return Queries(boxes[-1], logits[-1], chosen, tuple((int(h), int(w)) for h, w in shapes))

    def outputs(self, raw: Queries, batch: Batch) -> list[DetectorOutput]:
        return [QueryOutput(self, raw, index, geometry) for index, geometry in enumerate(batch.geometries)]


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

    def source_of(self, target: DetectionTarget) -> Source:
        query = self._query(target)
        return self.cells.source("query", query, int(self.tokens[query]))

    @torch.no_grad()
    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        return self.geometry.clip(self._to_image(self.boxes)), self.logits.sigmoid()

    @torch.no_grad()
    def detections(self) -> Detections:
        count = len(self.logits)
        scores, best = self.logits.sigmoid().flatten().topk(min(count, self.logits.numel()))
        keep = scores > self.adapter.conf
        scores, best = scores[keep][: self.adapter.max_det], best[keep][: self.adapter.max_det]
        queries, labels = best // self.classes, best % self.classes
        boxes = self._to_image(self.boxes[queries])
        inside = self.geometry.clip(boxes)
        sources = tuple(self.cells.source("query", query, int(self.tokens[query])) for query in queries.tolist())
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
