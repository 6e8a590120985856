"""Is it really the cause? Evidence is taken away, kept alone, and compared with taking other regions away."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detcam.adapters.base import Batch
from detcam.auditing.case import Change, Outcome, Trial, Verdict
from detcam.auditing.evidence import elsewhere, strongest
from detcam.auditing.persistence import Followed
from detcam.perturbation.base import Canvas, Subject
from detcam.perturbation.fills import Fill, LinearFill, SurroundingsFill
from detcam.utils.batching import pieces

LADDER = (0.0015, 0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.2)
"""Shares of the picture that are taken away, strongest evidence first."""
UNDECIDED = 0.03
"""The share that is shown as evidence where no region of the ladder removes the error."""
RANDOM_CONTROLS = 2


@dataclass(frozen=True)
class Verified:
    """What changed pictures said of one detection.

    Attributes:
        trials: every changed picture of the evidence region and its controls.
        verdict: whether the evidence is the cause.
        reason: why, in words.
        evidence: (h, w) bool, the region, on the picture's place on the network's input.
        control: (h, w) bool, the first random region; None where there was no room.
        smallest: its share of the picture, where it removes the detection with every fill; else None.
        passes: how many changed pictures the network saw for it.
    """

    trials: tuple[Trial, ...]
    verdict: Verdict
    reason: str
    evidence: Tensor
    control: Tensor | None
    smallest: float | None
    passes: int


@dataclass(frozen=True)
class Doubt:
    """One detection of a picture whose explanation is to be verified.

    Attributes:
        name: the case's id, which seeds its random controls.
        followed: the detection.
        heat: (h, w), not negative, on the picture's place on the network's input.
        box: (h, w) bool, its box there.
    """

    name: str
    followed: Followed
    heat: Tensor
    box: Tensor


@dataclass(frozen=True)
class _Try:
    """One picture to be changed: which doubt, what is taken away, by which fill."""

    doubt: int
    change: Change
    removed: Tensor
    fill: int
    rung: int = -1


class _Ladder:
    """Looks for the smallest region without which a detection is gone, whatever takes the region's place.

    With the first fill the rungs are halved again and again, as a greater region takes away more; the other fills are
    tried where that has found a rung, and further up while they do not agree.
    """

    def __init__(self, rungs: int, fills: int) -> None:
        self.rungs, self.fills = rungs, fills
        self.answers: dict[tuple[int, int], tuple[float, Outcome]] = {}
        self._below, self._above = -1, rungs  # of the first fill: the last rung that fails, the first that removes

    def next(self) -> list[tuple[int, int]]:
        """What to try now, as (rung, fill); nothing where the search is over."""
        for rung in range(self._below + 1, self._above):
            if (rung, 0) in self.answers:
                self._below, self._above = (self._below, rung) if self._removes(rung, 0) else (rung, self._above)
        if self._above - self._below > 1:
            # The greatest region first: where it removes nothing, no smaller one is tried.
            return [((self._below + self._above) // 2 if self.answers else self.rungs - 1, 0)]
        if self.found is not None:
            return []
        for rung in range(self._above, self.rungs):
            missing = [(rung, fill) for fill in range(self.fills) if (rung, fill) not in self.answers]
            if missing:
                return missing
        return []

    @property
    def found(self) -> int | None:
        """The rung that was looked for, as far as is known."""
        whole = [rung for rung in range(self.rungs) if all(self._removes(rung, fill) for fill in range(self.fills))]
        return whole[0] if whole else None

    def _removes(self, rung: int, fill: int) -> bool:
        answer = self.answers.get((rung, fill))
        return answer is not None and answer[1] != "unchanged"


class Verifier:
    """Verifies the explanations of one picture, all of them together in batches.

    Args:
        subject: the picture for the model, inside `guarded`.
        fills: what takes the place of pixels; the error must vanish with each of them.
        ladder: shares of the picture that are tried.
    """

    def __init__(
        self,
        subject: Subject,
        fills: Sequence[Fill] | None = None,
        ladder: Sequence[float] = LADDER,
    ) -> None:
        self.subject = subject
        self.canvas = Canvas(subject)
        self.fills = tuple(fills) if fills is not None else (SurroundingsFill(), LinearFill())
        self.ladder = tuple(sorted(ladder))
        rows, columns = self.canvas.rows, self.canvas.columns
        self.picture = subject.batch.inputs[:, :, rows, columns]

    def verify(self, doubts: Sequence[Doubt]) -> list[Verified]:
        """Verify each, in rounds of changed pictures for all of them together; without doubts nothing runs."""
        if not doubts:
            return []
        regions = [strongest(doubt.heat, self.ladder) for doubt in doubts]
        ladders = [_Ladder(len(self.ladder), len(self.fills)) for _ in doubts]
        while True:
            asked = [
                _Try(number, "without evidence", regions[number][rung], fill, rung)
                for number, ladder in enumerate(ladders)
                for rung, fill in ladder.next()
            ]
            if not asked:
                break
            for one, answer in zip(asked, self._ask(doubts, asked), strict=True):
                ladders[one.doubt].answers[one.rung, one.fill] = answer
        missing = [
            _Try(number, "without evidence", regions[number][rung], fill, rung)
            for number, ladder in enumerate(ladders)
            for rung in [self._shown(ladder)]
            for fill in range(len(self.fills))
            if (rung, fill) not in ladder.answers
        ]
        compared: list[Tensor | None] = []
        follow_up: list[_Try] = []
        for number, (doubt, ladder) in enumerate(zip(doubts, ladders, strict=True)):
            region = regions[number][self._shown(ladder)]
            tries, control = self._controls(number, doubt, region, ladder.found is not None)
            follow_up += tries
            compared.append(control)
        answers = self._ask(doubts, [*missing, *follow_up])
        for one, answer in zip(missing, answers, strict=False):
            ladders[one.doubt].answers[one.rung, one.fill] = answer
        more = list(zip(follow_up, answers[len(missing) :], strict=True))
        return [
            self._conclude(ladder, regions[number], compared[number], [(t, a) for t, a in more if t.doubt == number])
            for number, ladder in enumerate(ladders)
        ]

    def _conclude(
        self,
        ladder: _Ladder,
        regions: Tensor,
        control: Tensor | None,
        more: Sequence[tuple[_Try, tuple[float, Outcome]]],
    ) -> Verified:
        rung = self._shown(ladder)
        trials = [
            Trial("without evidence", fill.name, *ladder.answers[rung, number])
            for number, fill in enumerate(self.fills)
        ]
        trials += [Trial(one.change, self.fills[one.fill].name, *answer) for one, answer in more]
        verdict, reason = judge(trials)
        share = None if ladder.found is None else float(regions[rung].float().mean())
        return Verified(tuple(trials), verdict, reason, regions[rung], control, share, len(ladder.answers) + len(more))

    def _shown(self, ladder: _Ladder) -> int:
        """The rung of the ladder that is shown as the evidence."""
        if ladder.found is not None:
            return ladder.found
        return min(range(len(self.ladder)), key=lambda i: abs(self.ladder[i] - UNDECIDED))

    def _controls(self, number: int, doubt: Doubt, region: Tensor, removes: bool) -> tuple[list[_Try], Tensor | None]:
        """The changed pictures that tell whether it was this region and no other; and the first random one."""
        seed = int.from_bytes(hashlib.sha256(doubt.name.encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        each = range(len(self.fills))
        tries = [_Try(number, "only evidence", ~region, fill) for fill in each]
        randoms = [elsewhere(region, generator) for _ in range(RANDOM_CONTROLS)]
        if removes:  # nothing has to be compared where taking the evidence away did nothing
            given = [r for r in randoms if r is not None]
            tries += [_Try(number, "random control", r, i % len(self.fills)) for i, r in enumerate(given)]
            beside = elsewhere(region, generator, inside=doubt.box)
            if beside is not None:
                tries += [_Try(number, "box control", beside, fill) for fill in each]
        return tries, next((r for r in randoms if r is not None), None)

    def _ask(self, doubts: Sequence[Doubt], tries: Sequence[_Try]) -> list[tuple[float, Outcome]]:
        """What became of each doubt's detection in its changed picture."""
        if not tries:
            return []
        answers: list[tuple[float, Outcome]] = []
        for part in pieces(len(tries), self.subject.together):
            some = tries[part]
            inputs = self.subject.batch.inputs.repeat(len(some), 1, 1, 1)
            for fill, function in enumerate(self.fills):
                rows = [row for row, each in enumerate(some) if each.fill == fill]
                if rows:
                    removed = torch.stack([some[row].removed for row in rows]).to(inputs.device)
                    inputs[rows, :, self.canvas.rows, self.canvas.columns] = function(self.picture, removed)

            def read(raw: Any, batch: Batch, some: Sequence[_Try] = some) -> Tensor:
                outputs = self.subject.adapter.outputs(raw, batch)
                answers.extend(
                    doubts[each.doubt].followed.find(output) for each, output in zip(some, outputs, strict=True)
                )
                return torch.zeros(len(some), 1)

            self.subject.score(inputs, read)
        return answers


def judge(trials: Sequence[Trial]) -> tuple[Verdict, str]:
    """The verdict on evidence, and why."""
    without = [trial for trial in trials if trial.change == "without evidence"]
    staying = [trial for trial in without if trial.outcome == "unchanged"]
    if not without:
        return "not tested", "nothing was taken away"
    if staying:
        return "unconfirmed", f"it stays without the evidence (score {staying[0].score:.2f}, {staying[0].fill})"
    controls = [trial for trial in trials if trial.change in ("random control", "box control")]
    broken = [trial for trial in controls if trial.outcome != "unchanged"]
    if broken:
        what = "a random region" if broken[0].change == "random control" else "another part of the box"
        return "unconfirmed", f"it goes as well without {what} of the same size"
    if not controls:
        return "unconfirmed", "the evidence fills the picture, so nothing of its size could be compared"
    gone = " or ".join(dict.fromkeys(trial.outcome for trial in without))
    return "confirmed", f"{gone} without the evidence, unchanged without {len(controls)} controls of the same size"
