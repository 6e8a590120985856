"""Persistence of a detection: whether it remains in a perturbed image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.auditing.case import Box, Outcome
from detcam.outputs import DetectorOutput
from detcam.targets import BoxTarget

MIN_SAME_IOU = 0.5
"""Minimum IoU with the detection of candidates at the same location."""
IOU_MARGIN = 0.05
"""Margin above the IoU of a true positive from which the location of a localization error is correct."""
MIN_IOU_GAIN = 0.1
"""Minimum gain of a localization error's IoU with its object."""
MIN_NEAR_IOU = 0.1
"""Minimum IoU with the detection of candidates that it may have moved to."""


@dataclass(frozen=True)
class PersistenceCriterion:
    """Decides whether a detection persists in a perturbed image.

    A detection persists if its own raw candidate, or another candidate with an IoU of at least 0.5 (a neighboring
    anchor or proposal), keeps its class and score. For duplicates only the own candidate counts, because the
    neighboring candidates belong to other detections. A localization error persists until the candidate with the
    highest score there reaches its object.

    Attributes:
        target: the detection, pinned to its source.
        score_threshold: minimum score of a detection, in [0, 1].
        own_candidate_only: whether other candidates are ignored.
        neighbors: (K, 4) boxes of its class near it in the unperturbed image, with scores above the threshold.
        ground_truth_xyxy: for a localization error, the box of the object; else None.
        iou_threshold: minimum IoU with that object, in (0, 1], at which the location is correct.
        first_xyxy: box of the correct detection of an object with two detections, which has to remain; else None.
    """

    target: BoxTarget
    score_threshold: float
    own_candidate_only: bool
    neighbors: Tensor
    ground_truth_xyxy: Box | None = None
    iou_threshold: float = MIN_SAME_IOU
    first_xyxy: Box | None = None
    lost_reason: ClassVar[str] = "the correct detection of the object ends with it"

    @classmethod
    def from_output(
        cls,
        output: DetectorOutput,
        target: BoxTarget,
        score_threshold: float,
        *,
        own_candidate_only: bool = False,
        ground_truth_xyxy: Box | None = None,
        iou_threshold: float = MIN_SAME_IOU,
        first_xyxy: Box | None = None,
    ) -> PersistenceCriterion:
        """Create the criterion from the output for the unperturbed image.

        The location of a localization error is correct from `iou_threshold` plus `IOU_MARGIN` on, and at least
        `MIN_IOU_GAIN` above its IoU in the unperturbed image. A box that reaches the threshold already (when masks are
        compared, which do not) has to halve its distance to an IoU of 1.

        Args:
            output: output for the unperturbed image.
            target: the detection.
            score_threshold: minimum score of a detection, in [0, 1].
            own_candidate_only: whether other candidates are ignored.
            ground_truth_xyxy: for a localization error, the box of the object, pixels of the image.
            iou_threshold: minimum IoU of a true positive.
            first_xyxy: the box of another, correct detection of the object; None if there is none.
        """
        boxes, scores = (part.float().cpu() for part in output.raw_candidates())
        iou = _iou(target.box_xyxy, boxes)
        near = (iou >= MIN_NEAR_IOU) & (iou < MIN_SAME_IOU) & (scores[:, target.label] >= score_threshold)
        if ground_truth_xyxy is not None:
            current = float(_iou(target.box_xyxy, torch.tensor([ground_truth_xyxy], dtype=torch.float32))[0])
            reached = current >= iou_threshold
            iou_threshold = (1 + current) / 2 if reached else max(iou_threshold + IOU_MARGIN, current + MIN_IOU_GAIN)
        neighbors = boxes[near]
        criterion = cls(
            target, score_threshold, own_candidate_only, neighbors, ground_truth_xyxy, iou_threshold, first_xyxy
        )
        if ground_truth_xyxy is not None and criterion.evaluate(output)[1] != "unchanged":
            # A correct detection of the object is there already, so that only the own candidate tells.
            return replace(criterion, own_candidate_only=True)
        return criterion

    def evaluate(self, output: DetectorOutput) -> tuple[float, Outcome]:
        """Evaluate the detection in a perturbed image.

        Returns:
            The score in [0, 1], and the outcome.
        """
        score, outcome = self._own_outcome(output)
        if self.first_xyxy is not None and outcome != "unchanged":
            boxes, scores = (part.float().cpu() for part in output.raw_candidates())
            at_first = _iou(self.first_xyxy, boxes) >= MIN_SAME_IOU
            if not bool((scores[at_first, self.target.label] >= self.score_threshold).any()):
                return score, "object lost"
        return score, outcome

    def _own_outcome(self, output: DetectorOutput) -> tuple[float, Outcome]:
        label = self.target.label
        # Read first: some outputs then have the own candidate at hand.
        others = None if self.own_candidate_only else output.raw_candidates()
        candidate = output.candidates([self.target])
        boxes, scores = candidate.boxes_xyxy.detach().float().cpu(), candidate.class_scores.detach().float().cpu()
        own_score = float(scores[0, label])
        iou = _iou(self.target.box_xyxy, boxes)
        own_iou = float(iou[0])
        if others is not None:
            other_boxes, other_scores = (part.float().cpu() for part in others)
            other_iou = _iou(self.target.box_xyxy, other_boxes)
            near = torch.nonzero(other_iou >= MIN_NEAR_IOU)[:, 0]  # only these matter
            boxes, scores = torch.cat([boxes, other_boxes[near]]), torch.cat([scores, other_scores[near]])
            iou = torch.cat([iou, other_iou[near]])
        same_location = iou >= MIN_SAME_IOU
        score = float(scores[same_location, label].max()) if bool(same_location.any()) else 0.0
        if score >= self.score_threshold:
            best = scores[:, label].where(same_location, torch.tensor(-1.0)).argmax()
            return score, "moved" if self._reaches_object(boxes[best : best + 1]) else "unchanged"
        own_moved = own_score >= self.score_threshold and own_iou < MIN_SAME_IOU
        if own_moved or self._appears_nearby(boxes, scores[:, label], iou):
            return score, "moved"
        other_classes = torch.ones(scores.shape[1], dtype=torch.bool)
        other_classes[[label] if output.background is None else [label, output.background]] = False
        rivals = scores[same_location][:, other_classes]
        flipped = rivals.numel() > 0 and float(rivals.max()) >= self.score_threshold
        return score, "class flipped" if flipped else "vanished"

    def _reaches_object(self, box: Tensor) -> bool:
        """Whether the box (1, 4) of a localization error reaches its object."""
        if self.ground_truth_xyxy is None:
            return False
        return float(_iou(self.ground_truth_xyxy, box)[0]) >= self.iou_threshold

    def _appears_nearby(self, boxes: Tensor, scores: Tensor, iou: Tensor) -> bool:
        """Whether a candidate of the class appears near the detection that was not there before."""
        near = boxes[(iou >= MIN_NEAR_IOU) & (iou < MIN_SAME_IOU) & (scores >= self.score_threshold)]
        if not len(near):
            return False
        return not len(self.neighbors) or bool((box_iou(near, self.neighbors).amax(1) < MIN_SAME_IOU).any())


def _iou(box: Box, boxes: Tensor) -> Tensor:
    """(K,) IoU of a box with boxes (K, 4)."""
    return box_iou(torch.tensor([box], dtype=torch.float32), boxes)[0]
