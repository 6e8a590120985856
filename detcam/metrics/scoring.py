"""Scores of changed images, for any adapter and target.

Changes are made to the network's input, on the place where the image lies: padding is never changed, and shares of
pixels count the image's alone. Heatmaps, which are in the image's own pixels, are averaged into the input's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Batch, Target
from detcam.cam import value_of
from detcam.metrics.base import MetricInput
from detcam.outputs import DetectionTarget, DetectorOutput, SegmenterOutput, work_dtype
from detcam.perturbation.base import (
    ImageArea,
    ImageScorer,
    default_batch_size,
    detached_score,
    pin_targets,
    select_image,
)
from detcam.smoothing import View
from detcam.targets import ClassifierOutputTarget, ClassTarget, MaskTarget
from detcam.trace import guarded
from detcam.utils.batching import pieces

Protocol = Literal["pinned", "matched", "odam", "vps", "drise"]
"""How a box is scored in a changed image; targets that are no boxes know only ``"pinned"``.

``"pinned"``: the target's own value, at the part of the network that produced the box. ``"matched"``: the class score
of the candidate, among all raw ones, that fits best (greatest IoU times class score). ``"vps"``: that product itself.
``"odam"``: the best score among detections of the same class with IoU above 0.5, relative to the same in the unchanged
image. ``"drise"``: the greatest IoU times cosine of class vectors over detections. All but the first are 0 where
nothing matches.
"""


def check_asking(protocol: str, batch_size: int | None) -> None:
    """Check how targets are to be scored, before anything is.

    Raises:
        ValueError: an unknown protocol, or a batch size that is none.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"expected protocol as one of {', '.join(get_args(Protocol))}; got {protocol!r}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"expected batch_size of at least 1, or None; got {batch_size!r}")


@dataclass
class ScoredImage:
    """One image with its targets, their heatmaps, and the means to score it again.

    Attributes:
        index: of the image.
        heatmaps: (N, h, w) on the image's place on the network's input; NaN is possible.
        image: (1, C, h, w), the image on the network's input.
        original: (N,) float64, each target's score in the unchanged image, by the protocol.
        scorer: the image for the model.
        canvas: where the image lies on the input.
        protocol: how boxes are scored.
        wanted: what the protocol compares with, per target.
    """

    index: int
    heatmaps: Tensor
    image: Tensor
    original: Tensor
    scorer: ImageScorer
    canvas: ImageArea
    protocol: Protocol
    wanted: Wanted | None

    @property
    def finite(self) -> list[int]:
        """The heatmaps without NaN, of targets that the protocol finds in the unchanged image."""
        lost = self.protocol != "pinned"
        found = [not lost or value > 0 for value in self.original.tolist()]
        return [i for i, each in enumerate(self.heatmaps) if found[i] and bool(each.isfinite().all())]

    @property
    def ordered(self) -> list[int]:
        """Those of `finite` whose pixels have an order: not constant."""
        return [i for i in self.finite if bool(self.heatmaps[i].min() < self.heatmaps[i].max())]

    def scores(self, which: Sequence[int], change: Callable[[slice], Tensor]) -> Tensor:
        """Scores (K,) float64 of changed images, each for one target; `ImageScorer.images_per_pass` of them in a pass.

        Args:
            which: K target numbers, the one for which each changed image is scored.
            change: from some of the K, by number, to images (k, C, h, w) on the image's place on the input.
        """
        found = [
            self._score(list(which[part]), change(part)) for part in pieces(len(which), self.scorer.images_per_pass)
        ]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def inputs(self, images: Tensor) -> Tensor:
        """The network's input (k, C, H, W) with images (k, C, h, w) in the image's place."""
        whole = self.scorer.batch.inputs
        if tuple(images.shape[-2:]) == tuple(whole.shape[-2:]):
            return images.to(whole.dtype)
        pasted = whole.repeat(len(images), 1, 1, 1)
        pasted[:, :, self.canvas.rows, self.canvas.columns] = images.to(whole.dtype)
        return pasted

    def _score(self, which: list[int], images: Tensor) -> Tensor:
        def read(raw: Any, batch: Batch) -> Tensor:
            outputs = self.scorer.adapter.outputs(raw, batch)
            if self.wanted is not None:
                rows = [[self.wanted.score(output, i)] for output, i in zip(outputs, which, strict=True)]
            else:
                targets = [[self.scorer.targets[i]] for i in which]
                rows = self.scorer.adapter.score(outputs, targets)
            return torch.stack([detached_score(row[0]).double().cpu() for row in rows])

        scores = self.scorer.score(self.inputs(images), read)
        if not torch.isfinite(scores).all():
            raise RuntimeError("a changed image scores NaN or infinity; check the model, or use float32")
        return scores


