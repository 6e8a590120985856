"""Box targets: a number that a detector's head predicts for one box, pinned to the part that produced the box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.detections import class_name
from detcam.outputs import BaseTarget, CandidateField, Candidates, DetectionTarget, DetectorOutput, check_label

Quantity: TypeAlias = Literal["score", "logit", "objectness", "x1", "y1", "x2", "y2", "width", "height"]

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
"""The quantities of a `BoxTarget`."""


@dataclass(frozen=True)
class BoxTarget(DetectionTarget):
    """A number that the detector's head predicts for one box.

    Attributes:
        quantity: ``"score"``, the class score as the detector reports it (default); ``"logit"``, before the sigmoid
            or softmax; ``"objectness"``; or a coordinate of the predicted box, ``"x1"``, ``"y1"``, ``"x2"``,
            ``"y2"``, ``"width"``, ``"height"`` in image pixels.
        against: another class index, whose value is subtracted (*why a dog rather than a cat?*); for ``"score"`` and
            ``"logit"`` only.

    Example:
        >>> import detcam
        >>> import numpy as np
        >>> from detcam.targets import BoxTarget
        >>> from detcam.testing import tiny_detector
        >>> cam = detcam.GradCAM(tiny_detector())
        >>> cam(np.zeros((32, 32, 3), np.uint8), [BoxTarget((4, 4, 20, 20), label=1, quantity="logit")])[0].shape
        (1, 32, 32)
    """

    quantity: Quantity = "score"
    against: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantity not in QUANTITIES:
            raise ValueError(f"expected quantity to be one of {', '.join(QUANTITIES)}; got {self.quantity!r}")
        if self.against is not None and self.quantity not in ("score", "logit"):
            raise ValueError(f"against= compares scores or logits of two classes; got quantity={self.quantity!r}")
        if self.against is not None and self.against == self.label:
            raise ValueError(f"expected another class in against=; got class {self.label} against itself")

    def check(self, image_size_hw: tuple[int, int], names: Mapping[int, str], classes: int) -> None:
        super().check(image_size_hw, names, classes)
        if self.against is not None:
            check_label(self.against, names, classes)

    def describe(self, names: Mapping[int, str]) -> str:
        text = class_name(names, self.label)
        if self.against is not None:
            text += f" rather than {class_name(names, self.against)}"
        return text if self.quantity == "score" else f"{self.quantity} of {text}"

    @property
    def reads(self) -> frozenset[CandidateField]:
        fields: dict[str, CandidateField] = {
            "score": "class_scores",
            "logit": "class_logits",
            "objectness": "objectness",
        }
        return frozenset({fields.get(self.quantity, "boxes_xyxy")})

    def value(self, candidates: Candidates, row: int) -> Tensor:
        if self.quantity in ("score", "logit"):
            table = candidates.class_scores if self.quantity == "score" else candidates.class_logits
            value = table[row, self.label]
            return value if self.against is None else value - table[row, self.against]
        if self.quantity == "objectness":
            if candidates.objectness is None:
                raise ValueError("this detector has no objectness; explain quantity='score' instead")
            return candidates.objectness[row]
        x1, y1, x2, y2 = candidates.boxes_xyxy[row].unbind()
        return {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "width": x2 - x1, "height": y2 - y1}[self.quantity]


@dataclass(frozen=True)
class SuppressionTarget(BoxTarget):
    """The negative of a number that the head predicts for a box: what lowers the score of an object that is missed.

    Positive saliency marks what suppresses the object.

    Example:
        >>> import torch
        >>> from detcam.outputs import Candidates
        >>> from detcam.targets import SuppressionTarget
        >>> table = torch.tensor([[0.9, 0.1]])
        >>> target = SuppressionTarget((4, 4, 20, 20), label=1)
        >>> target.value(Candidates(torch.zeros(1, 4), table, table), 0)
        tensor(-0.1000)
    """

    def describe(self, names: Mapping[int, str]) -> str:
        return f"what suppresses {super().describe(names)}"

    def value(self, candidates: Candidates, row: int) -> Tensor:
        return -super().value(candidates, row)


class FasterRCNNBoxScoreTarget(BaseTarget):
    """Sum of IoU and score over given boxes, each matched to a detection by overlap.

    For code that migrates from ``pytorch_grad_cam``. A `BoxTarget` needs no matching, since it is pinned to its source.
    A box whose best match overlaps too little, or has another label, adds 0.

    Args:
        labels: class indices, one per box.
        bounding_boxes: (N, 4) xyxy, original image pixels; a tensor or an array.
        iou_threshold: minimum IoU of a match.
    """

    has_position = True

    def __init__(self, labels: Sequence[int], bounding_boxes: npt.ArrayLike, iou_threshold: float = 0.5) -> None:
        self.labels = [int(label) for label in labels]
        self.bounding_boxes = torch.as_tensor(bounding_boxes, dtype=torch.float32).reshape(-1, 4)
        self.iou_threshold = iou_threshold
        if len(self.labels) != len(self.bounding_boxes):
            raise ValueError(f"expected one label per box; got {len(self.labels)} and {len(self.bounding_boxes)}")

    def hflip(self, width: int) -> FasterRCNNBoxScoreTarget:
        x1, y1, x2, y2 = self.bounding_boxes.unbind(1)
        flipped = torch.stack([width - x2, y1, width - x1, y2], 1)
        return FasterRCNNBoxScoreTarget(self.labels, flipped, self.iou_threshold)

    def __call__(self, output: DetectorOutput) -> Tensor:
        detections = output.detections()
        matched: list[tuple[int, int]] = []
        if len(detections):
            overlap, best = box_iou(self.bounding_boxes, detections.boxes_xyxy).max(1)
            for row, label in enumerate(self.labels):
                if overlap[row] > self.iou_threshold and int(detections.labels[best[row]]) == label:
                    matched.append((row, int(best[row])))
        if not matched and not torch.is_grad_enabled():
            return torch.zeros(())  # a perturbed image may lose the box
        if not matched:
            raise ValueError("no detection overlaps the given boxes with their labels; lower iou_threshold")
        targets = [
            BoxTarget(tuple(detections.boxes_xyxy[b].tolist()), int(detections.labels[b]), detections.source[b])
            for _, b in matched
        ]
        candidates = output.candidates(targets)
        boxes = self.bounding_boxes[[row for row, _ in matched]].to(candidates.boxes_xyxy)
        overlap = box_iou(boxes, candidates.boxes_xyxy).diagonal()
        scores = torch.stack([target.value(candidates, row) for row, target in enumerate(targets)])
        return (overlap + scores).sum()
