"""One image's model output, as targets see it: a detector's candidates or a segmenter's class maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.detections import Detections, Source
from detcam.geometry import Geometry

if TYPE_CHECKING:
    from detcam.targets.box import BoxTarget, DetectionTarget
    from detcam.targets.mask import InstanceMaskTarget

Quantity = Literal["score", "logit", "objectness", "x1", "y1", "x2", "y2", "width", "height"]


@dataclass(frozen=True)
class Candidates:
    """What a detector's head says at K places, differentiable; row k belongs to the k-th target asked for.

    Attributes:
        boxes_xyxy: (K, 4) predicted boxes of the targets' classes, original image pixels, not clipped.
        class_scores: (K, C), in [0, 1], exactly what the detector reports; column = the model's class index.
        class_logits: (K, C) before the sigmoid or softmax.
        objectness: (K,) in [0, 1], or None where the family has none.
    """

    boxes_xyxy: Tensor
    class_scores: Tensor
    class_logits: Tensor
    objectness: Tensor | None = None


class DetectorOutput(ABC):
    """One image's output of a detector, from which targets read their scalars.

    Attributes:
        geometry: how the image was placed on the network's input.
        classes: number of class indices, background included where the family has one.
    """

    geometry: Geometry
    classes: int

    @abstractmethod
    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        """What the head says at each target's source; a target without source is asked where it fits best."""

    @abstractmethod
    def detections(self) -> Detections:
        """The detector's own post-processed result for this image, detached, each detection with its source."""

    def mask_scores(self, targets: Sequence[InstanceMaskTarget]) -> list[Tensor]:
        """Mean mask logit of each instance over the pixels its mask covers."""
        raise ValueError("this detector predicts no masks; explain a box with BoxTarget instead")

    def score(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        """One differentiable scalar per target; all targets share the head's work."""
        scores: list[Tensor | None] = [None] * len(targets)
        boxes = [index for index, target in enumerate(targets) if target.part == "box"]
        masks = [index for index, target in enumerate(targets) if target.part == "mask"]
        if boxes:
            for index, score in zip(boxes, self.box_scores([targets[i] for i in boxes]), strict=True):  # type: ignore[misc]
                scores[index] = score
        if masks:
            for index, score in zip(masks, self.mask_scores([targets[i] for i in masks]), strict=True):  # type: ignore[misc]
                scores[index] = score
        return scores  # type: ignore[return-value]

    def box_scores(self, targets: Sequence[BoxTarget]) -> list[Tensor]:
        """One differentiable scalar per box target."""
        candidates = self.candidates(targets)
        return [target.of(candidates, row) for row, target in enumerate(targets)]


class SegmenterOutput:
    """One image's output of a semantic segmentation network.

    Indexing gives the raw class maps, so that a plain function of (C, h, w) logits works as a target too.

    Args:
        logits: (C, h, w), before the sigmoid or softmax, over the whole input canvas.
        geometry: how the image was placed on the network's input.
        binary: one channel that holds the logit of the foreground; class 1 is that logit and class 0 its negative.
        multilabel: classes are independent (sigmoid) rather than exclusive (softmax).
    """

    def __init__(self, logits: Tensor, geometry: Geometry, *, binary: bool = False, multilabel: bool = False) -> None:
        self.logits = logits
        self.geometry = geometry
        self.binary = binary
        self.multilabel = multilabel

    @property
    def classes(self) -> int:
        """Number of class indices."""
        return 2 if self.binary else len(self.logits)

    @property
    def shape(self) -> torch.Size:
        """(C, h, w) of the raw class maps."""
        return self.logits.shape

    def __getitem__(self, index: Any) -> Tensor:
        return self.logits[index]

    def class_map(self, label: int) -> Tensor:
        """The (h, w) logits of a class."""
        if self.binary:
            return self.logits[0] if label == 1 else -self.logits[0]
        return self.logits[label]

    def cells(self, region: Tensor | None) -> Tensor:
        """How much of each output cell a region of the picture covers: (h, w) in [0, 1], 0 on padding."""
        size = self.logits.shape[-2:]
        if region is None:
            region = torch.ones(self.geometry.image_size_hw, dtype=torch.bool)
        return self.geometry.from_image(region[None].to(self.logits), tuple(size))[0]  # type: ignore[arg-type]


def best_fit(
    boxes_xyxy: Tensor, class_scores: Tensor, wanted_xyxy: Tensor, *, mask: Tensor | None = None
) -> int:
    """The candidate that fits a box which nobody detected: the greatest IoU times class score.

    Args:
        boxes_xyxy: (N, 4) candidates, same frame as the wanted box.
        class_scores: (N,) score of the wanted class at each candidate.
        wanted_xyxy: (4,).
        mask: (N,) bool, candidates allowed.

    Returns:
        Its index; where no candidate overlaps the box at all, the one whose centre is nearest.
    """
    boxes = boxes_xyxy.detach().float()
    wanted = wanted_xyxy.detach().float()[None]
    fit = box_iou(wanted, boxes)[0] * class_scores.detach().float()
    if mask is not None:
        fit = fit.masked_fill(~mask, -1)
    if float(fit.max()) > 0:
        return int(fit.argmax())
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = (centers - (wanted[:, :2] + wanted[:, 2:]) / 2).norm(dim=1)
    if mask is not None:
        distance = distance.masked_fill(~mask, float("inf"))
    return int(distance.argmin())


def nearest_source(sources_xy: Tensor, source: Source) -> int:
    """Index of the cell or anchor centre (N, 2), image pixels, nearest to a source's centre."""
    if source.center_xy is None:
        raise ValueError(f"source {source} has no centre; it comes from another kind of detector")
    wanted = sources_xy.new_tensor(source.center_xy)
    return int((sources_xy - wanted).square().sum(1).argmin())