class Wanted:
    """What one image's boxes are compared with in changed images.

    Args:
        protocol: any but ``"pinned"``.
        output: of the unchanged image.
        targets: boxes, at least one.
    """

    def __init__(self, protocol: Protocol, output: Any, targets: Sequence[Target]) -> None:
        asked: Sequence[Any] = targets
        boxes: list[DetectionTarget] = [target for target in asked if isinstance(target, DetectionTarget)]
        if not isinstance(output, DetectorOutput) or len(boxes) < len(targets):
            other = [target for target in targets if not isinstance(target, DetectionTarget)]
            got = type(other[0]).__name__ if other else type(output).__name__
            raise TypeError(f"protocol {protocol!r} compares boxes of a detector; got {got}: use protocol='pinned'")
        self.protocol = protocol
        self.boxes = torch.tensor([target.box_xyxy for target in boxes])
        self.labels = [target.label for target in boxes]
        self.classes = output.candidates(boxes).class_scores.float().cpu()
        self.original = [1.0] * len(boxes)
        if protocol == "odam":
            self.original = [float(self.score(output, i)) for i in range(len(boxes))]

    def score(self, output: DetectorOutput, index: int) -> Tensor:
        """One box's score in a changed image."""
        box, label = self.boxes[index : index + 1], self.labels[index]
        if self.protocol in ("matched", "vps"):
            boxes, classes = (part.float().cpu() for part in output.raw_candidates(label))
            fit = box_iou(box, boxes)[0] * classes[:, label]
            if not len(fit) or float(fit.max()) <= 0:
                return torch.zeros(())
            best = int(fit.argmax())
            return fit[best] if self.protocol == "vps" else classes[best, label]
        if self.protocol == "drise":
            boxes, classes = (part.float().cpu() for part in output.detected())
            alike = torch.cosine_similarity(self.classes[index : index + 1], classes, dim=1)
            return (box_iou(box, boxes)[0] * alike).max() if len(boxes) else torch.zeros(())
        found = output.detections()
        same = (found.labels == label) & (box_iou(box, found.boxes_xyxy.float())[0] > 0.5)
        best_score = float(found.scores[same].max()) if bool(same.any()) else 0.0
        original = self.original[index]
        return torch.tensor(best_score / original if original > 0 else float(best_score > 0))


