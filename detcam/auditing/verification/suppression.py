"""Proposals of what prevents the detection of a missed object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torchvision.ops import box_iou

from detcam.auditing.error_targets import detection_target, failure_stage, object_box, rival_boxes
from detcam.auditing.errors import DetectionError
from detcam.auditing.verification.appearance import AppearanceCriterion
from detcam.auditing.verification.proposals import Proposal
from detcam.data.ground_truth import GroundTruth
from detcam.outputs import DetectorOutput
from detcam.targets import BoxTarget

MIN_SUPPRESSION_IOU = 0.3
"""Minimum IoU of a candidate with the detection that suppresses it."""


@dataclass(frozen=True)
class MissedObject:
    """A missed object in the output for the unperturbed image.

    Attributes:
        stage: the stage of the detector that loses it, as in `failure_stage`.
        score: score of its class of the best candidate there, in [0, 1].
        criterion: decides whether it is found in a perturbed image.
        criterion_score: its score by the criterion, in [0, 1].
    """

    stage: str
    score: float
    criterion: AppearanceCriterion
    criterion_score: float


def find_missed(
    errors: Sequence[DetectionError],
    output: DetectorOutput,
    ground_truth: GroundTruth,
    score_threshold: float,
    iou_threshold: float,
) -> dict[int, MissedObject]:
    """Find the stages that lose the missed objects among the errors of an image.

    Args:
        errors: the errors.
        output: output for the unperturbed image.
        ground_truth: the objects.
        score_threshold: minimum score of a detection, in [0, 1].
        iou_threshold: minimum IoU of a detection with its object.

    Returns:
        Missed objects by index of the error.
    """
    missed = {}
    for number, error in enumerate(errors):
        if error.detection_index is None and error.ground_truth_index is not None:
            stage, score = failure_stage(error, output, ground_truth, score_threshold, iou_threshold)
            criterion = AppearanceCriterion.from_output(
                output,
                object_box(ground_truth, error.ground_truth_index),
                error.label,
                score_threshold,
                iou_threshold,
                rivals=rival_boxes(error, ground_truth),
                is_suppressed=stage == "suppressed",
            )
            missed[number] = MissedObject(stage, score, criterion, criterion.evaluate(output)[0])
    return missed


def suppressing_detection(output: DetectorOutput, criterion: AppearanceCriterion) -> BoxTarget | None:
    """The detection that suppresses the best candidate of a missed object.

    Args:
        output: output for the unperturbed image.
        criterion: the object.

    Returns:
        The detection with the highest IoU with the candidate, pinned to its source; None if no detection overlaps it by
        at least `MIN_SUPPRESSION_IOU`, so that the maximum number of detections removes it.
    """
    boxes, scores = (part.detach().float().cpu() for part in output.raw_candidates(criterion.label))
    candidates = criterion.reaches(boxes)
    found = output.detections()
    if not len(found) or not bool(candidates.any()):
        return None
    best = boxes[int(scores[:, criterion.label].where(candidates, scores.new_tensor(-1.0)).argmax())]
    iou = box_iou(best[None], found.boxes_xyxy.float())[0]
    nearest = int(iou.argmax())
    return detection_target(found, nearest) if float(iou[nearest]) >= MIN_SUPPRESSION_IOU else None


def suppressor_proposals(proposals: Sequence[Proposal], box: Tensor) -> list[Proposal]:
    """Proposals of what a suppressing detection rests on: its evidence, and the content of its box.

    Args:
        proposals: maps of its evidence, the most promising first; may be empty.
        box: (h, w) bool, its box.
    """
    content = box.float()
    if proposals:
        content = content * (0.1 + proposals[0].heatmap / proposals[0].heatmap.amax().clamp(min=1e-12))
    named = [replace(each, name=f"suppressing detection: {each.name}") for each in proposals[:2]]
    return [*named[:1], Proposal("suppressing detection: its box", content), *named[1:]]
