"""Intervals and differences against a literal bootstrap and against numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from detcam.benchmarking.conclusions import make_notes, recommend
from detcam.benchmarking.statistics import MethodResult, bootstrap_interval, estimate_mean, make_rows, paired_difference

NAN = float("nan")


def rows_of(*images: list[float]) -> list[np.ndarray]:
    return [np.array(image, np.float64) for image in images]


def test_interval_equals_a_literal_bootstrap() -> None:
    values = np.array([0.3, 0.9, 0.1, 0.55, 0.7, 0.2, 0.45])
    generator = np.random.default_rng(4)
    draws = generator.integers(0, 7, (500, 7))
    means = []
    for draw in draws:
        total = 0.0
        for index in draw:
            total += values[index]
        means.append(total / 7)
    means.sort()

    def percentile(share: float) -> float:
        position = share * (len(means) - 1)
        low = math.floor(position)
        return means[low] + (position - low) * (means[min(low + 1, len(means) - 1)] - means[low])

    low, high = bootstrap_interval(values, resamples=500, seed=4)
    assert (low, high) == pytest.approx((percentile(0.025), percentile(0.975)), abs=1e-12)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile").confidence_interval
    assert bootstrap_interval(values, resamples=20000) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert all(map(math.isnan, bootstrap_interval(values[:1])))


def test_images_have_equal_weights_and_undefined_targets_are_counted() -> None:
    found = estimate_mean(rows_of([1, 1, 1, 1], [0, NAN], [NAN], []))
    assert (found.mean, found.images, found.targets, found.undefined) == (0.5, 2, 5, 2)
    assert (found.low, found.high) == (0, 1)
    nothing = estimate_mean(rows_of([NAN], []))
    assert math.isnan(nothing.mean)
    assert (nothing.images, nothing.undefined) == (0, 1)


def test_differences_use_shared_targets() -> None:
    one = rows_of([1, 5], [2, NAN], [3], [])
    other = rows_of([0, NAN], [1, 9], [1], [7])
    gap = paired_difference(one, other)
    # shared targets: 1 - 0, 2 - 1, 3 - 1
    assert gap.mean == pytest.approx(4 / 3)
    assert gap.images == 3
    assert gap.scale == pytest.approx(2)
    assert paired_difference(rows_of([NAN]), rows_of([1])).images == 0


def test_significance_needs_an_interval_without_zero_a_relevant_size_and_enough_images() -> None:
    steady = [[float(i)] for i in range(8)]
    above = [[float(i) + 1] for i in range(8)]
    barely = [[100 + float(i) + 0.01] for i in range(8)]
    hundred = [[100 + float(i)] for i in range(8)]
    mixed = [[float(i) + (-1) ** i] for i in range(8)]
    assert paired_difference(rows_of(*above), rows_of(*steady)).significant
    assert not paired_difference(rows_of(*above[:5]), rows_of(*steady[:5])).significant
    assert paired_difference(rows_of(*above[:6]), rows_of(*steady[:6])).significant
    assert not paired_difference(rows_of(*barely), rows_of(*hundred)).significant
    assert not paired_difference(rows_of(*mixed), rows_of(*steady)).significant


def outcomes() -> list[MethodResult]:
    base = np.linspace(0, 0.2, 8)
    noise = np.array([0.1, -0.1] * 4)

    def made(name: str, kind: str, values: np.ndarray, seconds: float) -> MethodResult:
        images = rows_of(*[[value] for value in values])
        return MethodResult(name, kind, {"score": images}, seconds=[seconds] * 8, passes=[seconds * 10], backward=[2])

    return [
        made("slow", "method", base + 0.8, 5.0),
        made("quick", "method", base + 0.79 + noise, 0.5),
        made("poor", "method", base + 0.1, 0.1),
        made("filled box", "control", base + 0.5, 0.0),
        made("filled box, blurred", "control", base + 0.79 - noise, 0.0),
    ]


def test_best_method_and_methods_tied_with_it() -> None:
    rows = {row.name: row for row in make_rows(outcomes(), {"score": 1})}
    assert {name for name, row in rows.items() if "score" in row.tied} == {"slow", "quick"}
    assert rows["slow"].scores["score"].mean == pytest.approx(0.9)
    assert (rows["quick"].seconds, rows["quick"].passes, rows["quick"].backward) == (0.5, 5, 2)
    lower = {row.name: row for row in make_rows(outcomes(), {"score": -1})}
    assert {name for name, row in lower.items() if "score" in row.tied} == {"poor"}


def test_notes_name_methods_worse_than_the_filled_box() -> None:
    found = outcomes()
    rows = make_rows(found, {"score": 1})
    words = make_notes(
        found, rows, {"score": 1}, ("filled box", "filled box, blurred"), unannotated={}, resamples=2000, seed=0
    )
    assert words[0] == "score: slow is best with 0.9; the difference to quick is not significant."
    assert "score: poor (-0.400 [-0.400, -0.400]) loses to the filled box (difference, 95 % interval)." in words
    assert "score: slow and quick do not differ significantly from the filled box, blurred." in words
    assert not any("slow (" in word for word in words)
    few = [MethodResult(o.name, o.kind, {"score": o.values["score"][:4]}, seconds=o.seconds) for o in found]
    words = make_notes(
        few, make_rows(few, {"score": 1}), {"score": 1}, ("filled box",), unannotated={}, resamples=100, seed=0
    )
    assert words == [
        "score: slow is best with 0.843, on 4 images: too few to distinguish methods, which takes at least 6."
    ]


def test_notes_say_where_a_control_beats_the_best_method() -> None:
    def first_note(found: list[MethodResult], sign: int = 1) -> str:
        rows = make_rows(found, {"score": sign})
        controls = ("filled box", "filled box, blurred")
        return make_notes(found, rows, {"score": sign}, controls, unannotated={}, resamples=500, seed=0)[0]

    found = [result for result in outcomes() if result.name != "slow"]
    without_quick = [result for result in found if result.name != "quick"]
    assert first_note(outcomes(), -1).startswith("score: poor is best with 0.2, significantly")
    beaten = "but the filled box, blurred is better with 0.89"
    assert first_note(without_quick) == f"score: poor reaches 0.2, {beaten}; there is no other method to compare with."
    found[0].values["score"][:] = [row - 0.1 for row in found[0].values["score"]]
    assert first_note(found) == (
        f"score: quick is the best method with 0.79, {beaten}, significantly better than every other method."
    )
    rows = make_rows(without_quick, {"score": 1})
    assert "The filled box is better with 0.6" in recommend(rows, "score", 1, "filled box")[1]


def test_cheapest_of_the_tied_methods_is_recommended() -> None:
    rows = make_rows(outcomes(), {"score": 1})
    pick, reason = recommend(rows, "score", 1, "filled box")
    assert pick.name == "quick"
    assert "no significant difference to slow, which takes 10 times as long" in reason
    assert "The filled box reaches 0.6" in reason
    with pytest.raises(ValueError, match="none can be recommended"):
        recommend([row for row in rows if row.kind == "control"], "score", 1, "filled box")


def test_cheap_method_is_not_recommended_when_few_images_hide_its_difference() -> None:
    def made(name: str, values: list[float], seconds: float) -> MethodResult:
        return MethodResult(name, "method", {"loss": rows_of(*[[value] for value in values])}, seconds=[seconds])

    rows = make_rows([made("sure", [0.1, 0.1, 0.11], 9.0), made("cheap", [0.1, 0.9, 0.1], 0.1)], {"loss": -1})
    assert all("loss" in row.tied for row in rows)
    pick, reason = recommend(rows, "loss", -1, "filled box")
    assert pick.name == "sure"
    assert reason.endswith("3 images cannot distinguish methods; use at least 6.")
