"""Verification of evidence by intervention: the evidence, its parts, and controls are removed from the image."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, takewhile
from typing import Protocol

import torch
from torch import Tensor

from detcam.auditing.case import CONFIRMED, PERSISTING, Intervention, Trial
from detcam.auditing.verification.evidence import control_generator, random_controls, region_beside
from detcam.auditing.verification.hypothesis import (
    EvidencePart,
    Hypothesis,
    VerificationResult,
    better_result,
    is_confirmed,
    more_effective_result,
    union,
    without_evidence,
)
from detcam.auditing.verification.interventions import (
    Criterion,
    Interventions,
    Investigation,
    Removal,
    keeping,
    remembering,
    run_investigations,
    sparing,
)
from detcam.auditing.verification.joint_removal import JOINT_NAME
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.region_probes import probe_regions
from detcam.auditing.verification.region_reduction import distinct_pixels, reduce_region, try_with_margin
from detcam.auditing.verification.region_search import (
    RegionSearch,
    TriedRegion,
    ends_error,
    try_other_fills,
    try_region,
)
from detcam.auditing.verification.removal_map import removal_map
from detcam.auditing.verification.second_boxes import may_lie_outside
from detcam.auditing.verification.surroundings import (
    SURROUNDINGS,
    SURROUNDINGS_FILLS,
    Surroundings,
    ring_around,
    with_later_fills,
)
from detcam.auditing.verification.transplants import Transplantation
from detcam.auditing.verification.verdict import (
    MAX_STRONG_FRACTION,
    MIN_WEAK_EFFECT,
    decide_verdict,
    remaining_score,
)
from detcam.perturbation.base import ImageScorer
from detcam.perturbation.fills import Fill, LinearFill, RingFill

MAX_CANDIDATES = 3
"""Maximum number of regions that are verified with controls; the search goes on while none is confirmed."""
MAX_FURTHER_PARTS = 2
"""Maximum number of further regions that are needed as well."""
MIN_CONTEXT_FRACTION = 0.008
"""Minimum fraction of the image that the region outside the box covers which is tried as a further part."""
MAX_CONFUSION_TRIALS = 8
"""Number of perturbed images from which on the maps are not searched further for a region that changes the class."""
MAX_DISTINCT = 4
"""Maximum number of regions without which the object is lost, in which the pixels with distinct colors are tried."""
BOX_CONTROL: Intervention = "box control"
NEAR_CONTROL: Intervention = "near control"
PROBES_NAME = "removal of regions"
REMOVAL_NAME = "coarse-to-fine removal"


class InvestigatedHypothesis(Protocol):
    """A hypothesis that brings its own investigation, such as one about a missed object."""

    @property
    def criterion(self) -> Criterion:
        """Decides whether the error persists."""
        ...

    @property
    def transplantation(self) -> Transplantation | None:
        """What is tried if no region is confirmed."""
        ...

    def investigate(self, fill_count: int) -> Investigation[VerificationResult]:
        """Test regions, each with `fill_count` fills."""
        ...


class Verifier:
    """Verifies the hypotheses of one image.

    Args:
        scorer: the image, prepared for the model; must be used within `detcam.trace.guarded`.
        fills: replacements of removed pixels; the error must end with each of them. The search leaves most regions
            after the first one, which should be the fastest. None takes the mean of a ring and linear imputation.
    """

    def __init__(self, scorer: ImageScorer, fills: Sequence[Fill] | None = None) -> None:
        fills = fills if fills is not None else (RingFill(), LinearFill())
        self.interventions = Interventions(scorer, (*fills, *SURROUNDINGS_FILLS))
        self.fill_count = len(fills)
        self._image = self.interventions.area.image[0].cpu().float()

    def verify(self, hypotheses: Sequence[Hypothesis | InvestigatedHypothesis]) -> list[VerificationResult]:
        """Verify each hypothesis; without hypotheses no forward pass runs."""
        return verify_together([(self, hypotheses)])[0]

    def investigate(self, hypothesis: Hypothesis | InvestigatedHypothesis) -> Investigation[VerificationResult]:
        """The procedure that verifies a hypothesis."""
        if not isinstance(hypothesis, Hypothesis):
            return remembering(self._investigate_missed(hypothesis))
        investigation = self._investigate(hypothesis)
        # Of a claim about what lies outside alone, nothing inside is removed, no margin of a region either.
        return remembering(keeping(investigation, hypothesis.inside) if hypothesis.is_outside else investigation)

    def _investigate_missed(self, hypothesis: InvestigatedHypothesis) -> Investigation[VerificationResult]:
        """Remove regions, and transplant surroundings if none is confirmed."""
        result = yield from hypothesis.investigate(self.fill_count)
        if is_confirmed(result) or hypothesis.transplantation is None:
            return result
        return (yield from hypothesis.transplantation.investigate(result, self.interventions))

    def _investigate(self, hypothesis: Hypothesis) -> Investigation[VerificationResult]:
        """Verify the proposals of one proposer after another until a region is confirmed.

        The maps are searched for their smallest region. Then single regions are removed: all of them if the maps have
        none, else those that are denser and half as large; one that ends the error is verified first. Coarse-to-fine
        removal comes last. Of a confusion, regions without which the object has another class are searched before.
        """
        best: VerificationResult | None = None
        if hypothesis.is_confusion:
            best = yield from self._verify_confusion(hypothesis)
            if best is not None and is_confirmed(best):
                return best
            hypothesis = hypothesis.without_confusion()
        if hypothesis.is_second:
            outside = hypothesis.outside()
            strongest = self._search(outside, outside.proposals.maps).first_regions()
            if (yield from may_lie_outside(outside, strongest, self.fill_count)):
                # The regions of maps are coarse, and those of spots have a margin: either may reach inside.
                best = yield from sparing(self._verify_proposals(outside), outside.inside)
            if best is not None and is_confirmed(best):
                return best
            hypothesis = hypothesis.without_outside()
        best = better_result(best, (yield from self._verify_proposals(hypothesis)))
        return best if best is not None else without_evidence(hypothesis)

    def _verify_proposals(self, hypothesis: Hypothesis) -> Investigation[VerificationResult | None]:
        """Verify the smallest region of the maps, regions that are removed one by one, then coarse-to-fine removal."""
        best: VerificationResult | None = None
        maps, probes = hypothesis.proposals.maps, hypothesis.proposals.probes
        search = self._search(hypothesis, maps)
        found = yield from search.next_region()
        further: list[TriedRegion] | None = None
        if probes is not None:
            left_out: list[Tensor] = []
            if found is not None:
                probes, left_out = probes.split(found.region)
            heatmap, ending = yield from probe_regions(probes, hypothesis.score, hypothesis.box, hypothesis.ends)
            # Regions outside the box may be needed as well, and are no parts of the object.
            outside = [each for each in left_out if not bool((each & hypothesis.inside).any())]
            further = [*ending, *(TriedRegion(-1, each, (), ends=False) for each in outside)]
            probed = Proposal(PROBES_NAME, heatmap)
            result = yield from self._verify_probed(hypothesis, probed, search, ending, further)
            best = better_result(best, result)
        if not is_confirmed(best) and maps:
            result = yield from self._verify(hypothesis, maps, search, found, further)
            best = better_result(best, result)
        if not is_confirmed(best) and hypothesis.segments is not None:
            kept, keeps = (hypothesis.inside, True) if hypothesis.is_outside else (hypothesis.box, False)
            heatmap = yield from removal_map(hypothesis.segments(), kept, hypothesis.score, keeps_box=keeps)
            proposals = [Proposal(REMOVAL_NAME, heatmap)]
            result = yield from self._verify(hypothesis, proposals, self._search(hypothesis, proposals), None, None)
            best = better_result(best, result)
        return best

    def _verify_confusion(self, hypothesis: Hypothesis) -> Investigation[VerificationResult | None]:
        """Verify regions without which the object has another class: single ones, then the smallest of the maps.

        Without maps, coarse-to-fine removal makes one. If none is confirmed, details of the regions without which the
        object is lost are removed; then the light around the box is evened, and the surroundings are removed, with
        fills that do not paint them again.
        """
        best: VerificationResult | None = None
        max_fraction = 1.0
        maps, probes = hypothesis.proposals.maps, hypothesis.proposals.probes
        if not maps and probes is None and hypothesis.segments is not None:
            segments = hypothesis.segments()
            heatmap = yield from removal_map(segments, hypothesis.box, hypothesis.score, hypothesis.is_control)
            maps = [Proposal(REMOVAL_NAME, heatmap)]
            hypothesis = replace(hypothesis, proposals=Proposals(maps))
            max_fraction = MAX_STRONG_FRACTION  # the surroundings are smaller
        search = self._search(hypothesis, maps, MAX_CONFUSION_TRIALS)
        while probes is not None and len(probes.regions):
            heatmap, ending = yield from probe_regions(probes, hypothesis.score, hypothesis.box, hypothesis.ends)
            ending.sort(key=lambda each: round(each.score / hypothesis.score, 1))
            result = yield from self._verify_probed(hypothesis, Proposal(PROBES_NAME, heatmap), search, ending, ending)
            best = better_result(best, result)
            if is_confirmed(best):
                return best
            # Without an ending, the other regions were among those that were removed together.
            probes = probes.following() if ending else None
        found = yield from search.next_region()
        if found is not None and float(found.region.float().mean()) < max_fraction:
            result = yield from self._verify(hypothesis, maps, search, found, [])
            best = better_result(best, result)
        if not is_confirmed(best):
            best = better_result(best, (yield from self._verify_details(hypothesis, search)))
        for surroundings in SURROUNDINGS:
            if not is_confirmed(best):
                best = better_result(best, (yield from self._verify_surroundings(hypothesis, surroundings)))
        return best

    def _verify_details(self, hypothesis: Hypothesis, search: RegionSearch) -> Investigation[VerificationResult | None]:
        """Verify the pixels of distinct colors in regions of the maps without which the object is lost."""
        too_large = [
            each for each in search.tried.values() if each.trials[-1].outcome not in PERSISTING and not each.ends
        ]
        too_large.sort(key=lambda each: int(each.region.sum()))
        for each in too_large[:MAX_DISTINCT]:
            details = distinct_pixels(each.region, self._image)
            tried = yield from try_region(details, self.fill_count, each.map_index, hypothesis.ends)
            if tried.ends:
                proposal = hypothesis.proposals.maps[each.map_index]
                return (yield from self._verify_region(hypothesis, proposal, tried, search, []))
        return None

    def _verify_surroundings(
        self, hypothesis: Hypothesis, surroundings: Surroundings
    ) -> Investigation[VerificationResult | None]:
        """Verify the surroundings of the box with their own fills, which follow those of the verifier."""
        before = takewhile(lambda each: each is not surroundings, SURROUNDINGS)
        first = self.fill_count + sum(len(each.fills) for each in before)
        other = copy.copy(self)
        other.fill_count = len(surroundings.fills)
        return (yield from with_later_fills(other._verify_changed(hypothesis, surroundings), first))

    def _verify_changed(
        self, hypothesis: Hypothesis, surroundings: Surroundings
    ) -> Investigation[VerificationResult | None]:
        """Verify the surroundings of the box; None if the error does not end with another light, or without them."""
        proposal, regions = surroundings.propose(hypothesis, self._image)
        found = None
        for region in regions:
            tried = yield from try_region(region, self.fill_count, ends=hypothesis.ends)
            if not tried.ends:
                break
            found = tried
        if found is None:
            return None
        limited = replace(hypothesis, limits=(*hypothesis.limits, surroundings.limit))
        return (yield from self._verify_region(limited, proposal, found, self._search(hypothesis, []), []))

    def _search(
        self, hypothesis: Hypothesis, proposals: Sequence[Proposal], max_trials: int | None = None
    ) -> RegionSearch:
        maps = [each.heatmap for each in proposals]
        limit = hypothesis.max_trials if max_trials is None else max_trials
        return RegionSearch(maps, hypothesis.box, self.fill_count, ends=hypothesis.ends, max_trials=limit)

    def _verify_probed(
        self,
        hypothesis: Hypothesis,
        proposal: Proposal,
        search: RegionSearch,
        ending: Sequence[TriedRegion],
        further: Sequence[TriedRegion],
    ) -> Investigation[VerificationResult | None]:
        """The first confirmed one of regions that end the error with the first fill, or the best attempt."""
        best: VerificationResult | None = None
        for each in ending[:MAX_CANDIDATES]:
            tried = yield from try_with_margin(each, torch.ones_like(each.region), self.fill_count, hypothesis.ends)
            if tried.ends:
                result = yield from self._verify_region(hypothesis, proposal, tried, search, further)
                best = more_effective_result(best, result)
                if is_confirmed(result):
                    break
        return best

    def _verify(
        self,
        hypothesis: Hypothesis,
        proposals: Sequence[Proposal],
        search: RegionSearch,
        found: TriedRegion | None,
        further: Sequence[TriedRegion] | None,
    ) -> Investigation[VerificationResult | None]:
        """The first confirmed region of some proposals, or the best attempt; None if all maps are empty.

        `found` is the smallest region that the search has found already, None before its start. `further` are regions
        that may be further parts of the evidence, with the trials of those that end the error with the first fill; with
        None, further parts are searched in the maps.
        """
        best: VerificationResult | None = None
        for _ in range(MAX_CANDIDATES):
            found = found or (yield from search.next_region())
            if found is None:
                break
            result = yield from self._verify_region(hypothesis, proposals[found.map_index], found, search, further)
            best = more_effective_result(best, result)
            if is_confirmed(result):
                break
            found = None
        attempt = search.strongest_attempt()
        if best is None and attempt is not None:
            # The search leaves a region after the first fill without much effect: it may end the error all the same.
            attempt = yield from try_other_fills(attempt, self.fill_count)
            best = yield from self._verify_region(hypothesis, proposals[attempt.map_index], attempt, search, further)
        return best

    def _verify_region(
        self,
        hypothesis: Hypothesis,
        proposal: Proposal,
        tried: TriedRegion,
        search: RegionSearch,
        further: Sequence[TriedRegion] | None,
    ) -> Investigation[VerificationResult]:
        """Reduce a region that ends the error to the part that is needed, find further parts, and run the controls."""
        if not tried.ends:
            fraction, lost_reason = float(tried.region.float().mean()), hypothesis.criterion.lost_reason
            verdict = decide_verdict(hypothesis.score, tried.trials, fraction, lost_reason=lost_reason)
            result = VerificationResult(tried.trials, verdict, proposal, tried.region, (), None, ends=False)
            return self._conclude(hypothesis, result)
        # Spots have no shape of their own; the regions of maps have.
        image = self._image if proposal.name in (PROBES_NAME, JOINT_NAME) else None
        tried, parts = yield from reduce_region(tried, proposal, hypothesis, self.fill_count, image)
        # Pixels that are kept are no part of what was removed, and a control that had some would be smaller.
        area = tried.region if hypothesis.kept is None else tried.region & ~hypothesis.kept
        size = float(area.float().mean())
        # Regions that end the error as well are no controls.
        known = [each.region for each in further or () if each.trials and not bool((each.region & area).any())]
        excluded = torch.stack([union(area, parts), *known]).any(0)
        generator = control_generator(hypothesis.case_id)
        random_regions = random_controls(area, generator, excluded, hypothesis.kept)
        trials = [*tried.trials]
        beside = yield from self._box_controls(area, excluded, hypothesis, generator, trials)
        parts += beside
        if not self._is_refused(hypothesis, trials):
            trials += yield [
                Removal("random control", each, index % self.fill_count) for index, each in enumerate(random_regions)
            ]
        compared = [each for each in trials if each.intervention == "without evidence" or hypothesis.is_control(each)]
        limits = hypothesis.limits_of(tried.trials)
        verdict = decide_verdict(
            hypothesis.score,
            compared,
            size,
            parts_needed=len(beside),
            limits=limits,
            is_outside=hypothesis.is_outside,
        )
        control = random_regions[0] if random_regions else None
        result = VerificationResult(tuple(trials), verdict, proposal, area, tuple(parts), control, ends=True)
        concluded = self._conclude(hypothesis, result)
        if verdict.grade in CONFIRMED:
            parts += yield from self._further_parts(tried, parts, hypothesis, search, further)
            concluded = self._conclude(hypothesis, replace(result, parts=tuple(parts)))
        return concluded

    def _conclude(self, hypothesis: Hypothesis, result: VerificationResult) -> VerificationResult:
        """The result, without what is never removed if the claim is about what lies outside alone."""
        return result.without(hypothesis.inside) if hypothesis.is_outside else result

    def _box_controls(
        self,
        region: Tensor,
        excluded: Tensor,
        hypothesis: Hypothesis,
        generator: torch.Generator,
        trials: list[Trial],
    ) -> Investigation[list[EvidencePart]]:
        """Remove another region of the box, or around it, with every fill, and add the trials.

        A region that ends the error is a further part of the evidence, not a control: another one is drawn.
        """
        parts: list[EvidencePart] = []
        area, kind = hypothesis.box, BOX_CONTROL
        if hypothesis.is_outside:
            area, kind = ring_around(hypothesis), NEAR_CONTROL
        for _ in range(MAX_FURTHER_PARTS):
            beside = region_beside(region, area, generator, excluded)
            if beside is None:
                break
            made = yield [Removal(kind, beside)]
            if not self._is_refused(hypothesis, [*trials, *made]):
                made += yield [Removal(kind, beside, fill) for fill in range(1, self.fill_count)]
            if any(trial.outcome == "unchanged" for trial in made):
                trials += made
                break
            if all(hypothesis.is_control(trial) for trial in made):
                parts.append(EvidencePart(beside, max(trial.score for trial in made), needed=True))
            excluded = excluded | beside
        return parts

    def _is_refused(self, hypothesis: Hypothesis, trials: Sequence[Trial]) -> bool:
        """Whether a control costs so much, and the error persists without it, that other controls change no verdict."""
        kinds = (BOX_CONTROL, NEAR_CONTROL)
        controls = [each for each in trials if each.intervention in kinds and hypothesis.is_control(each)]
        if not any(each.outcome == "unchanged" for each in controls):
            return False
        highest = max(remaining_score(each) for each in trials if each.intervention == "without evidence")
        lowest = min(remaining_score(each) for each in controls)
        return lowest - highest < MIN_WEAK_EFFECT * hypothesis.score

    def _further_parts(
        self,
        tried: TriedRegion,
        parts: Sequence[EvidencePart],
        hypothesis: Hypothesis,
        search: RegionSearch,
        further: Sequence[TriedRegion] | None,
    ) -> Investigation[list[EvidencePart]]:
        """Regions elsewhere that end the detection as well: given ones, or the strongest of the maps.

        If none is given, the strongest region outside the box is tried. If none ends it alone, all of them are removed
        together, since they may replace one another.
        """
        found = union(tried.region, parts)
        ends = ends_error if not hypothesis.is_confusion else hypothesis.ends
        candidates = [each for each in further or () if not bool((each.region & found).any())]
        if not candidates and not hypothesis.is_confusion:
            size = int(tried.region.sum())
            regions = search.regions_outside(found, size)[:MAX_FURTHER_PARTS]
            if further is not None:
                size = max(size, round(MIN_CONTEXT_FRACTION * found.numel()))
                regions = search.regions_outside(found | hypothesis.inside, size)[:1]
            candidates = [TriedRegion(-1, region, (), ends=False) for region in regions]
        ending: list[EvidencePart] = []
        for candidate in candidates:
            if any(bool((part.region & candidate.region).any()) for part in ending):
                continue
            other = yield from try_other_fills(candidate, self.fill_count, ends)
            if other.ends:
                ending.append(EvidencePart(other.region, other.score, needed=True))
            if len(ending) == MAX_FURTHER_PARTS:
                break
        if not ending and len(candidates) > 1:
            together = torch.stack([each.region for each in candidates]).any(0)
            other = yield from try_region(together, self.fill_count, ends=ends)
            if other.ends:
                ending.append(EvidencePart(other.region, other.score, needed=True))
        return ending


def verify_together(
    images: Sequence[tuple[Verifier, Sequence[Hypothesis | InvestigatedHypothesis]]],
) -> list[list[VerificationResult]]:
    """Verify the hypotheses of several images together, in batches of perturbed images."""
    together = [
        (verifier.interventions, verifier.investigate(each), each.criterion)
        for verifier, hypotheses in images
        for each in hypotheses
    ]
    results = iter(run_investigations(together))
    return [
        [replace(result, forward_passes=count) for result, count in islice(results, len(hypotheses))]
        for _, hypotheses in images
    ]
