"""Scores of changed images, for any adapter and target.

Images are changed at the network's input, inside the region that the image covers: padding stays as it is, and shares
of pixels refer to the image alone. Heatmaps, which are in image pixels, are averaged to the resolution of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter, Batch, Target
from detcam.inputs import Request, labeled_targets
from detcam.outputs import DetectionTarget, DetectorOutput, is_multilabel
from detcam.perturbation.base import ImageArea, ImageScorer, detached_score, pin_targets, select_image
from detcam.results import value_of
from detcam.segmenter_output import SegmenterOutput
from detcam.targets import ClassifierOutputTarget, ClassTarget, MaskTarget
from detcam.trace import guarded
from detcam.utils.batching import batch_slices, check_count
from detcam.utils.precision import work_dtype

Protocol = Literal["pinned", "matched", "odam", "vps", "drise"]
"""How a box is scored in a changed image; other targets support ``"pinned"`` only.

``"pinned"``: the value of the target at the part of the network that produced the box. ``"matched"``: the class score
of the raw candidate with the largest product of IoU and class score. ``"vps"``: that product. ``"odam"``: the highest
score among detections of the same class with IoU above 0.5, divided by the same quantity in the unchanged image.
``"drise"``: the largest product of IoU and cosine similarity of class scores over all detections. All but the first
are 0 where nothing matches.
"""

MIN_ODAM_IOU = 0.5


def check_scoring(protocol: str, batch_size: int | None) -> None:
    """Check the settings with which changed images are scored.

    Raises:
        ValueError: unknown protocol, or a batch size that is no int of at least 1.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"expected protocol to be one of {', '.join(get_args(Protocol))}; got {protocol!r}")
    if batch_size is not None:
        check_count(batch_size)


@dataclass
class ScoredImage:
    """One image at the network's input with the heatmaps of its targets; scores changed versions of the image.

    Attributes:
        heatmaps: (n, h, w) finite heatmaps, averaged to the image's region at the network's input.
        image: (1, C, h, w), the image's region at the network's input, on the model's device.
        original: (n,) float64, score of each target in the unchanged image, by the protocol.
        scorer: runs the model on versions of the image.
        area: the image's region at the network's input.
        matcher: finds the boxes in changed images; None for the protocol ``"pinned"``.
    """

    heatmaps: Tensor
    image: Tensor
    original: Tensor
    scorer: ImageScorer
    area: ImageArea
    matcher: BoxMatcher | None

    @property
    def matched(self) -> list[int]:
        """Indices of the heatmaps whose target the protocol finds in the unchanged image."""
        is_matched = (self.original > 0).tolist()
        return [i for i in range(len(self.heatmaps)) if self.matcher is None or is_matched[i]]

    @property
    def ordered(self) -> list[int]:
        """Indices of the matched heatmaps that rank the pixels, that is, are not constant."""
        return [i for i in self.matched if bool(self.heatmaps[i].min() < self.heatmaps[i].max())]

    def scores(self, indices: Sequence[int], change: Callable[[slice], Tensor]) -> Tensor:
        """Score K changed images in batches, each for one target.

        Args:
            indices: K indices of targets, the target for which each changed image is scored.
            change: returns changed images (k, C, h, w) for a slice of the K.

        Returns:
            (K,) float64 scores, on the CPU.

        Raises:
            RuntimeError: a score is NaN or infinite.
        """
        scores = [torch.zeros(0, dtype=torch.float64)]
        with guarded(self.scorer.adapter.model, gradients=False):
            for part in batch_slices(len(indices), self.scorer.images_per_pass):
                scores.append(self._score(list(indices[part]), change(part)))
        return torch.cat(scores)

    def inputs(self, images: Tensor) -> Tensor:
        """Network inputs (k, C, H, W) with changed images (k, C, h, w) in the image's region."""
        whole = self.scorer.batch.inputs
        if tuple(images.shape[-2:]) == tuple(whole.shape[-2:]):
            return images.to(whole.dtype)
        pasted = whole.repeat(len(images), 1, 1, 1)
        pasted[:, :, self.area.rows, self.area.columns] = images.to(whole.dtype)
        return pasted

    def _score(self, indices: list[int], images: Tensor) -> Tensor:
        def read(raw: Any, batch: Batch) -> Tensor:
            outputs = self.scorer.adapter.outputs(raw, batch)
            if self.matcher is not None:
                rows = [[self.matcher.score(output, i)] for output, i in zip(outputs, indices, strict=True)]
            else:
                targets = [[self.scorer.targets[i]] for i in indices]
                rows = self.scorer.adapter.score(outputs, targets)
            return torch.stack([detached_score(row[0]).cpu().double() for row in rows])

        scores = self.scorer.score(self.inputs(images), read)
        if not torch.isfinite(scores).all():
            raise RuntimeError("a changed image scores NaN or infinity; check the model, or use float32")
        return scores


