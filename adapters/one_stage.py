"""torchvision's RetinaNet and FCOS: one head for all levels of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from detcam.adapters.dense import DenseAdapter, HeadOutput, Shortlist
from detcam.adapters.windows import farthest


class _FpnAdapter(DenseAdapter):
    """RetinaNet's and FCOS's common part: one head for all levels, thresholds and top k per level."""

    def head_reach(self, level: int) -> int | None:
        return farthest([self.model.head.classification_head, self.model.head.regression_head])

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
    def supports(cls, model: Any) -> bool:
        return isinstance(model, RetinaNet)

    def knows_head(self) -> bool:
        return isinstance(self.model.head, RetinaNetHead)

    def class_scores(self, said: HeadOutput) -> Tensor:
        return said["cls_logits"].sigmoid()

    def run_head(self, level: int, feature: Tensor, *, boxes: bool) -> HeadOutput:
        head = self.model.head
        said = {"cls_logits": head.classification_head([feature])}
        return {**said, "bbox_regression": head.regression_head([feature])} if boxes else said

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        boxes: Tensor = self.model.box_coder.decode_single(regression, anchors)
        return boxes


class FCOSAdapter(_FpnAdapter):
    """Explains any `torchvision.models.detection.FCOS`.

    A class score is the geometric mean of class probability and centre-ness; the latter is the objectness.
    """

    family = "torchvision FCOS"
    source_kind = "cell"
    head_type = "FCOSHead"

    @classmethod
    def supports(cls, model: Any) -> bool:
        return isinstance(model, FCOS)

    def knows_head(self) -> bool:
        return isinstance(self.model.head, FCOSHead)

    def class_scores(self, said: HeadOutput) -> Tensor:
        return torch.sqrt(said["cls_logits"].sigmoid() * said["bbox_ctrness"].sigmoid())

    def objectness(self, said: HeadOutput) -> Tensor:
        return said["bbox_ctrness"][..., 0].sigmoid()

    def run_head(self, level: int, feature: Tensor, *, boxes: bool) -> HeadOutput:
        said: dict[str, Tensor] = self.model.head([feature])  # centre-ness is a part of the regression head
        return said

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        boxes: Tensor = self.model.box_coder.decode(regression, anchors)
        return boxes
