"""Missed objects whose surroundings are to blame: those of found objects are transplanted around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detcam.auditing.case import Box, Trial
from detcam.auditing.verification.donors import Donor, paste_window
from detcam.auditing.verification.evidence import RING_WIDTH, box_region
from detcam.auditing.verification.hypothesis import VerificationResult
from detcam.auditing.verification.interventions import Interventions, Investigation, Removal
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.verdict import decide_transplant
from detcam.perturbation.fills import UniformFill

WIDTHS = (RING_WIDTH, RING_WIDTH / 2)
"""Widths of the rings that are transplanted, relative to the sides of the object's box, the widest first."""
TRANSPLANT_NAME = "surroundings of found objects"


class TransplantFill(UniformFill):
    """Another version of the image, made when it is needed.

    Args:
        make: makes the version (1, C, h, w), over the area of the network's input that the image covers.
    """

    name = "transplant"

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make = make

    def baseline(self, images: Tensor) -> Tensor:
        return self.make().to(images)

    def for_image(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda removed: self(image, removed)  # the version is not kept


@dataclass(frozen=True)
class Transplantation:
    """The claim that a missed object would be found in the surroundings of found objects of its class.

    Attributes:
        image: (C, H, W), float32 in [0, 1] or uint8.
        box: box of the missed object, pixels of the image.
        donors: the found objects.
        prepare: from an image (C, H, W) to the area (1, C, h, w) of the network's input.
        to_input: from a map (H, W) of the image to the area (h, w).
        score: the object's score in the unperturbed image by the criterion, in [0, 1].
        score_threshold: minimum score of a detection, in [0, 1].
    """

    image: Tensor
    box: Box
    donors: Sequence[Donor]
    prepare: Callable[[Tensor], Tensor]
    to_input: Callable[[Tensor], Tensor]
    score: float
    score_threshold: float

    def investigate(
        self, removed: VerificationResult, interventions: Interventions
    ) -> Investigation[VerificationResult]:
        """Transplant the surroundings of each donor, in a narrower ring if it suffices, then those of the controls.

        Args:
            removed: the result of the removal of regions, which confirms none.
            interventions: the perturbed versions of the image, to which the transplants are added.

        Returns:
            The result if the object is found with each donor; else `removed`, with the outcome in its reason.
        """
        ring = self._ring(WIDTHS[0])
        if not bool(ring.any()):
            return removed
        first = interventions.add_fills([self._fill(each.surroundings) for each in self.donors])
        trials: list[Trial] = []
        for index in range(len(self.donors)):
            trials += yield [Removal("transplant", ring, first + index)]
            if trials[-1].outcome != "appeared":
                return _with_reason(removed, "absent in the surroundings of a found object too")
        narrow = self._ring(WIDTHS[1])
        if bool(narrow.any()):
            others = yield [Removal("transplant", narrow, first + index) for index in range(len(self.donors))]
            if all(each.outcome == "appeared" for each in others):
                ring, trials = narrow, others
        controls = [each.control for each in self.donors if each.control is not None]
        first = interventions.add_fills([self._fill(each) for each in controls])
        # If the object is found when the ring is merely filled, something in it suppresses the object.
        fills = [0, *range(first, first + len(controls))]
        trials = trials + (yield [Removal("transplant control", ring, fill) for fill in fills])
        verdict = decide_transplant(self.score, self.score_threshold, trials, float(ring.float().mean()))
        if verdict.grade == "not confirmed":
            return _with_reason(removed, verdict.reason)
        proposal = Proposal(TRANSPLANT_NAME, self._closeness() * ring)
        return VerificationResult(tuple(trials), verdict, proposal, ring, (), None, ends=True)

    def _fill(self, surroundings: Tensor) -> TransplantFill:
        return TransplantFill(lambda: self.prepare(paste_window(self.image, self.box, surroundings)))

    def _ring(self, width: float) -> Tensor:
        """(h, w) bool, the ring around the box."""
        left, top, right, bottom = self.box
        dx, dy = width * (right - left), width * (bottom - top)
        size_hw = (self.image.shape[-2], self.image.shape[-1])
        around = box_region((left - dx, top - dy, right + dx, bottom + dy), size_hw)
        own = self.to_input(box_region(self.box, size_hw).float()) > 0  # the object keeps all its pixels
        return (self.to_input(around.float()) > 0.5) & ~own

    def _closeness(self) -> Tensor:
        """(h, w) in (0, 1], how near pixels are to the box."""
        height, width = self.image.shape[-2:]
        left, top, right, bottom = self.box
        rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
        dy = (torch.maximum(top - rows, rows - bottom) / max(bottom - top, 1.0)).clamp(min=0)
        dx = (torch.maximum(left - columns, columns - right) / max(right - left, 1.0)).clamp(min=0)
        return self.to_input(1 / (1 + (dy[:, None].square() + dx.square()).sqrt()))


def _with_reason(result: VerificationResult, reason: str) -> VerificationResult:
    verdict = replace(result.verdict, reason=f"{result.verdict.reason}; {reason}")
    return replace(result, verdict=verdict)
