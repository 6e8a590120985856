"""torchvision's SSD and SSDLite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.ssd import SSD, SSDScoringHead

from detcam.adapters.torchvision.dense import DenseAdapter, HeadOutput, Shortlist
from detcam.adapters.windows import max_reach


class SSDAdapter(DenseAdapter):
    """Explains any `torchvision.models.detection.ssd.SSD`; scores are a softmax, column 0 is background.

    SSD moves an object's features to the center of its box on the way to the coarse maps, so maps of the default layers
    show the cell of a detection rather than the part of the object. For the part, use a layer inside
    ``backbone.features``, before the first map.
    """

    family = "torchvision SSD"
    head_type = "SSDHead or SSDLiteHead"
    background = 0

    @classmethod
    def supports(cls, model: object) -> bool:
        return isinstance(model, SSD)

    def supports_head(self) -> bool:
        parts = [getattr(self.model.head, name, None) for name in ("classification_head", "regression_head")]
        return all(isinstance(part, SSDScoringHead) for part in parts)

    @property
    def classes(self) -> int:
        return int(self.model.head.classification_head.num_columns)

    def run_head(self, level: int, feature: Tensor, *, boxes: bool) -> HeadOutput:
        classification, regression = self.model.head.classification_head, self.model.head.regression_head
        predictions = {"cls_logits": _rows(classification.module_list[level](feature), classification.num_columns)}
        return (
            {**predictions, "bbox_regression": _rows(regression.module_list[level](feature), 4)}
            if boxes
            else predictions
        )

    def head_reach(self, level: int) -> int | None:
        head = self.model.head
        return max_reach([head.classification_head.module_list[level], head.regression_head.module_list[level]])

    def class_scores(self, predictions: HeadOutput) -> Tensor:
        return F.softmax(predictions["cls_logits"], -1)

    def shortlist(self, scores: Sequence[Tensor]) -> Shortlist:
        """Return, per class and over all levels, the top k candidates above the threshold."""
        device = scores[0].device
        table = torch.cat(list(scores))
        counts = torch.tensor([len(part) for part in scores], device=device)
        level_of = torch.arange(len(scores), device=device).repeat_interleave(counts)
        index_of = torch.cat([torch.arange(len(part), device=device) for part in scores])
        anchors, labels, best = [], [], []
        for label in range(1, table.shape[1]):
            above = torch.where(table[:, label] > self.model.score_thresh)[0]
            top, order = table[above, label].topk(min(len(above), self.model.topk_candidates))
            anchors.append(above[order])
            labels.append(torch.full_like(anchors[-1], label))
            best.append(top)
        flat = torch.cat(anchors)
        return Shortlist(level_of[flat], index_of[flat], torch.cat(labels), torch.cat(best))


def _rows(maps: Tensor, columns: int) -> Tensor:
    """Reshape a convolution's output (B, A * n, h, w) to rows (B, h * w * A, n)."""
    per_anchor = maps.unflatten(1, (-1, columns))
    return per_anchor.permute(0, 3, 4, 1, 2).reshape(len(maps), -1, columns)
