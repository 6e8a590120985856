"""The claim that maps show the cause of a detection, and the result of its verification."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detcam.auditing.case import CONFIRMED, PERSISTING, Trial
from detcam.auditing.verification.interventions import DetectionCriterion
from detcam.auditing.verification.mask_persistence import MaskCriterion
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.verdict import MIN_STRONG_EFFECT, MIN_WEAK_EFFECT, Verdict, remaining_score

EFFECT_MARGIN = 0.05
"""Margin of the drop of the score above the effect of a verdict; controls may cost a little too."""
MIN_SEARCH_EFFECT = MIN_WEAK_EFFECT + EFFECT_MARGIN
"""Minimum drop of the score, relative to it, without a region that is verified."""

MAX_ENDING_SCORE = 0.9
"""Maximum score without a region that is verified, relative to the threshold: just below it, another fill or another
resizing of the image brings the detection back."""

MAX_CLEAR_SCORE = 0.5
"""Maximum score without a region that clearly ends the error, relative to the highest one that ends it."""

EMPTY_MAPS_REASON = "no region was removed: the maps are empty"
NOTHING_BESIDE_REASON = "no region was removed: the maps show nothing beside the object"
SAME_CLASS_LIMIT = "no region was found without which the object has another class"
"""What limits the grade of a region that is verified after none was found that changes the class."""

OUTSIDE_LIMIT = "the object has two boxes, and no region outside them is known to end this one"
"""What limits the grade of a region of the object without which its second box ends."""
MAX_OUTSIDE_TRIALS = 14
"""Number of perturbed images from which on maps are not searched further for the cause of a second box outside it."""
MAX_INSIDE_TRIALS = 8
"""The same for the cause of a second box anywhere, after none was found outside it."""


@dataclass(frozen=True)
class Hypothesis:
    """The claim that one of several maps shows the cause of a detection.

    Attributes:
        case_id: id of the case, the seed of its random controls.
        criterion: decides whether the detection, the error of its mask, or the class of a region persists.
        score: the detection's score in the unperturbed image, in [0, 1].
        proposals: maps of the evidence, and regions to remove one by one.
        box: (h, w) bool, the predicted box in the area of the network's input that the image covers.
        inside: (h, w) bool, the box and the object that the error concerns; of the error of a mask, the object alone.
        segments: makes the segments (h, w) int64 for coarse-to-fine removal, which proposes evidence if no proposal is
            confirmed; None leaves it out.
        is_confusion: whether the detector must report the object with another class without the evidence. Without a
            part of an object, any detection of it ends; this says nothing about its class.
        is_second: whether another detection of the object is correct. Then regions outside the box and the object are
            searched first: without a part of the object, any further box there vanishes, whatever makes it.
        is_outside: whether only regions outside the box and the object are claimed. Then controls beside the evidence
            lie around the box instead of in it. A claim about a mask is of this kind from the start, and nothing of the
            object is removed, since without it the mask cannot be right.
        max_trials: number of perturbed images from which on a map is not searched further; None sets no limit.
        limits: what limits the grade of a verdict.
    """

    case_id: str
    criterion: DetectionCriterion
    score: float
    proposals: Proposals
    box: Tensor
    inside: Tensor
    segments: Callable[[], Tensor] | None = None
    is_confusion: bool = False
    is_second: bool = False
    is_outside: bool = False
    max_trials: int | None = None
    limits: tuple[str, ...] = ()

    @property
    def kept(self) -> Tensor | None:
        """(h, w) bool, the object of a wrong mask, which no removal touches; None of other errors."""
        return self.inside if isinstance(self.criterion, MaskCriterion) else None

    def ends(self, trial: Trial, min_effect: float = MIN_SEARCH_EFFECT) -> bool:
        """Whether a trial clearly ends the error, and costs at least a fraction of the score."""
        if trial.outcome == "class flipped":  # another class above the threshold leaves no doubt
            return remaining_score(trial) <= (1 - min_effect) * self.score
        is_clear = trial.outcome not in PERSISTING and remaining_score(trial) <= self._highest_score(min_effect)
        return is_clear and not self.is_confusion

    def ends_likewise(self, trials: Sequence[Trial]) -> Callable[[Trial], bool]:
        """Whether a trial ends the error; strongly if some trials do."""
        effect = self._effect_likewise(trials)
        return lambda trial: self.ends(trial, effect)

    def _effect_likewise(self, trials: Sequence[Trial]) -> float:
        """The minimum effect of trials that end the error as strongly as some trials do."""
        strong = MIN_STRONG_EFFECT + EFFECT_MARGIN
        return strong if all(self.ends(each, strong) for each in trials) else MIN_SEARCH_EFFECT

    def barely_ends(self, trials: Sequence[Trial]) -> bool:
        """Whether the score without a region that ends the error is near the highest one that ends it likewise."""
        highest = self._highest_score(self._effect_likewise(trials))
        return max(map(remaining_score, trials)) > MAX_CLEAR_SCORE * highest

    def _highest_score(self, min_effect: float) -> float:
        """The highest score without a region that ends the error and costs at least a fraction of the score."""
        return min(MAX_ENDING_SCORE * self.criterion.score_threshold, (1 - min_effect) * self.score)

    def is_control(self, trial: Trial) -> bool:
        """Whether the trial of a control can be compared: of a confusion, one in which the object is still detected."""
        if trial.outcome == "object lost":
            return False
        return not self.is_confusion or trial.outcome in ("unchanged", "class flipped")

    def outside(self) -> Hypothesis:
        """The claim that the maps show the cause outside the box and the object."""
        outside = self.proposals.outside(self.inside)
        return replace(self, proposals=outside, is_second=False, is_outside=True, max_trials=MAX_OUTSIDE_TRIALS)

    def without_outside(self) -> Hypothesis:
        """The claim that the maps show the cause anywhere, after none was found outside the box and the object.

        Such a region is no strong evidence, and the search for it ends early; coarse-to-fine removal is left to what
        has no maps.
        """
        segments, limits = None if self.proposals.maps else self.segments, (*self.limits, OUTSIDE_LIMIT)
        return replace(self, is_second=False, segments=segments, max_trials=MAX_INSIDE_TRIALS, limits=limits)

    def without_confusion(self) -> Hypothesis:
        """The claim that the maps show what the detection needs, whatever becomes of the object."""
        return replace(self, is_confusion=False, limits=(*self.limits, SAME_CLASS_LIMIT))

    def limits_of(self, trials: Sequence[Trial]) -> tuple[str, ...]:
        """What limits the grade of a region; that none changes the class is not said of one that does in its trials."""
        flips = [trial.outcome == "class flipped" for trial in trials]
        if not any(flips):
            return self.limits
        others = tuple(each for each in self.limits if each != SAME_CLASS_LIMIT)
        return others if all(flips) or others == self.limits else (*others, f"{SAME_CLASS_LIMIT} with every fill")


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

    def without(self, region: Tensor) -> VerificationResult:
        """The result whose evidence lacks the pixels of a region (h, w) bool; controls are removed as they are."""
        parts = tuple(replace(part, region=part.region & ~region) for part in self.parts)
        return replace(self, evidence=self.evidence & ~region, parts=parts)


def union(region: Tensor, parts: Sequence[EvidencePart]) -> Tensor:
    """(h, w) bool, a region and all parts."""
    return torch.stack([region, *(part.region for part in parts)]).any(0)


def is_confirmed(result: VerificationResult | None) -> bool:
    """Whether a result confirms its evidence."""
    return result is not None and result.verdict.grade in CONFIRMED


def better_result(first: VerificationResult | None, second: VerificationResult | None) -> VerificationResult | None:
    """The confirmed one of two results, else the one whose evidence ends the error, else the second.

    Without its object an error ends in any case: evidence that takes the object away comes after what does not.
    """
    if first is None or second is None:
        return second if first is None else first
    return second if _rank(second) >= _rank(first) else first


def _rank(result: VerificationResult) -> tuple[bool, bool, bool]:
    without = [each for each in result.trials if each.intervention == "without evidence"]
    loses_object = any(each.outcome == "object lost" for each in without)  # a control may cover the object
    return is_confirmed(result), result.ends, not loses_object


def more_effective_result(first: VerificationResult | None, second: VerificationResult) -> VerificationResult:
    """The second of two results, unless the effect of the first is as large; an effect may be NaN."""
    if first is None or math.isnan(first.verdict.effect):
        return second
    return second if second.verdict.effect > first.verdict.effect else first


def without_evidence(hypothesis: Hypothesis) -> VerificationResult:
    """The result if no region was verified, because the maps propose none."""
    reason = EMPTY_MAPS_REASON if hypothesis.kept is None else NOTHING_BESIDE_REASON
    empty = torch.zeros_like(hypothesis.box)
    name = hypothesis.proposals.maps[0].name if hypothesis.proposals.maps else ""
    verdict = Verdict("not tested", math.nan, reason)
    return VerificationResult((), verdict, Proposal(name, empty.float()), empty, (), None, ends=False)
