"""Persistence of the error of a mask: whether it remains wrong in a perturbed image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.auditing.case import Box, Outcome
from detcam.auditing.verification.persistence import MIN_SAME_IOU
from detcam.geometry import mask_to_box
from detcam.outputs import DetectorOutput
from detcam.targets import BoxTarget

MAX_WRONG_SHARE = 0.5
"""Maximum share of a mask's wrong pixels that are still wrong in a corrected mask."""


@dataclass(frozen=True, eq=False)
class MaskCriterion:
    """Decides whether the mask of a detection is still wrong in a perturbed image.

    The detector's own mask is compared with the object: that of the detection of the class whose box has the highest
    IoU with the detection's box or, if there is none, with the object's. Pixels are wrong that belong to one of mask
    and object only. A mask is corrected if at most `MAX_WRONG_SHARE` of its wrong pixels remain and its IoU with the
    object is that of a true positive. Without a detection, the object is lost, which says nothing about its mask.

    Attributes:
        target: the detection.
        mask: (H, W) bool, the object.
        score: the detection's score in the unperturbed image, in [0, 1].
        detection_threshold: minimum score of a detection, in [0, 1].
        wrong: (H, W) bool, the wrong pixels in the unperturbed image.
        min_iou: minimum IoU of a corrected mask with the object.
    """

    target: BoxTarget
    mask: Tensor
    score: float
    detection_threshold: float
    wrong: Tensor
    min_iou: float
    first_xyxy: ClassVar[None] = None
    """Another detection of the object does not matter: its mask is compared with no other."""
    lost_reason: ClassVar[str] = "the detection itself ends with it, which says nothing about its mask"

    @classmethod
    def from_output(
        cls,
        output: DetectorOutput,
        target: BoxTarget,
        mask: Tensor,
        score: float,
        score_threshold: float,
        iou_threshold: float,
    ) -> MaskCriterion | None:
        """Create the criterion from the output for the unperturbed image.

        Args:
            output: output for the unperturbed image.
            target: the detection.
            mask: (H, W) bool, the object.
            score: the detection's score, in [0, 1].
            score_threshold: minimum score of a detection, in [0, 1].
            iou_threshold: minimum IoU of a true positive.

        Returns:
            The criterion; None if the output has no such detection, or its mask is a true positive.
        """
        criterion = cls(target, mask, score, score_threshold, torch.zeros_like(mask), iou_threshold)
        found = criterion._own_mask(output)
        if found is None or _iou(found, mask) >= iou_threshold:
            return None
        return replace(criterion, wrong=found ^ mask)

    @property
    def score_threshold(self) -> float:
        """The score of the largest error of a mask that counts as corrected."""
        return MAX_WRONG_SHARE * self.score

    def evaluate(self, output: DetectorOutput) -> tuple[float, Outcome]:
        """Evaluate the mask in a perturbed image.

        Returns:
            The detection's score in the unperturbed image times the share of the wrong pixels that are still wrong, in
            [0, 1]; and the outcome. A lost object leaves the score as it is.
        """
        found = self._own_mask(output)
        if found is None:
            return self.score, "object lost"
        share = float(((found ^ self.mask) & self.wrong).sum() / self.wrong.sum())
        is_right = share <= MAX_WRONG_SHARE and _iou(found, self.mask) >= self.min_iou
        return self.score * share, "mask corrected" if is_right else "unchanged"

    def _own_mask(self, output: DetectorOutput) -> Tensor | None:
        """The mask (H, W) bool of the detection; None if it is lost."""
        found = output.detections()
        chosen = (found.labels == self.target.label) & (found.scores >= self.detection_threshold)
        for box in (self.target.box_xyxy, mask_to_box(self.mask)):
            iou = _box_ious(box, found.boxes_xyxy).where(chosen, torch.tensor(-1.0))
            if len(iou) and float(iou.max()) >= MIN_SAME_IOU and found.masks is not None:
                return found.masks[int(iou.argmax())].cpu().bool()
        return None


def _iou(first: Tensor, second: Tensor) -> float:
    return int((first & second).sum()) / max(int((first | second).sum()), 1)


def _box_ious(box: Box, boxes: Tensor) -> Tensor:
    return box_iou(torch.tensor([box], dtype=torch.float32), boxes.float())[0]
