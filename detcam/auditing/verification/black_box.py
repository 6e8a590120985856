"""Verification for models without gradients: nothing proposes evidence but removal, and perturbed images are few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from detcam.auditing.case import Trial
from detcam.auditing.verification.hypothesis import (
    Hypothesis,
    VerificationResult,
    better_result,
    is_confirmed,
    without_evidence,
)
from detcam.auditing.verification.interventions import Investigation, Removal, asking
from detcam.auditing.verification.joint_removal import find_joint_regions
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.surroundings import LIGHT, ring_around
from detcam.auditing.verification.verdict import MAX_STRONG_FRACTION, Verdict, remaining_score
from detcam.auditing.verification.verifier import PROBES_NAME, InvestigatedHypothesis, Verifier
from detcam.perturbation.base import ImageScorer
from detcam.perturbation.fills import Fill

MAX_TRIALS = 57
"""Maximum number of perturbed images of a case; with those that detect, there are up to 60."""


class _LimitReachedError(Exception):
    """A case asks for more than `MAX_TRIALS` perturbed images."""


class BlackBoxVerifier(Verifier):
    """Verifies the hypotheses of one image of a model without gradients.

    Of a confusion, segments around the box are removed together first, and their light is evened. A case ends with its
    best result so far at a maximum number of perturbed images.
    """

    def __init__(self, scorer: ImageScorer, fills: Sequence[Fill] | None = None) -> None:
        super().__init__(scorer, fills)
        self._ending: dict[str, list[VerificationResult]] = {}
        """By case id, the results so far whose evidence ends the error."""

    def investigate(self, hypothesis: Hypothesis | InvestigatedHypothesis) -> Investigation[VerificationResult]:
        """The procedure that verifies a hypothesis."""
        investigation = super().investigate(hypothesis)
        return self._limited(investigation, hypothesis) if isinstance(hypothesis, Hypothesis) else investigation

    def _limited(
        self, investigation: Investigation[VerificationResult], hypothesis: Hypothesis
    ) -> Investigation[VerificationResult]:
        """An investigation that ends with the best result before it tries more than `MAX_TRIALS` images."""
        tried: list[tuple[Removal, Trial]] = []

        def ask(requests: list[Removal]) -> Investigation[list[Trial]]:
            if len(tried) + len(requests) > MAX_TRIALS:
                raise _LimitReachedError
            trials = yield requests
            tried.extend(zip(requests, trials, strict=True))
            return trials

        try:
            return (yield from asking(investigation, ask))
        except _LimitReachedError:
            best = reduce(stronger_result, self._ending.get(hypothesis.case_id, ()), None)
            return strongest_attempt(hypothesis, tried) if best is None else best

    def _conclude(self, hypothesis: Hypothesis, result: VerificationResult) -> VerificationResult:
        concluded = super()._conclude(hypothesis, result)
        if concluded.ends:
            self._ending.setdefault(hypothesis.case_id, []).append(concluded)
        return concluded

    def _verify_confusion(self, hypothesis: Hypothesis) -> Investigation[VerificationResult | None]:
        """Remove the segments around the box together and even the light there, before all that needs a map."""
        best = yield from self._verify_joint(hypothesis)
        if best is not None and best.verdict.grade == "strong":
            return best
        best = stronger_result(best, (yield from self._verify_surroundings(hypothesis, LIGHT)))
        if is_confirmed(best):
            return best
        return better_result(best, (yield from super()._verify_confusion(hypothesis)))

    def _verify_joint(self, hypothesis: Hypothesis) -> Investigation[VerificationResult | None]:
        """Verify the fewest segments in the ring around the box, else anywhere outside, that end the error together."""
        if hypothesis.segments is None:
            return None
        segments = hypothesis.segments()
        for within in (ring_around(hypothesis), ~hypothesis.inside):
            found = yield from find_joint_regions(within, hypothesis, segments, self._image)
            proposal, ending, further = found
            if ending:
                search = self._search(hypothesis, [])
                return (yield from self._verify_probed(hypothesis, proposal, search, ending, further))
        return None


def stronger_result(first: VerificationResult | None, second: VerificationResult | None) -> VerificationResult | None:
    """The more effective one of two confirmed results, the second one if they are equal; else as `better_result`."""
    if first is None or second is None or not (is_confirmed(first) and is_confirmed(second)):
        return better_result(first, second)
    return second if second.verdict.effect >= first.verdict.effect else first


def strongest_attempt(hypothesis: Hypothesis, tried: Sequence[tuple[Removal, Trial]]) -> VerificationResult:
    """The result of a case in which no region was verified: the region whose removal costs the most, not confirmed.

    Regions of a tenth of the image or more come last: what surrounds the box as a whole is no evidence.

    Args:
        hypothesis: the claim.
        tried: the perturbed images and their trials.
    """
    attempts: dict[bytes, list[tuple[Removal, Trial]]] = {}
    for request, trial in tried:
        if request.intervention in ("without evidence", "without part") and bool(request.region.any()):
            attempts.setdefault(request.region.numpy().tobytes(), []).append((request, trial))
    if not attempts:
        return without_evidence(hypothesis)

    def weakness(attempt: list[tuple[Removal, Trial]]) -> tuple[bool, bool, float]:
        is_large = float(attempt[0][0].region.float().mean()) >= MAX_STRONG_FRACTION
        persists = not all(hypothesis.ends(trial) for _, trial in attempt)
        return is_large, persists, max(remaining_score(trial) for _, trial in attempt)

    strongest = min(attempts.values(), key=weakness)
    region = strongest[0][0].region
    trials = tuple(replace(trial, intervention="without evidence") for _, trial in strongest)
    reason = f"no region was verified within {len(tried)} perturbed images; the strongest one leaves a score of "
    reason += f"{weakness(strongest)[2]:.2f}"
    verdict = Verdict("not confirmed", math.nan, reason)
    return VerificationResult(trials, verdict, Proposal(PROBES_NAME, region.float()), region, (), None, ends=False)
