"""Verification of evidence by intervention: the evidence, its parts, and controls are removed from the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from detcam.auditing.case import CONFIRMED, Trial
from detcam.auditing.verification.evidence import control_generator, random_controls, region_beside
from detcam.auditing.verification.interventions import Criterion, Interventions, Investigation, Removal
from detcam.auditing.verification.persistence import PersistenceCriterion
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.region_probes import probe_map
from detcam.auditing.verification.region_search import (
    MAX_PARTS,
    RegionSearch,
    TriedRegion,
    connected_parts,
    shrink,
    try_region,
)
from detcam.auditing.verification.removal_map import removal_map
from detcam.auditing.verification.verdict import MIN_WEAK_EFFECT, Verdict, decide_verdict
from detcam.perturbation.base import ImageScorer
from detcam.perturbation.fills import Fill, LinearFill, RingFill

MAX_CANDIDATES = 3
"""Maximum number of regions that are verified with controls; the search goes on while none is confirmed."""
MIN_SEARCH_EFFECT = MIN_WEAK_EFFECT + 0.05
"""Minimum drop of the score, relative to it, without a region that is verified; controls may cost a little too."""
MAX_FURTHER_PARTS = 2
"""Maximum number of further regions that are tried as parts of the evidence."""
PROBES_NAME = "removal of regions"
REMOVAL_NAME = "coarse-to-fine removal"


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
        control: (h, w) bool, the first random control region; None if no position was free.
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
        return _union(self.evidence, self.parts)


class InvestigatedHypothesis(Protocol):
    """A hypothesis that brings its own investigation, such as one about a missed object."""

    @property
    def criterion(self) -> Criterion:
        """Decides whether the error persists."""
        ...

    def investigate(self, fill_count: int) -> Investigation[VerificationResult]:
        """Test regions, each with `fill_count` fills."""
        ...


class Verifier:
    """Verifies the hypotheses of one image together, in batches of perturbed images.

    Args:
        scorer: the image, prepared for the model; must be used within `detcam.trace.guarded`.
        fills: replacements of removed pixels; the error must end with each of them. None takes linear imputation and
            the mean of a ring.
    """

    def __init__(self, scorer: ImageScorer, fills: Sequence[Fill] | None = None) -> None:
        self.interventions = Interventions(scorer, fills if fills is not None else (LinearFill(), RingFill()))
        self.fill_count = len(self.interventions.fills)

    def verify(self, hypotheses: Sequence[Hypothesis | InvestigatedHypothesis]) -> list[VerificationResult]:
        """Verify each hypothesis; without hypotheses no forward pass runs."""
        investigations = [
            self._investigate(each) if isinstance(each, Hypothesis) else each.investigate(self.fill_count)
            for each in hypotheses
        ]
        results = self.interventions.run(investigations, [each.criterion for each in hypotheses])
        return [replace(result, forward_passes=count) for result, count in results]

    def _investigate(self, hypothesis: Hypothesis) -> Investigation[VerificationResult]:
        """Verify the proposals of one proposer after another until a region is confirmed.

        The maps are searched for their smallest region, then regions are removed one by one. Of the two, the one with
        the denser saliency is verified first; coarse-to-fine removal comes last.
        """
        best: VerificationResult | None = None
        maps, probes = hypothesis.proposals.maps, hypothesis.proposals.probes
        search = self._search(hypothesis, maps)
        found = yield from search.next_region()
        ending: Sequence[Tensor] | None = None
        if probes is not None:
            heatmap, ending = yield from probe_map(probes, hypothesis.score)
            if found is None or (ending and probes.density(ending[0]) > probes.density(found.region)):
                proposals = [Proposal(PROBES_NAME, heatmap)]
                best = yield from self._verify(hypothesis, proposals, self._search(hypothesis, proposals), None, ending)
        if not _is_confirmed(best) and maps:
            result = yield from self._verify(hypothesis, maps, search, found, ending)
            best = _better(best, result)
        if not _is_confirmed(best) and hypothesis.segments is not None:
            heatmap = yield from removal_map(
                hypothesis.segments(), hypothesis.box, hypothesis.score, self.fill_count - 1
            )
            proposals = [Proposal(REMOVAL_NAME, heatmap)]
            result = yield from self._verify(hypothesis, proposals, self._search(hypothesis, proposals), None, None)
            best = _better(best, result)
        return best if best is not None else _without_evidence(hypothesis)

    def _search(self, hypothesis: Hypothesis, proposals: Sequence[Proposal]) -> RegionSearch:
        maps = [each.heatmap for each in proposals]
        return RegionSearch(maps, hypothesis.box, self.fill_count, max_score=hypothesis.max_score)

    def _verify(
        self,
        hypothesis: Hypothesis,
        proposals: Sequence[Proposal],
        search: RegionSearch,
        found: TriedRegion | None,
        ending: Sequence[Tensor] | None,
    ) -> Investigation[VerificationResult | None]:
        """The first confirmed region of some proposals, or the best attempt; None if all maps are empty.

        `found` is the smallest region that the search has found already, None before its start. `ending` are regions
        that are known to end the error, candidates for further parts of the evidence; with None, further parts are
        searched in the maps.
        """
        best: VerificationResult | None = None
        for _ in range(MAX_CANDIDATES):
            found = found or (yield from search.next_region())
            if found is None:
                break
            result = yield from self._verify_region(hypothesis, proposals[found.map_index], found, search, ending)
            if best is None or result.verdict.effect > best.verdict.effect:
                best = result
            if _is_confirmed(result):
                break
            found = None
        attempt = search.strongest_attempt()
        if best is None and attempt is not None:
            # The search leaves a region after the first fill without much effect: it may end the error all the same.
            attempt = yield from try_region(attempt.region, self.fill_count, attempt.map_index, trials=attempt.trials)
            best = yield from self._verify_region(hypothesis, proposals[attempt.map_index], attempt, search, ending)
        return best

    def _verify_region(
        self,
        hypothesis: Hypothesis,
        proposal: Proposal,
        tried: TriedRegion,
        search: RegionSearch,
        ending: Sequence[Tensor] | None,
    ) -> Investigation[VerificationResult]:
        """Reduce a region to the part that is needed, find further parts, and run the controls."""
        parts: list[EvidencePart] = []
        if tried.ends:
            tried, parts = yield from self._separate_parts(tried, hypothesis)
            smaller = yield from shrink(tried, self.fill_count, hypothesis.max_score)
            if smaller is not tried:  # it has not the parts of the larger region
                tried, parts = smaller, [part for part in parts if part.needed]
            parts += yield from self._further_parts(tried, parts, search, ending)
        area = tried.region
        excluded = _union(area, parts)
        generator = control_generator(hypothesis.case_id)
        random_regions = random_controls(area, generator, excluded)
        trials = [*tried.trials]
        trials += yield [
            Removal("random control", each, index % self.fill_count) for index, each in enumerate(random_regions)
        ]
        further = yield from self._box_controls(area, excluded, hypothesis.box, generator, trials)
        parts += further
        verdict = decide_verdict(hypothesis.score, trials, float(area.float().mean()), parts_needed=len(further))
        control = random_regions[0] if random_regions else None
        return VerificationResult(tuple(trials), verdict, proposal, area, tuple(parts), control, tried.ends)

    def _box_controls(
        self, region: Tensor, excluded: Tensor, box: Tensor, generator: torch.Generator, trials: list[Trial]
    ) -> Investigation[list[EvidencePart]]:
        """Remove another region of the box with every fill, and add the trials.

        A region that ends the detection is a further part of the evidence, not a control: another one is drawn.
        """
        parts: list[EvidencePart] = []
        for _ in range(MAX_FURTHER_PARTS):
            beside = region_beside(region, box, generator, excluded)
            if beside is None:
                break
            made = yield [Removal("box control", beside, fill) for fill in range(self.fill_count)]
            if any(trial.outcome == "unchanged" for trial in made):
                trials += made
                break
            parts.append(EvidencePart(beside, max(trial.score for trial in made), needed=True))
            excluded = excluded | beside
        return parts

    def _separate_parts(
        self, tried: TriedRegion, hypothesis: Hypothesis
    ) -> Investigation[tuple[TriedRegion, list[EvidencePart]]]:
        """Remove the connected parts of a region alone, and its parts inside and outside the box.

        Returns:
            The smallest part that ends the detection alone, or the region; and all parts.
        """
        region = tried.region
        inside = hypothesis.inside
        pieces = _distinct([region & inside, region & ~inside, *connected_parts(region)], region)[:MAX_PARTS]
        alone = []
        for piece in pieces:
            alone.append((yield from try_region(piece, self.fill_count, tried.map_index, hypothesis.max_score)))
        parts = [EvidencePart(each.region, each.score, each.ends) for each in alone]
        sufficient = [each for each in alone if each.ends]
        if sufficient:
            tried = min(sufficient, key=lambda each: int(each.region.sum()))
            parts = [part for part in parts if part.needed and not bool((part.region & tried.region).any())]
        return tried, parts

    def _further_parts(
        self,
        tried: TriedRegion,
        parts: Sequence[EvidencePart],
        search: RegionSearch,
        ending: Sequence[Tensor] | None,
    ) -> Investigation[list[EvidencePart]]:
        """Regions elsewhere that end the detection as well: those known to, or of the same size in the maps."""
        further: list[EvidencePart] = []
        found = _union(tried.region, parts)
        regions = (
            search.regions_outside(found, int(tried.region.sum()))
            if ending is None
            else [each for each in ending if not bool((each & found).any())]
        )
        for region in regions[:MAX_FURTHER_PARTS]:
            if any(bool((part.region & region).any()) for part in further):
                continue
            other = yield from try_region(region, self.fill_count)
            if other.ends:
                further.append(EvidencePart(region, other.score, needed=True))
        return further


def _is_confirmed(result: VerificationResult | None) -> bool:
    return result is not None and result.verdict.grade in CONFIRMED


def _better(first: VerificationResult | None, second: VerificationResult | None) -> VerificationResult | None:
    """The confirmed one of two results, else the one whose evidence ends the error, else the second."""
    if first is None or second is None:
        return second if first is None else first
    return second if (_is_confirmed(second), second.ends) >= (_is_confirmed(first), first.ends) else first


def _union(region: Tensor, parts: Sequence[EvidencePart]) -> Tensor:
    """(h, w) bool, a region and all parts."""
    return torch.stack([region, *(part.region for part in parts)]).any(0)


def _distinct(pieces: Iterable[Tensor], region: Tensor) -> list[Tensor]:
    """The pieces that are neither empty, nor small, nor nearly the region itself, nor a repetition."""
    size = int(region.sum())
    kept: list[Tensor] = []
    for piece in pieces:
        count = int(piece.sum())
        if 0.1 * size <= count <= 0.9 * size and not any(bool((piece == other).all()) for other in kept):
            kept.append(piece)
    return kept


def _without_evidence(hypothesis: Hypothesis) -> VerificationResult:
    """The result if no map has any evidence."""
    empty = torch.zeros_like(hypothesis.box)
    name = hypothesis.proposals.maps[0].name if hypothesis.proposals.maps else ""
    verdict = Verdict("not tested", float("nan"), "no region was removed: the maps are empty")
    return VerificationResult((), verdict, Proposal(name, empty.float()), empty, (), None, ends=False)