def examine(
    question: MetricInput,
    measure: Callable[[ScoredImage], Tensor],
    *,
    protocol: Protocol = "pinned",
    batch_size: int | None = None,
    probability: bool = False,
) -> list[Any]:
    """Ask something about each image that has heatmaps; the model is guarded and autograd is off meanwhile.

    Args:
        question: what is asked, detached_score.
        measure: called with each image's case; what it returns is the answer for that image.
        protocol: how boxes are scored.
        batch_size: changed images per forward pass; None takes what suits the device.
        probability: whether class targets are read as `as_probability` reads them.

    Returns:
        per image, what `measure` returned; None for an image without heatmaps.

    Raises:
        ValueError: an unknown protocol, or another number of heatmaps than of findings.
        TypeError: a protocol for boxes, and targets that are none.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"expected protocol to be one of {', '.join(get_args(Protocol))}; got {protocol!r}")
    adapter, request = question.adapter.without_layers(), question.request
    count = batch_size or default_batch_size(adapter.device)
    answers: list[Any] = [None] * len(request)
    for group in request.groups(adapter, count):
        with guarded(adapter.model, gradients=False):
            batch = request.batch(adapter, group, View())
            outputs = adapter.outputs(adapter.forward(batch), batch)
            asked = request.targets_for(group)
            if asked is None:
                _, asked = request.predictions(adapter, outputs, batch)
            for row, index in enumerate(group):
                maps, targets = question.heatmaps[index], asked[row]
                if len(maps) != len(targets):
                    raise ValueError(
                        f"image {index}: expected a heatmap for each of the model's {len(targets)} findings; got "
                        f"{len(maps)}. Say with targets= what the heatmaps explain"
                    )
                if targets:
                    targets = [as_probability(target) for target in targets] if probability else targets
                    own = select_image(batch, row)
                    answers[index] = measure(_case(question, index, own, outputs[row], targets, protocol, count))
    return answers


def _case(
    question: MetricInput,
    index: int,
    batch: Batch,
    output: Any,
    targets: Sequence[Target],
    protocol: Protocol,
    batch_size: int,
) -> ScoredImage:
    adapter = question.adapter
    scalars = adapter.score([output], [targets])[0]
    original = torch.tensor([value_of(scalar) for scalar in scalars], dtype=torch.float64)
    scorer = ImageScorer(adapter, batch, output, pin_targets(output, targets), original, (), (), batch_size, False)
    canvas = ImageArea(scorer)
    geometry = scorer.geometry
    maps = question.heatmaps[index]
    size = (batch.inputs.shape[-2], batch.inputs.shape[-1])
    if tuple(maps.shape[-2:]) != size or canvas.size_hw != size:
        maps = geometry.from_image(maps, size)[:, canvas.rows, canvas.columns]
    wanted = None
    if protocol != "pinned":
        wanted = Wanted(protocol, output, scorer.targets)
        original = torch.stack([wanted.score(output, i).double() for i in range(len(targets))])
    image = batch.inputs[:, :, canvas.rows, canvas.columns]
    return ScoredImage(index, maps, image, original, scorer, canvas, protocol, wanted)


class ClassProbability(ClassTarget):
    """A class's probability: softmax; the sigmoid for a head with a single logit."""

    def __call__(self, model_output: Tensor) -> Tensor:
        value = super().__call__(model_output)
        single_logit = model_output.numel() == 1
        return value.sigmoid() if single_logit else (value - torch.logsumexp(model_output, -1)).exp()


class MaskProbability(MaskTarget):
    """A class's mean probability over a region: softmax, or the sigmoid where classes are independent."""

    def __call__(self, output: SegmenterOutput) -> Tensor:
        super().__call__(output)  # says what is wrong
        independent = output.binary or output.multilabel
        logits = output.class_map(self.label) if independent else output.logits
        logits = logits.to(work_dtype(logits))
        likely = logits.sigmoid() if independent else logits.softmax(0)[self.label]
        weights = output.cells(self.mask)
        return (likely * weights).sum() / weights.sum()


def as_probability(target: Target) -> Target:
    """A target for a logit, of a class or of a class over a region, as one for the probability; others as they are."""
    asked: Any = target
    if type(asked) in (ClassTarget, ClassifierOutputTarget):
        return ClassProbability(asked.category)
    if type(asked) is MaskTarget and asked.against is None:
        return MaskProbability(asked.label, asked.mask)
    return target


def collected(answers: Sequence[Any]) -> Tensor:
    """All images' values (N,) float64 in order, from what `examine` gave: per image (N_i,), or None for none."""
    rows = [answer.double().cpu() for answer in answers if answer is not None]
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.float64)
