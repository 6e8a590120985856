"""RT-DETR of ultralytics: detections are queries, each of which starts from one token of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detcam.adapters.base import Batch
from detcam.adapters.candidates import best_fit
from detcam.adapters.grid_cells import GridCells
from detcam.adapters.ultralytics.detector import UltralyticsDetector
from detcam.adapters.ultralytics.network import fresh_attributes, head_names, is_ultralytics
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import DetectionTarget


@dataclass(frozen=True)
class DecoderOutput:
    """RT-DETR's output.

    Attributes:
        boxes: (B, Q, 4) center, width, height, in units of the input's sides.
        logits: (B, Q, C) class logits.
        tokens: (B, Q) index of the encoder's token from which each query starts, over all levels.
        grids: height and width of each level in tokens.
    """

    boxes: Tensor
    logits: Tensor
    tokens: Tensor
    grids: tuple[tuple[int, int], ...]


class UltralyticsQueryAdapter(UltralyticsDetector):
    """RT-DETR. The source of a detection is the encoder's token from which its query starts.

    Images are stretched to the input size. The arguments are those of `UltralyticsDetector`.
    """

    family = "ultralytics rt-detr"
    stretches = True

    @classmethod
    def supports(cls, model: object) -> bool:
        return is_ultralytics(model) and "RTDETRDecoder" in head_names(model)

    def forward(self, batch: Batch) -> DecoderOutput:
        head = self.head
        features = self.features(batch.inputs)
        with fresh_attributes(head):
            tokens, shapes = head._get_encoder_input(features)
            embedded, reference, _, _ = head._get_decoder_input(tokens, shapes)
            heads = (head.dec_bbox_head, head.dec_score_head, head.query_pos_head)
            boxes, logits = head.decoder(embedded, reference, tokens, shapes, *heads)
            with torch.no_grad():  # the token of each query, which the head does not return
                token_scores = head.enc_score_head(head.enc_output(head.valid_mask * tokens.detach()))
                chosen = token_scores.max(-1).values.topk(boxes.shape[2], dim=1).indices
        return DecoderOutput(boxes[-1], logits[-1], chosen, tuple((int(h), int(w)) for h, w in shapes))

    def outputs(self, raw: DecoderOutput, batch: Batch) -> list[DetectorOutput]:
        return [RTDETROutput(self, raw, index, geometry) for index, geometry in enumerate(batch.geometries)]


class RTDETROutput(DetectorOutput):
    """The queries of one image."""

    def __init__(self, adapter: UltralyticsQueryAdapter, raw: DecoderOutput, index: int, geometry: Geometry) -> None:
        self.adapter = adapter
        self.logits = raw.logits[index]
        self.boxes = raw.boxes[index]
        self.tokens = raw.tokens[index].cpu()
        self.geometry = geometry
        self.classes = self.logits.shape[1]
        height, width = geometry.input_size_hw
        self.cells = GridCells(raw.grids, [(width / columns, height / rows) for rows, columns in raw.grids], geometry)

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
        detections = Detections(
            boxes.float().cpu(),
            labels.cpu(),
            scores.float().cpu(),
            self.geometry.image_size_hw,
            sources,
            names=self.adapter.names,
        )
        return detections[(inside[:, 2:] > inside[:, :2]).all(1).nonzero()[:, 0].cpu()]

    def _to_image(self, boxes: Tensor) -> Tensor:
        """Boxes (K, 4), image pixels, from center and size in units of the input's sides."""
        height, width = self.geometry.input_size_hw
        center, size = (boxes * boxes.new_tensor([width, height, width, height])).split(2, 1)
        return self.geometry.boxes_to_image(torch.cat([center - size / 2, center + size / 2], 1))

    def _query(self, target: DetectionTarget) -> int:
        """The query that starts from the target's token, or the one that fits best where there is none."""
        source = target.source
        if source is not None and source.anchor >= 0:
            same_token = (self.tokens == self.cells.number(source)).nonzero()
            if len(same_token):
                return int(same_token[0])
        boxes = self._to_image(self.boxes.detach())
        scores = self.logits.detach()[:, target.label].sigmoid()
        return best_fit(boxes, scores, boxes.new_tensor(target.box_xyxy))