class BoxMatcher:
    """Scores the boxes of one image in changed versions of it.

    Args:
        protocol: any but ``"pinned"``.
        output: output of the unchanged image.
        targets: boxes, at least one.

    Raises:
        TypeError: a target is no box, or the model is no detector.
    """

    def __init__(self, protocol: Protocol, output: object, targets: Sequence[Target]) -> None:
        candidates: Sequence[Any] = targets
        boxes: list[DetectionTarget] = [target for target in candidates if isinstance(target, DetectionTarget)]
        if not isinstance(output, DetectorOutput) or len(boxes) < len(targets):
            other = [target for target in targets if not isinstance(target, DetectionTarget)]
            got = type(other[0]).__name__ if other else type(output).__name__
            raise TypeError(f"protocol {protocol!r} compares boxes of a detector; got {got}: use protocol='pinned'")
        self.protocol = protocol
        self.boxes = torch.tensor([target.box_xyxy for target in boxes])
        self.labels = [target.label for target in boxes]
        self.class_scores = output.candidates(boxes).class_scores.float().cpu()
        self.original = [1.0] * len(boxes)
        if protocol == "odam":
            self.original = [float(self.score(output, i)) for i in range(len(boxes))]

    def score(self, output: DetectorOutput, index: int) -> Tensor:
        """The score of one box in the output of a changed image."""
        box, label = self.boxes[index : index + 1], self.labels[index]
        if self.protocol in ("matched", "vps"):
            boxes, class_scores = (part.float().cpu() for part in output.raw_candidates(label))
            products = box_iou(box, boxes)[0] * class_scores[:, label]
            if not len(products) or float(products.max()) <= 0:
                return torch.zeros(())
            best = int(products.argmax())
            return products[best] if self.protocol == "vps" else class_scores[best, label]
        if self.protocol == "drise":
            boxes, class_scores = (part.float().cpu() for part in output.detected())
            similarity = torch.cosine_similarity(self.class_scores[index : index + 1], class_scores, dim=1)
            return (box_iou(box, boxes)[0] * similarity).max() if len(boxes) else torch.zeros(())
        detections = output.detections()
        overlaps = box_iou(box, detections.boxes_xyxy.float())[0] > MIN_ODAM_IOU
        matches = (detections.labels == label) & overlaps
        best_score = float(detections.scores[matches].max()) if bool(matches.any()) else 0.0
        original = self.original[index]
        return torch.tensor(best_score / original if original > 0 else float(best_score > 0))


