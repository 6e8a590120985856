"""The claim that maps show the cause of a detection, and the result of its verification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detcam.auditing.case import Trial
from detcam.auditing.verification.persistence import PersistenceCriterion
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.verdict import MIN_WEAK_EFFECT, Verdict

MIN_SEARCH_EFFECT = MIN_WEAK_EFFECT + 0.05
"""Minimum drop of the score, relative to it, without a region that is verified; controls may cost a little too."""


@dataclass(frozen=True)
class Hypothesis:
    """The claim that one of several maps shows the cause of a detection.

    Attributes:
        case_id: id of the case, the seed of its random controls.
        criterion: decides whether the detection persists.
        score: the detection's score in the unperturbed image, in [0, 1].
        proposals: maps of the evidence, and regions to remove one by one.
        box: (h, w) bool, the predicted box in the area of the network's input that the image covers.
        inside: (h, w) bool, the box and the object that the error concerns.
        segments: makes the segments (h, w) int64 for coarse-to-fine removal, which proposes evidence if no proposal is
            confirmed; None leaves it out.
    """

    case_id: str
    criterion: PersistenceCriterion
    score: float
    proposals: Proposals
    box: Tensor
    inside: Tensor
    segments: Callable[[], Tensor] | None = None

    @property
    def max_score(self) -> float:
        """The score without a region above which its effect would be too small for a verdict."""
        return (1 - MIN_SEARCH_EFFECT) * self.score


@dataclass(frozen=True)
class EvidencePart:
    """A part of the evidence.

    Attributes:
        region: (h, w) bool.
        score: score of the detection without this part alone, in [0, 1].
        needed: whether the detection ends without this part alone.
    """

    region: Tensor
    score: float
    needed: bool


@dataclass(frozen=True)
class VerificationResult:
    """Result of the verification of one hypothesis.

    Attributes:
        trials: the perturbed images of the evidence region and of its controls.
        verdict: grade, effect and reason.
        proposal: the proposal that the evidence comes from.
        evidence: (h, w) bool, the evidence region, over the area of the network's input that the image covers: the
            smallest region whose removal ends the error, if one was found.
        parts: parts of the evidence that were removed alone, none of which ends the error, and other regions each of
            which ends it; empty if the evidence is of one part and no other region is known.
        control: (h, w) bool, the first random control region; None if no position was free, or the error persists
            without the evidence.
        ends: whether the error ends without the evidence, with every fill.
        forward_passes: number of perturbed images.
    """

    trials: tuple[Trial, ...]
    verdict: Verdict
    proposal: Proposal
    evidence: Tensor
    parts: tuple[EvidencePart, ...]
    control: Tensor | None
    ends: bool
    forward_passes: int = 0

    @property
    def needed(self) -> Tensor:
        """(h, w) bool, the evidence region and all further parts that are needed."""
        return union(self.evidence, self.parts)


def union(region: Tensor, parts: Sequence[EvidencePart]) -> Tensor:
    """(h, w) bool, a region and all parts."""
    return torch.stack([region, *(part.region for part in parts)]).any(0)
