"""Verdicts from trials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from detcam.auditing.case import Intervention, Outcome, Trial
from detcam.auditing.verification.verdict import ERROR_RATES, WRONG_CONFIRMED, WRONG_REGIONS, decide_verdict


def trial(intervention: Intervention, outcome: Outcome, fill: str = "ring", score: float | None = None) -> Trial:
    score = (0.9 if outcome == "unchanged" else 0.1) if score is None else score
    return Trial(intervention, fill, score, outcome)


GONE, BOX_CONTROL = trial("without evidence", "vanished"), trial("box control", "unchanged")


@pytest.mark.parametrize(
    ("trials", "fraction", "grade", "words"),
    [
        ([GONE, BOX_CONTROL], 0.01, "strong", "vanished without the"),
        ([trial("without evidence", "class flipped"), BOX_CONTROL], 0.01, "strong", "class flipped without"),
        ([GONE, BOX_CONTROL], 0.1, "weak", "a tenth of the image"),
        ([GONE, trial("random control", "unchanged")], 0.01, "weak", "the box has no other region"),
        ([trial("without evidence", "vanished", score=0.48), BOX_CONTROL], 0.01, "weak", "effect is small"),
        ([trial("without evidence", "vanished", score=0.8), BOX_CONTROL], 0.01, "not confirmed", "nearly as much"),
        ([trial("without evidence", "moved", score=0.9), BOX_CONTROL], 0.01, "strong", "moved without"),
        ([trial("without evidence", "unchanged"), BOX_CONTROL], 0.01, "not confirmed", "costs next to nothing"),
        ([trial("without evidence", "unchanged", score=0.6), BOX_CONTROL], 0.01, "not confirmed", "persists without"),
        ([GONE, trial("random control", "vanished"), BOX_CONTROL], 0.01, "not confirmed", "a random region"),
        ([GONE, trial("box control", "moved", score=0.9)], 0.01, "not confirmed", "another part of the box"),
        ([GONE, trial("box control", "unchanged", score=0.899), BOX_CONTROL], 0.01, "strong", "over 2 controls"),
        ([GONE], 0.01, "not confirmed", "no control"),
        ([], 0.01, "not tested", "no region was removed"),
    ],
)
def test_verdicts(trials: Sequence[Trial], fraction: float, grade: str, words: str) -> None:
    verdict = decide_verdict(0.9, trials, fraction)
    assert verdict.grade == grade and words in verdict.reason
    assert (verdict.error_rate > 0) == (grade in ("strong", "weak"))


def test_the_effect_is_the_margin_between_the_costliest_control_and_the_weakest_fill() -> None:
    trials = [
        trial("without evidence", "vanished", "linear", 0.1),
        trial("without evidence", "vanished", "ring", 0.2),
        trial("random control", "unchanged", "ring", 0.8),
        trial("box control", "unchanged", "ring", 0.7),
    ]
    assert decide_verdict(0.8, trials, 0.01).compared_controls == 2
    assert decide_verdict(0.8, trials, 0.01).effect == pytest.approx((0.7 - 0.2) / 0.8)
    verdict = decide_verdict(0.8, trials, 0.01, parts_needed=1)
    assert verdict.grade == "weak" and "other parts of the box are needed as well" in verdict.reason
    reason = decide_verdict(0.8, trials, 0.01, parts_needed=1, is_outside=True).reason
    assert "other regions beside the box are needed as well" in reason and "parts of the box" not in reason


def test_the_error_must_end_with_every_fill() -> None:
    trials = [GONE, trial("without evidence", "unchanged", "linear"), BOX_CONTROL]
    assert decide_verdict(0.9, trials, 0.01).grade == "not confirmed"


def test_stated_error_rates_are_those_of_the_documented_counts() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    text = (docs / "auditing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|\n]*\| (?:near|above)[^|\n]*\| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    regions, strong, weak = (sum(map(int, column)) for column in zip(*rows, strict=True))
    assert len(rows) == 6 and (regions, strong, weak) == (WRONG_REGIONS, *WRONG_CONFIRMED.values())
    for grade, count in WRONG_CONFIRMED.items():
        rate = (count + 1.96**2 / 2) / (regions + 1.96**2)
        assert ERROR_RATES[grade] == pytest.approx(rate, rel=1e-3)
        stated = f"{100 * rate:.1f}".removesuffix(".0")
        assert re.search(rf"^\| `{grade}` \|.*\| {stated} % \|$", text, re.MULTILINE)
    formulas = (docs / "metric-formulas.md").read_text(encoding="utf-8")
    assert f"{strong + weak} of {regions} wrong regions" in text and f"$f = {strong + weak}/{regions}$" in formulas
