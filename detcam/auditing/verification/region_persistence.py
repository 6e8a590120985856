"""Persistence of a region's class in the output of a semantic segmentation network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from detcam.auditing.case import Outcome
from detcam.segmenter_output import SegmenterOutput


@dataclass(frozen=True, eq=False)
class RegionCriterion:
    """Decides whether a region still has its class in a perturbed image.

    A region has each class that at least a fraction of its pixels, the score threshold, belongs to.

    Attributes:
        label: the class index.
        mask: (H, W) bool, the region, image pixels.
        score_threshold: minimum share of the region's pixels, in (0, 1].
        background: class index of the background, which is no class of a region; None if there is none.
    """

    label: int
    mask: Tensor
    score_threshold: float
    background: int | None = None
    first_xyxy: ClassVar[None] = None
    """A region has no second box."""
    lost_reason: ClassVar[str] = "the region is lost with it"

    def evaluate(self, output: SegmenterOutput) -> tuple[float, Outcome]:
        """Evaluate the region in a perturbed image.

        Returns:
            The share of its pixels that belong to the class, in [0, 1], and the outcome.
        """
        found = output.detections({}, background=self.background)
        size = max(int(self.mask.sum()), 1)
        shares = (
            {}
            if found.masks is None
            else {
                label: int((mask & self.mask).sum()) / size
                for label, mask in zip(found.labels.tolist(), found.masks.cpu(), strict=True)
            }
        )
        score = shares.pop(self.label, 0.0)
        if score >= self.score_threshold:
            return score, "unchanged"
        return score, "class flipped" if max(shares.values(), default=0.0) >= self.score_threshold else "vanished"
