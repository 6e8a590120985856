"""Second boxes of an object: whether their cause may lie outside the object, before it is searched there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from detcam.auditing.verification.hypothesis import Hypothesis
from detcam.auditing.verification.interventions import Investigation, Removal
from detcam.auditing.verification.removal_map import quarters_outside
from detcam.auditing.verification.verdict import MIN_STRONG_EFFECT, remaining_score


def may_lie_outside(hypothesis: Hypothesis, strongest: Sequence[Tensor], fill_count: int) -> Investigation[bool]:
    """Remove large regions outside the box and the object, in one of which a cause there lies.

    The search for the cause is long where there is none. It is left out if none of these, with every fill, ends the
    error or costs half of the score: the strongest region of each map; then the quarters of what is outside, and all
    regions that maps highlight there, since causes that replace one another may lie in several quarters.

    Args:
        hypothesis: the claim about regions outside.
        strongest: the regions (h, w) bool with which the search starts.
        fill_count: number of fills.
    """
    if hypothesis.segments is None:
        return True
    if (yield from _may_end([Removal("without evidence", region) for region in strongest], hypothesis, fill_count)):
        return True
    large, probes = quarters_outside(hypothesis.segments(), hypothesis.inside), hypothesis.proposals.probes
    if probes is not None and len(probes.regions):
        large.append(probes.regions.any(0))
    return (yield from _may_end([Removal("without part", region) for region in large], hypothesis, fill_count))


def _may_end(requests: Sequence[Removal], hypothesis: Hypothesis, fill_count: int) -> Investigation[bool]:
    """Whether a region ends the error, or what it is an error of, or costs half of the score, with every fill."""
    highest = (1 - MIN_STRONG_EFFECT) * hypothesis.score
    for fill in range(fill_count):
        trials = yield [replace(request, fill=fill) for request in requests]
        requests = [
            request
            for request, trial in zip(requests, trials, strict=True)
            if trial.outcome != "unchanged" or remaining_score(trial) <= highest
        ]
    return bool(requests)
