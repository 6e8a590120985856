"""torchvision's RetinaNet and FCOS: one head for all levels of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from detcam.adapters.torchvision.dense import DenseAdapter, HeadOutput, Shortlist
from detcam.adapters.windows import max_reach


class _FpnAdapter(DenseAdapter, abstract=True):
    """Base class of RetinaNet and FCOS: one head for all levels, threshold and top k per level."""

    def head_reach(self, level: int) -> int | None:
        return max_reach([self.model.head.classification_head, self.model.head.regression_head])

    @property
    def classes(self) -> int:
        return int(self.model.head.classification_head.num_classes)

    def shortlist(self, scores: Sequence[Tensor]) -> Shortlist:
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for level, table in enumerate(scores):
            flat = table.flatten()
            above = torch.where(flat > self.model.score_thresh)[0]
            best, order = flat[above].topk(min(len(above), self.model.topk_candidates))
            above = above[order]
            anchors = torch.div(above, table.shape[1], rounding_mode="floor")
            parts.append((torch.full_like(above, level), anchors, above % table.shape[1], best))
        return Shortlist(*(torch.cat(column) for column in zip(*parts, strict=True)))


class RetinaNetAdapter(_FpnAdapter):
    """Explains any `torchvision.models.detection.RetinaNet`; a class score is the sigmoid of its logit."""

    family = "torchvision RetinaNet"
    head_type = "RetinaNetHead"

    @classmethod
    def supports(cls, model: object) -> bool:
        return isinstance(model, RetinaNet)

    def supports_head(self) -> bool:
        return isinstance(self.model.head, RetinaNetHead)

    def class_scores(self, predictions: HeadOutput) -> Tensor:
        return predictions["cls_logits"].sigmoid()

    def run_head(self, level: int, feature: Tensor, *, boxes: bool) -> HeadOutput:
        head = self.model.head
        predictions = {"cls_logits": head.classification_head([feature])}
        return {**predictions, "bbox_regression": head.regression_head([feature])} if boxes else predictions


class FCOSAdapter(_FpnAdapter):
    """Explains any `torchvision.models.detection.FCOS`.

    A class score is the geometric mean of class probability and center-ness; the latter is the objectness.
    """

    family = "torchvision FCOS"
    source_kind = "cell"
    head_type = "FCOSHead"

    @classmethod
    def supports(cls, model: object) -> bool:
        return isinstance(model, FCOS)

    def supports_head(self) -> bool:
        return isinstance(self.model.head, FCOSHead)

    def class_scores(self, predictions: HeadOutput) -> Tensor:
        return torch.sqrt(predictions["cls_logits"].sigmoid() * predictions["bbox_ctrness"].sigmoid())

    def objectness(self, predictions: HeadOutput) -> Tensor:
        return predictions["bbox_ctrness"][..., 0].sigmoid()

    def run_head(self, level: int, feature: Tensor, *, boxes: bool) -> HeadOutput:
        predictions: dict[str, Tensor] = self.model.head([feature])  # center-ness is computed by the regression head
        return predictions

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        return self.model.box_coder.decode(regression, anchors)
