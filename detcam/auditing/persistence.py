"""What becomes of a detection when its image changes: its raw candidate is followed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.auditing.case import Box, Outcome
from detcam.outputs import DetectorOutput
from detcam.targets import BoxTarget

SAME = 0.5
"""Least overlap with the detection of what counts as being where it was."""
NEAR = 0.1
"""Least overlap with the detection of what it may have moved to."""


@dataclass(frozen=True)
class TrackedDetection:
    """One detection, and how to find it again.

    A detection lives on in its own raw candidate, or in another candidate that overlaps it by half: a neighbouring
    anchor or proposal that says the same. A duplicate, and a box in the wrong place, are their own candidate alone,
    for the candidates beside them say something else.

    Attributes:
        target: the detection, pinned to its source.
        threshold: least score, in [0, 1], at which it counts as a detection.
        alone: whether its own candidate alone is followed.
        before: (K, 4) boxes that said its class near it in the unchanged image, above the threshold.
        truth_xyxy: the true object that it is too far off, for a box in the wrong place; else None.
        fits: least overlap with that object, in (0, 1], at which the box has moved onto it.
    """

    target: BoxTarget
    threshold: float
    alone: bool
    before: Tensor
    truth_xyxy: Box | None = None
    fits: float = SAME

    @classmethod
    def start(
        cls,
        output: DetectorOutput,
        target: BoxTarget,
        threshold: float,
        *,
        alone: bool = False,
        truth_xyxy: Box | None = None,
        iou_threshold: float = SAME,
    ) -> TrackedDetection:
        """Follow a detection from what the detector says of the unchanged image.

        A box in the wrong place has moved onto its object where it overlaps it by the threshold of a right detection;
        one that does so already (of masks that do not) where it has come half of the way to the object's own box.
        """
        boxes, scores = (part.float().cpu() for part in output.raw_candidates())
        overlap = _overlap(target, boxes)
        near = (overlap >= NEAR) & (overlap < SAME) & (scores[:, target.label] >= threshold)
        fits = iou_threshold
        if truth_xyxy is not None:
            now = float(_overlap(target, torch.tensor([truth_xyxy], dtype=torch.float32))[0])
            fits = iou_threshold if now < iou_threshold else (1 + now) / 2
        return cls(target, threshold, alone, boxes[near], truth_xyxy, fits)

    def find(self, output: DetectorOutput) -> tuple[float, Outcome]:
        """Its score in [0, 1] in a changed image, and what became of it."""
        label = self.target.label
        own = output.candidates([self.target])
        box = own.boxes_xyxy.detach().float().cpu()
        row = own.class_scores.detach().float().cpu()[0]
        own_overlap = float(_overlap(self.target, box)[0])
        boxes, scores = box, row[None]
        if not self.alone:
            all_boxes, all_scores = (part.float().cpu() for part in output.raw_candidates())
            boxes, scores = torch.cat([box, all_boxes]), torch.cat([scores, all_scores])
        overlap = _overlap(self.target, boxes)
        here = overlap >= SAME
        score = float(scores[here, label].max()) if bool(here.any()) else 0.0
        if score >= self.threshold and self.truth_xyxy is not None:
            onto = float(box_iou(torch.tensor([self.truth_xyxy], dtype=torch.float32), box)[0, 0])
            return score, "moved" if onto >= self.fits else "unchanged"
        if score >= self.threshold:
            return score, "unchanged"
        if float(row[label]) >= self.threshold and own_overlap < SAME:
            return score, "moved"
        if self._arrived(boxes, scores[:, label], overlap):
            return score, "moved"
        others = torch.ones(scores.shape[1], dtype=torch.bool)
        others[[label] if output.background is None else [label, output.background]] = False
        rivals = scores[here][:, others]
        flipped = rivals.numel() > 0 and float(rivals.max()) >= self.threshold
        return score, "class flipped" if flipped else "vanished"

    def _arrived(self, boxes: Tensor, scores: Tensor, overlap: Tensor) -> bool:
        """Whether the class is now said near the detection, where nothing said it before."""
        near = boxes[(overlap >= NEAR) & (overlap < SAME) & (scores >= self.threshold)]
        if not len(near):
            return False
        return not len(self.before) or bool((box_iou(near, self.before).amax(1) < SAME).any())


def _overlap(target: BoxTarget, boxes: Tensor) -> Tensor:
    """(K,) overlaps of boxes with the target's."""
    return box_iou(torch.tensor([target.box_xyxy], dtype=torch.float32), boxes)[0]
