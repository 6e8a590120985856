"""One image's model output, as targets see it: a detector's candidates or a segmenter's class maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.detections import Detections, Source, class_name
from detcam.geometry import Geometry

if TYPE_CHECKING:
    from detcam.targets.box import BoxTarget
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
        background: the class index of nothing being there, where the scores are a softmax that has one.
    """

    geometry: Geometry
    classes: int
    background: int | None = None

    @abstractmethod
    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        """What the head says at each target's source; a target without source is asked where it fits best."""

    @abstractmethod
    def detections(self) -> Detections:
        """The detector's own post-processed result for this image, detached, each detection with its source."""

    def source_of(self, target: DetectionTarget) -> Source | None:
        """What answers for a target, found anew where it has no source; None where the box itself is asked."""
        return target.source

    @torch.no_grad()
    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        """All that the head says about this image, before any of it is suppressed, detached.

        Args:
            label: where a head draws a box for every class, the class whose boxes are meant; None takes each
                candidate's best one. Other heads say the same for all.

        Returns:
            boxes (K, 4), original image pixels, clipped to the image, and their class scores (K, C).
        """
        return self.detected()

    @torch.no_grad()
    def detected(self) -> tuple[Tensor, Tensor]:
        """What the detector reports, with whole class vectors, detached.

        Returns:
            boxes (K, 4), original image pixels, clipped to the image, and their class scores (K, C).
        """
        found = self.detections()
        if not len(found):
            return torch.zeros(0, 4), torch.zeros(0, self.classes)
        places = zip(found.boxes_xyxy.tolist(), found.labels.tolist(), found.source, strict=True)
        candidates = self.candidates([DetectionTarget(tuple(box), label, source) for box, label, source in places])
        return self.geometry.clip(candidates.boxes_xyxy), candidates.class_scores

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
        """How much of each output cell's area a region of the image covers: (h, w) in [0, 1], 0 on padding."""
        height, width = self.logits.shape[-2:]
        if region is None:
            region = torch.ones(self.geometry.image_size_hw, dtype=torch.bool)
        region = region[None].to(self.logits.device, work_dtype(self.logits))
        return self.geometry.from_image(region, (height, width))[0] * self._share_on_image().to(region)

    def _share_on_image(self) -> Tensor:
        """(h, w) float64: how much of each output cell lies on the image rather than on padding."""
        shares = []
        for axis, cells in enumerate(self.logits.shape[-2:]):
            geometry, xy = self.geometry, 1 - axis
            cells_per_input = cells / geometry.input_size_hw[axis]
            start = geometry.offset_xy[xy] * cells_per_input
            stop = start + geometry.image_size_hw[axis] * geometry.scale_xy[xy] * cells_per_input
            first = torch.arange(cells, dtype=torch.float64)
            shares.append(((first + 1).clamp(max=stop) - first.clamp(min=start)).clamp(0, 1))
        return shares[0][:, None] * shares[1][None]

    def detections(self, names: Mapping[int, str], *, background: int | None = None) -> Detections:
        """The classes present in the image, detached, best first.

        Logits are resized to the image (bilinear); a pixel belongs to its greatest logit's class, or, for one
        channel and for independent classes, to each class whose logit is positive (sigmoid above 0.5).

        Args:
            names: class index to name.
            background: the class that is not reported.

        Returns:
            One entry per class: its pixels as mask, the mask's bounding box, and as score the mean probability
            (softmax or sigmoid) over the mask.
        """
        logits = self.logits.detach().to(work_dtype(self.logits))
        found = self._independent(logits) if self.binary or self.multilabel else self._exclusive(logits)
        kept = sorted((item for item in found if item[0] != background), key=lambda item: -item[1])
        size = self.geometry.image_size_hw
        masks = torch.stack([mask for _, _, mask in kept]) if kept else torch.zeros((0, *size), dtype=torch.bool)
        if self.binary and 1 not in names and 0 in names:  # the one name of a head with one channel
            names = {1: names[0]}
        return Detections(
            torch.tensor([mask_to_box(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([label for label, _, _ in kept], dtype=torch.int64),
            torch.tensor([score for _, score, _ in kept], dtype=torch.float32),
            size,
            (Source("region"),) * len(kept),
            masks=masks,
            names=names,
        )

    def _independent(self, logits: Tensor) -> list[tuple[int, float, Tensor]]:
        """Label, score and mask (H, W) of each class with a positive logit somewhere; one map at a time."""
        found = []
        for channel, cells in enumerate(logits):
            on_image = self.geometry.to_image(cells[None])[0]
            mask = on_image > 0
            if mask.any():
                score = float(on_image[mask].sigmoid().mean())
                found.append((channel + int(self.binary), score, mask.cpu()))
        return found

    def _exclusive(self, logits: Tensor) -> list[tuple[int, float, Tensor]]:
        """Label, score and mask (H, W) of each class that is the greatest somewhere.

        Classes pass one by one, so that memory holds a few maps of the image's size however many classes there are.
        """
        best = self.geometry.to_image(logits[:1])[0]
        total, labels = best.clone(), torch.zeros_like(best, dtype=torch.int64)
        for channel in range(1, len(logits)):
            on_image = self.geometry.to_image(logits[channel : channel + 1])[0]
            labels[on_image > best] = channel
            best = torch.maximum(best, on_image)
            total = torch.logaddexp(total, on_image)
        probability = (best - total).exp()
        return [
            (label, float(probability[labels == label].mean()), (labels == label).cpu())
            for label in labels.unique().tolist()
        ]


def work_dtype(tensor: Tensor) -> torch.dtype:
    """Half precision is widened, so that sums over pixels neither overflow nor vanish."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def mask_to_box(mask: Tensor) -> tuple[float, float, float, float]:
    """The bounding box, xyxy, half-open, of a mask (H, W) with at least one pixel."""
    rows, columns = (torch.nonzero(mask.any(axis))[:, 0].tolist() for axis in (1, 0))
    return float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0


def best_fit(boxes_xyxy: Tensor, class_scores: Tensor, wanted_xyxy: Tensor, *, mask: Tensor | None = None) -> int:
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


@dataclass(frozen=True)
class DetectionTarget:
    """One box of one class: the common part of box and instance-mask targets.

    Attributes:
        box_xyxy: the box, pixels of the original image, half-open.
        label: the model's class index.
        source: what produced the box; None for a box that no detection produced (a missed object, a region drawn by
            hand). Then a two-stage head scores the box as a proposal, and a dense head is asked at the cell, anchor
            or query whose predicted box times class score fits best.
    """

    part: ClassVar[Literal["box", "mask"]] = "box"

    box_xyxy: tuple[float, float, float, float]
    label: int
    source: Source | None = None

    def __post_init__(self) -> None:
        box = tuple(float(value) for value in torch.as_tensor(self.box_xyxy).flatten().tolist())
        if len(box) != 4:
            raise ValueError(f"expected a box of 4 numbers x1, y1, x2, y2; got {self.box_xyxy!r}")
        if not all(torch.isfinite(torch.tensor(box))):
            raise ValueError(f"expected finite box coordinates; got {box}")
        # A detector may report a box without area (clipped at the border); pinned to its source it can be explained.
        flat = box[2] < box[0] or box[3] < box[1] if self.source else box[2] <= box[0] or box[3] <= box[1]
        if flat:
            raise ValueError(f"expected a box with x1 < x2 and y1 < y2 (xyxy, not xywh); got {box}")
        object.__setattr__(self, "box_xyxy", box)
        object.__setattr__(self, "label", int(self.label))

    def hflip(self, width: int) -> DetectionTarget:
        """The same target in the image mirrored left to right."""
        x1, y1, x2, y2 = self.box_xyxy
        source = self.source and self.source.hflip(width)
        return replace(self, box_xyxy=(width - x2, y1, width - x1, y2), source=source)

    def check(self, image_size_hw: tuple[int, int], names: Mapping[int, str], classes: int) -> None:
        """Raise ValueError where the box misses the image or the model has no such class."""
        height, width = image_size_hw
        x1, y1, x2, y2 = self.box_xyxy
        if self.source is None and (x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0):
            raise ValueError(f"box {self.box_xyxy} lies outside the image, which is {width} x {height} pixels")
        check_label(self.label, names, classes)

    def describe(self, names: Mapping[int, str]) -> str:
        """The target in words, for captions."""
        return class_name(names, self.label)


def check_label(label: int, names: Mapping[int, str], classes: int) -> None:
    """Raise ValueError where a class index is not one of the model's."""
    if not 0 <= label < classes:
        known = f", e.g. {', '.join(f'{i} {n}' for i, n in list(names.items())[:3])}" if names else ""
        raise ValueError(f"expected a class index from 0 to {classes - 1}{known}; got {label}")