def score_images(
    adapter: Adapter,
    request: Request,
    group: Sequence[int],
    heatmaps: Sequence[Tensor],
    rows: Sequence[list[int]],
    protocol: Protocol,
    batch_size: int,
    probability: bool,
) -> list[ScoredImage | None]:
    """Run a group of images once, unchanged, and prepare the scoring of changed versions.

    Args:
        adapter: the adapter of the model.
        request: images and targets.
        group: indices of the images that share the forward pass.
        heatmaps: per image of the group, (N_i, H_i, W_i).
        rows: per image of the group, the positions of the heatmaps that are evaluated.
        protocol: how boxes are scored.
        batch_size: changed images per forward pass.
        probability: whether class targets are read as `as_probability` reads them.

    Returns:
        One `ScoredImage` per image of the group, None for an image without rows.

    Raises:
        ValueError: unknown protocol, or the number of heatmaps differs from that of the model's predictions.
        TypeError: a protocol for boxes with other targets.
    """
    check_scoring(protocol, batch_size)
    adapter = adapter.without_layers()
    images: list[ScoredImage | None] = []
    with guarded(adapter.model, gradients=False):
        batch = request.batch(adapter, group)
        outputs = adapter.outputs(adapter.forward(batch), batch)
        targets_of_group = request.targets_for(group)
        if targets_of_group is None:
            _, targets_of_group = request.predictions(adapter, outputs, batch)
        targets_of_group = labeled_targets(targets_of_group, outputs)
        for row, index in enumerate(group):
            maps, targets = heatmaps[row], targets_of_group[row]
            if len(maps) != len(targets):
                raise ValueError(
                    f"image {index}: expected a heatmap for each of the model's {len(targets)} predictions; got "
                    f"{len(maps)}. Pass the targets that the heatmaps explain as targets="
                )
            selected = [as_probability(targets[i]) if probability else targets[i] for i in rows[row]]
            image = (
                _scored_image(
                    adapter, select_image(batch, row), outputs[row], selected, maps[rows[row]], protocol, batch_size
                )
                if selected
                else None
            )
            images.append(image)
    return images


def _scored_image(
    adapter: Adapter,
    batch: Batch,
    output: Any,
    targets: Sequence[Target],
    heatmaps: Tensor,
    protocol: Protocol,
    batch_size: int,
) -> ScoredImage:
    scalars = adapter.score([output], [targets])[0]
    original = torch.tensor([value_of(scalar) for scalar in scalars], dtype=torch.float64)
    scorer = ImageScorer(adapter, batch, output, pin_targets(output, targets), original, (), (), batch_size, False)
    area = ImageArea(scorer)
    size = (batch.inputs.shape[-2], batch.inputs.shape[-1])
    if tuple(heatmaps.shape[-2:]) != size or area.size_hw != size:
        heatmaps = scorer.geometry.from_image(heatmaps, size)[:, area.rows, area.columns]
    matcher = None
    if protocol != "pinned":
        matcher = BoxMatcher(protocol, output, scorer.targets)
        original = torch.stack([matcher.score(output, i).double() for i in range(len(targets))])
    image = batch.inputs[:, :, area.rows, area.columns]
    return ScoredImage(heatmaps, image, original, scorer, area, matcher)


class ClassProbability(ClassTarget):
    """Probability of a class: softmax, or sigmoid for a single logit and for independent classes."""

    def __call__(self, model_output: Tensor) -> Tensor:
        value = super().__call__(model_output)
        independent = model_output.numel() == 1 or is_multilabel(model_output)
        return value.sigmoid() if independent else (value - torch.logsumexp(model_output, -1)).exp()


class MaskProbability(MaskTarget):
    """Mean probability of a class over a region: softmax, or sigmoid for independent classes."""

    def __call__(self, output: SegmenterOutput) -> Tensor:
        super().__call__(output)  # validates label and mask
        independent = output.binary or output.multilabel
        logits = output.class_map(self.label) if independent else output.logits
        logits = logits.to(work_dtype(logits))
        probabilities = logits.sigmoid() if independent else logits.softmax(0)[self.label]
        weights = output.cells(self.mask)
        return (probabilities * weights).sum() / weights.sum()


def as_probability(target: Target) -> Target:
    """The probability target of a logit target, for a class or a class over a region; other targets are unchanged."""
    if isinstance(target, ClassifierOutputTarget) and type(target) in (ClassTarget, ClassifierOutputTarget):
        return ClassProbability(target.category)
    if type(target) is MaskTarget and target.against is None:
        return MaskProbability(target.label, target.mask)
    return target
