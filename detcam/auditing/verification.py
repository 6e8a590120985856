"""Is it really the cause? Evidence is taken away, kept alone, and compared with taking other regions away."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detcam.adapters.base import Batch
from detcam.auditing.case import Intervention, Outcome, Trial, Verdict
from detcam.auditing.evidence import elsewhere, strongest
from detcam.auditing.persistence import TrackedDetection
from detcam.perturbation.base import ImageArea, ImageScorer
from detcam.perturbation.fills import Fill, LinearFill, SurroundingsFill
from detcam.utils.batching import pieces

REGION_SIZES = (0.0015, 0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.2)
"""Shares of the image that are taken away, strongest evidence first."""
UNDECIDED = 0.03
"""The share that is shown as evidence where no region of the ladder removes the error."""
RANDOM_CONTROLS = 2


@dataclass(frozen=True)
class VerificationResult:
    """What changed images said of one detection.

    Attributes:
        trials: every changed image of the evidence region and its controls.
        verdict: whether the evidence is the cause.
        reason: why, in words.
        evidence: (h, w) bool, the region, on the image's place on the network's input.
        control: (h, w) bool, the first random region; None where there was no room.
        minimal_region_fraction: its share of the image, where it removes the detection with every fill; else None.
        passes: how many changed images the network saw for it.
    """

    trials: tuple[Trial, ...]
    verdict: Verdict
    reason: str
    evidence: Tensor
    control: Tensor | None
    minimal_region_fraction: float | None
    passes: int


@dataclass(frozen=True)
class Hypothesis:
    """One detection of an image whose explanation is to be verified.

    Attributes:
        name: the case's id, which seeds its random controls.
        tracked: the detection.
        heat: (h, w), not negative, on the image's place on the network's input.
        box: (h, w) bool, its box there.
    """

    name: str
    tracked: TrackedDetection
    heat: Tensor
    box: Tensor


@dataclass(frozen=True)
class _Try:
    """One image to be changed: which doubt, what is taken away, by which fill."""

    hypothesis: int
    intervention: Intervention
    removed: Tensor
    fill: int
    size_index: int = -1


class _RegionSizeSearch:
    """Looks for the smallest region without which a detection is gone, whatever takes the region's place.

    With the first fill the rungs are halved again and again, as a greater region takes away more; the other fills are
    tried where that has found a rung, and further up while they do not agree.
    """

    def __init__(self, sizes: int, fills: int) -> None:
        self.sizes, self.fills = sizes, fills
        self.answers: dict[tuple[int, int], tuple[float, Outcome]] = {}
        self._below, self._above = -1, sizes  # of the first fill: the last rung that fails, the first that removes

    def next(self) -> list[tuple[int, int]]:
        """What to try now, as (rung, fill); nothing where the search is over."""
        for size_index in range(self._below + 1, self._above):
            if (size_index, 0) in self.answers:
                self._below, self._above = (
                    (self._below, size_index) if self._removes(size_index, 0) else (size_index, self._above)
                )
        if self._above - self._below > 1:
            # The greatest region first: where it removes nothing, no smaller one is tried.
            return [((self._below + self._above) // 2 if self.answers else self.sizes - 1, 0)]
        if self.found is not None:
            return []
        for size_index in range(self._above, self.sizes):
            missing = [(size_index, fill) for fill in range(self.fills) if (size_index, fill) not in self.answers]
            if missing:
                return missing
        return []

    @property
    def found(self) -> int | None:
        """The rung that was looked for, as far as is known."""
        whole = [
            size_index
            for size_index in range(self.sizes)
            if all(self._removes(size_index, fill) for fill in range(self.fills))
        ]
        return whole[0] if whole else None

    def _removes(self, size_index: int, fill: int) -> bool:
        answer = self.answers.get((size_index, fill))
        return answer is not None and answer[1] != "unchanged"


class Verifier:
    """Verifies the explanations of one image, all of them together in batches.

    Args:
        scorer: the image for the model, inside `guarded`.
        fills: what takes the place of pixels; the error must vanish with each of them.
        search: shares of the image that are tried.
    """

    def __init__(
        self,
        scorer: ImageScorer,
        fills: Sequence[Fill] | None = None,
        search: Sequence[float] = REGION_SIZES,
    ) -> None:
        self.scorer = scorer
        self.canvas = ImageArea(scorer)
        self.fills = tuple(fills) if fills is not None else (SurroundingsFill(), LinearFill())
        self.search = tuple(sorted(search))
        rows, columns = self.canvas.rows, self.canvas.columns
        self.image = scorer.batch.inputs[:, :, rows, columns]

    def verify(self, hypotheses: Sequence[Hypothesis]) -> list[VerificationResult]:
        """Verify each, in rounds of changed images for all of them together; without hypotheses nothing runs."""
        if not hypotheses:
            return []
        regions = [strongest(hypothesis.heat, self.search) for hypothesis in hypotheses]
        searches = [_RegionSizeSearch(len(self.search), len(self.fills)) for _ in hypotheses]
        while True:
            asked = [
                _Try(number, "without evidence", regions[number][size_index], fill, size_index)
                for number, search in enumerate(searches)
                for size_index, fill in search.next()
            ]
            if not asked:
                break
            for one, answer in zip(asked, self._ask(hypotheses, asked), strict=True):
                searches[one.hypothesis].answers[one.size_index, one.fill] = answer
        missing = [
            _Try(number, "without evidence", regions[number][size_index], fill, size_index)
            for number, search in enumerate(searches)
            for size_index in [self._shown(search)]
            for fill in range(len(self.fills))
            if (size_index, fill) not in search.answers
        ]
        compared: list[Tensor | None] = []
        follow_up: list[_Try] = []
        for number, (hypothesis, search) in enumerate(zip(hypotheses, searches, strict=True)):
            region = regions[number][self._shown(search)]
            tries, control = self._controls(number, hypothesis, region, search.found is not None)
            follow_up += tries
            compared.append(control)
        answers = self._ask(hypotheses, [*missing, *follow_up])
        for one, answer in zip(missing, answers, strict=False):
            searches[one.hypothesis].answers[one.size_index, one.fill] = answer
        more = list(zip(follow_up, answers[len(missing) :], strict=True))
        return [
            self._conclude(
                search, regions[number], compared[number], [(t, a) for t, a in more if t.hypothesis == number]
            )
            for number, search in enumerate(searches)
        ]

    def _conclude(
        self,
        search: _RegionSizeSearch,
        regions: Tensor,
        control: Tensor | None,
        more: Sequence[tuple[_Try, tuple[float, Outcome]]],
    ) -> VerificationResult:
        size_index = self._shown(search)
        trials = [
            Trial("without evidence", fill.name, *search.answers[size_index, number])
            for number, fill in enumerate(self.fills)
        ]
        trials += [Trial(one.intervention, self.fills[one.fill].name, *answer) for one, answer in more]
        verdict, reason = judge(trials)
        share = None if search.found is None else float(regions[size_index].float().mean())
        return VerificationResult(
            tuple(trials), verdict, reason, regions[size_index], control, share, len(search.answers) + len(more)
        )

    def _shown(self, search: _RegionSizeSearch) -> int:
        """The rung of the ladder that is shown as the evidence."""
        if search.found is not None:
            return search.found
        return min(range(len(self.search)), key=lambda i: abs(self.search[i] - UNDECIDED))

    def _controls(
        self, number: int, hypothesis: Hypothesis, region: Tensor, removes: bool
    ) -> tuple[list[_Try], Tensor | None]:
        """The changed images that tell whether it was this region and no other; and the first random one."""
        seed = int.from_bytes(hashlib.sha256(hypothesis.name.encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        each = range(len(self.fills))
        tries = [_Try(number, "only evidence", ~region, fill) for fill in each]
        randoms = [elsewhere(region, generator) for _ in range(RANDOM_CONTROLS)]
        if removes:  # nothing has to be compared where taking the evidence away did nothing
            given = [r for r in randoms if r is not None]
            tries += [_Try(number, "random control", r, i % len(self.fills)) for i, r in enumerate(given)]
            beside = elsewhere(region, generator, inside=hypothesis.box)
            if beside is not None:
                tries += [_Try(number, "box control", beside, fill) for fill in each]
        return tries, next((r for r in randoms if r is not None), None)

    def _ask(self, hypotheses: Sequence[Hypothesis], tries: Sequence[_Try]) -> list[tuple[float, Outcome]]:
        """What became of each doubt's detection in its changed image."""
        if not tries:
            return []
        answers: list[tuple[float, Outcome]] = []
        for part in pieces(len(tries), self.scorer.images_per_pass):
            some = tries[part]
            inputs = self.scorer.batch.inputs.repeat(len(some), 1, 1, 1)
            for fill, function in enumerate(self.fills):
                rows = [row for row, each in enumerate(some) if each.fill == fill]
                if rows:
                    removed = torch.stack([some[row].removed for row in rows]).to(inputs.device)
                    inputs[rows, :, self.canvas.rows, self.canvas.columns] = function(self.image, removed)

            def read(raw: Any, batch: Batch, some: Sequence[_Try] = some) -> Tensor:
                outputs = self.scorer.adapter.outputs(raw, batch)
                answers.extend(
                    hypotheses[each.hypothesis].tracked.find(output) for each, output in zip(some, outputs, strict=True)
                )
                return torch.zeros(len(some), 1)

            self.scorer.score(inputs, read)
        return answers


def judge(trials: Sequence[Trial]) -> tuple[Verdict, str]:
    """The verdict on evidence, and why."""
    without = [trial for trial in trials if trial.intervention == "without evidence"]
    staying = [trial for trial in without if trial.outcome == "unchanged"]
    if not without:
        return "not tested", "nothing was taken away"
    if staying:
        return "unconfirmed", f"it stays without the evidence (score {staying[0].score:.2f}, {staying[0].fill})"
    controls = [trial for trial in trials if trial.intervention in ("random control", "box control")]
    broken = [trial for trial in controls if trial.outcome != "unchanged"]
    if broken:
        what = "a random region" if broken[0].intervention == "random control" else "another part of the box"
        return "unconfirmed", f"it goes as well without {what} of the same size"
    if not controls:
        return "unconfirmed", "the evidence fills the image, so nothing of its size could be compared"
    gone = " or ".join(dict.fromkeys(trial.outcome for trial in without))
    return "confirmed", f"{gone} without the evidence, unchanged without {len(controls)} controls of the same size"
