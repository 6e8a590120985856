"""Verification of evidence by intervention: the evidence, and control regions, are removed from the image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detcam.adapters.base import Batch
from detcam.auditing.case import Intervention, Outcome, Trial, Verdict
from detcam.auditing.evidence import move_region, region_beside, strongest_regions
from detcam.auditing.persistence import PersistenceCriterion
from detcam.perturbation.base import ImageArea, ImageScorer
from detcam.perturbation.fills import Fill, LinearFill, SurroundingsFill
from detcam.utils.batching import batch_slices

REGION_SIZES = (0.0015, 0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.2)
"""Fractions of the image that are removed, strongest evidence first."""
DEFAULT_REGION_SIZE = 0.03
"""Fraction of the image shown as evidence if no region size removes the error; the nearest of `REGION_SIZES`."""
RANDOM_CONTROLS = 2
"""Number of random control regions."""


@dataclass(frozen=True)
class Hypothesis:
    """The claim that a heatmap shows the cause of a detection.

    Attributes:
        case_id: id of the case, the seed of its random controls.
        criterion: decides whether the detection persists.
        heatmap: (h, w), >= 0, over the area of the network's input that the image covers.
        box: (h, w) bool, the predicted box in that area.
    """

    case_id: str
    criterion: PersistenceCriterion
    heatmap: Tensor
    box: Tensor


@dataclass(frozen=True)
class VerificationResult:
    """Result of the verification of one hypothesis.

    Attributes:
        trials: the perturbed images of the evidence region and of its controls.
        verdict: whether the evidence is confirmed as the cause.
        reason: the reason for the verdict.
        evidence: (h, w) bool, the evidence region, over the area of the network's input that the image covers.
        control: (h, w) bool, the first random control region; None if no position was free.
        minimal_region_fraction: fraction of the image that the evidence region covers, if its removal ends the error
            with every fill; else None.
        forward_passes: number of perturbed images.
    """

    trials: tuple[Trial, ...]
    verdict: Verdict
    reason: str
    evidence: Tensor
    control: Tensor | None
    minimal_region_fraction: float | None
    forward_passes: int


@dataclass(frozen=True)
class _Perturbation:
    """A perturbed image: index of its hypothesis, intervention, filled region, index of the fill, and region size."""

    hypothesis: int
    intervention: Intervention
    region: Tensor
    fill: int
    size_index: int = -1


class RegionSizeSearch:
    """Binary search for the smallest region whose removal ends an error with every fill.

    The search assumes that a larger region removes more. It bisects the sizes with the first fill, tries the other
    fills at the size found, and larger sizes while the fills disagree.

    Args:
        size_count: number of region sizes, in increasing order.
        fill_count: number of fills.

    Attributes:
        results: score and outcome by size index and fill index.
    """

    def __init__(self, size_count: int, fill_count: int) -> None:
        self.size_count, self.fill_count = size_count, fill_count
        self.results: dict[tuple[int, int], tuple[float, Outcome]] = {}
        self._too_small, self._sufficient = -1, size_count  # with the first fill

    def next_trials(self) -> list[tuple[int, int]]:
        """The (size index, fill index) pairs to try next; empty if the search is finished."""
        for size_index in range(self._too_small + 1, self._sufficient):
            if (size_index, 0) in self.results:
                if self._removes(size_index, 0):
                    self._sufficient = size_index
                else:
                    self._too_small = size_index
        if self._sufficient - self._too_small > 1:
            # The largest region comes first: if it removes nothing, no smaller one is tried.
            middle = (self._too_small + self._sufficient) // 2
            return [(middle if self.results else self.size_count - 1, 0)]
        if self.minimal_index is not None:
            return []
        for size_index in range(self._sufficient, self.size_count):
            pairs = [(size_index, fill) for fill in range(self.fill_count)]
            missing = [pair for pair in pairs if pair not in self.results]
            if missing:
                return missing
        return []

    @property
    def minimal_index(self) -> int | None:
        """Index of the smallest tried region size that ends the error with every fill, or None."""
        for size_index in range(self.size_count):
            if all(self._removes(size_index, fill) for fill in range(self.fill_count)):
                return size_index
        return None

    def _removes(self, size_index: int, fill: int) -> bool:
        result = self.results.get((size_index, fill))
        return result is not None and result[1] != "unchanged"


class Verifier:
    """Verifies the hypotheses of one image together, in batches of perturbed images.

    Args:
        scorer: the image, prepared for the model; must be used within `detcam.trace.guarded`.
        fills: replacements of removed pixels; the error must end with each of them. None takes a blur of the
            surroundings and linear imputation.
        region_sizes: fractions of the image to try.
    """

    def __init__(
        self, scorer: ImageScorer, fills: Sequence[Fill] | None = None, region_sizes: Sequence[float] = REGION_SIZES
    ) -> None:
        self.scorer = scorer
        self.area = ImageArea(scorer)
        self.fills = tuple(fills) if fills is not None else (SurroundingsFill(), LinearFill())
        self.region_sizes = tuple(sorted(region_sizes))

    def verify(self, hypotheses: Sequence[Hypothesis]) -> list[VerificationResult]:
        """Verify each hypothesis; without hypotheses no forward pass runs."""
        if not hypotheses:
            return []
        regions = [strongest_regions(hypothesis.heatmap, self.region_sizes) for hypothesis in hypotheses]
        searches = [RegionSizeSearch(len(self.region_sizes), len(self.fills)) for _ in hypotheses]
        while perturbations := [
            _Perturbation(number, "without evidence", regions[number][size_index], fill, size_index)
            for number, search in enumerate(searches)
            for size_index, fill in search.next_trials()
        ]:
            self._record(searches, perturbations, self._run(hypotheses, perturbations))
        return self._verify_regions(hypotheses, searches, regions)

    def _verify_regions(
        self, hypotheses: Sequence[Hypothesis], searches: Sequence[RegionSizeSearch], regions: Sequence[Tensor]
    ) -> list[VerificationResult]:
        """Run the missing trials and the controls of the regions that the searches found."""
        missing: list[_Perturbation] = []
        controls: list[_Perturbation] = []
        random_regions: list[Tensor | None] = []
        for number, (hypothesis, search) in enumerate(zip(hypotheses, searches, strict=True)):
            size_index = self._evidence_index(search)
            region = regions[number][size_index]
            missing += [
                _Perturbation(number, "without evidence", region, fill, size_index)
                for fill in range(len(self.fills))
                if (size_index, fill) not in search.results
            ]
            perturbations, random_region = self._controls(number, hypothesis, region, search)
            controls += perturbations
            random_regions.append(random_region)
        results = self._run(hypotheses, [*missing, *controls])
        self._record(searches, missing, results[: len(missing)])
        control_trials: list[list[Trial]] = [[] for _ in hypotheses]
        for perturbation, result in zip(controls, results[len(missing) :], strict=True):
            trial = Trial(perturbation.intervention, self.fills[perturbation.fill].name, *result)
            control_trials[perturbation.hypothesis].append(trial)
        return [
            self._result(search, regions[number], random_regions[number], control_trials[number])
            for number, search in enumerate(searches)
        ]

    def _record(
        self,
        searches: Sequence[RegionSizeSearch],
        perturbations: Sequence[_Perturbation],
        results: Sequence[tuple[float, Outcome]],
    ) -> None:
        for each, result in zip(perturbations, results, strict=True):
            searches[each.hypothesis].results[each.size_index, each.fill] = result

    def _result(
        self, search: RegionSizeSearch, regions: Tensor, control: Tensor | None, control_trials: Sequence[Trial]
    ) -> VerificationResult:
        size_index = self._evidence_index(search)
        trials = [
            Trial("without evidence", fill.name, *search.results[size_index, number])
            for number, fill in enumerate(self.fills)
        ]
        trials += control_trials
        verdict, reason = decide_verdict(trials)
        evidence = regions[size_index]
        fraction = None if search.minimal_index is None else float(evidence.float().mean())
        forward_passes = len(search.results) + len(control_trials)
        return VerificationResult(tuple(trials), verdict, reason, evidence, control, fraction, forward_passes)

    def _evidence_index(self, search: RegionSizeSearch) -> int:
        """Index of the region size that is reported as the evidence."""
        if search.minimal_index is not None:
            return search.minimal_index
        sizes = self.region_sizes
        return min(range(len(sizes)), key=lambda index: abs(sizes[index] - DEFAULT_REGION_SIZE))

    def _controls(
        self, number: int, hypothesis: Hypothesis, region: Tensor, search: RegionSizeSearch
    ) -> tuple[list[_Perturbation], Tensor | None]:
        """The perturbed images that test whether the region is specific, and the first random control region."""
        seed = int.from_bytes(hashlib.sha256(hypothesis.case_id.encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        fills = range(len(self.fills))
        perturbations = [_Perturbation(number, "only evidence", ~region, fill) for fill in fills]
        drawn = [move_region(region, generator) for _ in range(RANDOM_CONTROLS)]
        random_regions = [each for each in drawn if each is not None]
        if search.minimal_index is not None:  # controls are pointless if removing the evidence has no effect
            perturbations += [
                _Perturbation(number, "random control", each, index % len(fills))
                for index, each in enumerate(random_regions)
            ]
            beside = region_beside(region, hypothesis.box, generator)
            if beside is not None:
                perturbations += [_Perturbation(number, "box control", beside, fill) for fill in fills]
        return perturbations, random_regions[0] if random_regions else None

    def _run(
        self, hypotheses: Sequence[Hypothesis], perturbations: Sequence[_Perturbation]
    ) -> list[tuple[float, Outcome]]:
        """Score and outcome of the detection in each perturbed image."""
        results: list[tuple[float, Outcome]] = []
        for part in batch_slices(len(perturbations), self.scorer.images_per_pass) if perturbations else ():
            chunk = perturbations[part]

            def evaluate(raw: Any, batch: Batch, chunk: Sequence[_Perturbation] = chunk) -> Tensor:
                outputs = self.scorer.adapter.outputs(raw, batch)
                results.extend(
                    hypotheses[each.hypothesis].criterion.evaluate(output)
                    for each, output in zip(chunk, outputs, strict=True)
                )
                return torch.zeros(len(chunk), 1)

            self.scorer.score(self._perturb(chunk), evaluate)
        return results

    def _perturb(self, perturbations: Sequence[_Perturbation]) -> Tensor:
        """The network inputs (K, C, H, W) of perturbed images."""
        inputs = self.scorer.batch.inputs.repeat(len(perturbations), 1, 1, 1)
        for number, fill in enumerate(self.fills):
            rows = [row for row, each in enumerate(perturbations) if each.fill == number]
            if rows:
                removed = torch.stack([perturbations[row].region for row in rows]).to(inputs.device)
                inputs[rows, :, self.area.rows, self.area.columns] = fill(self.area.image, removed)
        return inputs


def decide_verdict(trials: Sequence[Trial]) -> tuple[Verdict, str]:
    """Decide whether trials confirm the evidence as the cause, and give the reason."""
    without = [trial for trial in trials if trial.intervention == "without evidence"]
    if not without:
        return "not tested", "no region was removed"
    persisting = [trial for trial in without if trial.outcome == "unchanged"]
    if persisting:
        first = persisting[0]
        return "unconfirmed", f"persists without the evidence (score {first.score:.2f}, {first.fill} fill)"
    controls = [trial for trial in trials if trial.intervention in ("random control", "box control")]
    failed = [trial for trial in controls if trial.outcome != "unchanged"]
    if failed:
        random_control = failed[0].intervention == "random control"
        region = "a random region" if random_control else "another part of the box"
        return "unconfirmed", f"{failed[0].outcome} without {region} of the same size as well"
    if not controls:
        return "unconfirmed", "no control: the image has no other region of the evidence's size"
    outcomes = " or ".join(dict.fromkeys(trial.outcome for trial in without))
    return "confirmed", f"{outcomes} without the evidence, unchanged in {len(controls)} controls of the same size"
