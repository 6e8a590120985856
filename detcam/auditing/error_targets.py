"""The question that each type of error asks, as targets for a heatmap method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torchvision.ops import box_iou

from detcam.adapters.base import Target
from detcam.auditing.errors import DetectionError
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, class_name
from detcam.outputs import DetectorOutput
from detcam.targets import BoxTarget, EdgesTarget


@dataclass(frozen=True)
class ErrorQuestion:
    """What is asked about one error.

    Attributes:
        targets: what the heatmap method explains; several maps are joined, the first leads.
        words: the question in words.
        tracked: the detection whose fate tells whether an explanation is right; None for a missed object.
        beside: a target whose map is compared with the first, for a duplicate: the winner.
    """

    targets: tuple[Target, ...]
    words: str
    tracked: BoxTarget | None
    beside: BoxTarget | None = None


def detection_target(found: Detections, index: int) -> BoxTarget:
    """A detection, pinned to what made it."""
    box = found.boxes_xyxy[index].tolist()
    return BoxTarget(tuple(box), int(found.labels[index]), found.source[index])


def true_box(truth: GroundTruth, index: int) -> tuple[float, float, float, float]:
    """A true object's box, pixels of the image."""
    x1, y1, x2, y2 = truth.boxes_xyxy[index].tolist()
    return x1, y1, x2, y2


def missed(error: DetectionError) -> int:
    """The index of the true object that an error is about.

    Raises:
        ValueError: it is about none.
    """
    if error.truth is None:
        raise ValueError(f"expected an error about a true object; got {error}")
    return error.truth


def question_of(
    error: DetectionError, found: Detections, truth: GroundTruth, names: Mapping[int, str]
) -> ErrorQuestion:
    """What to ask about an error.

    Classification: why this class rather than the true one. Localization: what pushes the edges off the object. Both:
    the two together. Duplicate: whether it rests on what the winner rests on. Background: what the score rests on.
    Missed: what speaks for the object where a candidate came nearest.
    """
    name = class_name(names, error.label)
    if error.detection is None:
        target = BoxTarget(true_box(truth, missed(error)), error.label)
        return ErrorQuestion((target,), f"what speaks for the {name} that was missed?", None)
    target = detection_target(found, error.detection)
    if error.truth is None or error.type == "background":
        return ErrorQuestion((target,), f"why a {name} here?", target)
    other = int(truth.labels[error.truth])
    rather = BoxTarget(target.box_xyxy, target.label, target.source, against=other) if other != target.label else target
    why = f"why {name} rather than {class_name(names, other)}?"
    if error.type == "classification":
        return ErrorQuestion((rather,), why, target)
    edges = EdgesTarget.off(target, true_box(truth, error.truth))
    pushed = f"what pushes its {edges.words} off the {class_name(names, other)}?"
    if error.type == "localization":
        return ErrorQuestion((edges,), pushed, target)
    if error.type == "both":
        return ErrorQuestion((rather, edges), f"{why} And {pushed}", target)
    winner = None if error.winner is None else detection_target(found, error.winner)
    return ErrorQuestion((target,), f"does this second {name} rest on what the first rests on?", target, winner)


def stage_of(
    error: DetectionError, output: DetectorOutput, truth: GroundTruth, threshold: float, iou_threshold: float = 0.5
) -> tuple[str, float]:
    """Where a missed object died in the detector, and the score of its class there.

    Args:
        error: the missed object.
        output: what the detector says of the image.
        truth: what is there.
        threshold: least score of a detection.
        iou_threshold: least overlap of a candidate that was after it.

    Returns:
        ``"no candidate"`` (no proposal, anchor or query overlaps it so far), ``"another class"`` (the best candidate
        says another class above the threshold), ``"below threshold"``, or ``"suppressed"`` (a good candidate was
        there, and another detection took its place); and the class score, in [0, 1], of the best candidate.
    """
    boxes, scores = (part.float().cpu() for part in output.raw_candidates())
    overlap = box_iou(torch.tensor([true_box(truth, missed(error))]), boxes)[0]
    near = overlap >= iou_threshold
    if not bool(near.any()):
        best = float(scores[int(overlap.argmax()), error.label]) if len(boxes) else 0.0
        return "no candidate", best
    own = float(scores[near, error.label].max())
    if own >= threshold:
        return "suppressed", own
    others = torch.ones(scores.shape[1], dtype=torch.bool)
    others[[error.label] if output.background is None else [error.label, output.background]] = False
    rival = scores[near][:, others]
    return ("another class" if rival.numel() and float(rival.max()) >= threshold else "below threshold"), own
