"""Shares of the causes among all errors, from a random sample of explained ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from detcam.auditing.case import AuditCase, EvidenceKind
from detcam.auditing.grouping.inventory import CauseShare, estimate_shares
from detcam.utils.proportions import Rates
from tests.auditing.grouping.cases import make_case

EXACT = Rates()
PLAIN = make_case()


def make(kinds: Sequence[EvidenceKind | None], **options: object) -> list[AuditCase]:
    return [replace(PLAIN, id=str(number), evidence_kind=kind, **options) for number, kind in enumerate(kinds)]  # type: ignore[arg-type]


def shares_of(cases: Sequence[AuditCase], cost: float = 0.1, **options: object) -> dict[str, CauseShare]:
    """The shares of all classes by kind."""
    found = estimate_shares(cases, range(len(cases)), lambda indices: cost, **options)  # type: ignore[arg-type]
    return {share.kind: share for share in found if share.label is None}


def test_everything_explained_gives_the_shares_themselves() -> None:
    cases = make(["mark"] * 6 + ["surroundings"] * 3 + ["not confirmed"])
    cases[0] = replace(cases[0], delta_ap=0.011)
    shares = shares_of(cases, rates=EXACT)
    assert list(shares) == ["mark", "surroundings", "not confirmed"]
    mark = shares["mark"]
    assert (mark.count, mark.sample_size, mark.population_size) == (6, 10, 10) and mark.share == pytest.approx(0.6)
    assert mark.interval == pytest.approx((0.6, 0.6))
    assert [shares[kind].delta_ap for kind in shares] == pytest.approx([0.08, 0.015, 0.005]), "in proportion to costs"
    assert mark.delta_ap_interval == pytest.approx((0.08, 0.08))
    assert mark.sentence == "60 % (60 to 60) of 10 false positives rest on a mark; delta AP 0.080 (0.080 to 0.080)"


def test_shares_are_corrected_by_the_rates_of_the_verification() -> None:
    cases = make((["mark"] * 48 + ["surroundings"] * 50 + ["not confirmed"] * 2) + [None] * 1900)
    shares = shares_of(cases, rates=Rates(0.9, 100, 0.95, 100))
    assert shares["mark"].observed_share == 0.48
    assert shares["mark"].share == pytest.approx((0.48 - 0.05) / 0.85)
    assert shares["mark"].delta_ap == pytest.approx(0.1 * shares["mark"].share)
    assert shares["not confirmed"].share == pytest.approx(0.02), "not corrected"
    plain = shares_of(cases, rates=EXACT)["mark"]
    assert plain.share == pytest.approx(0.48) and plain.interval == pytest.approx((0.385, 0.577), abs=0.004), "Wilson's"
    default = shares_of(cases)["mark"]
    assert default.share < 0.48 and default.interval[0] < plain.interval[0]


def test_classes_with_enough_cases_have_shares_of_their_own() -> None:
    boats, buoys = make(["mark"] * 10 + [None] * 90), make(["mark"] * 9 + [None] * 91, label=1, name="buoy")
    found = estimate_shares([*boats, *buoys], range(200), lambda indices: 0.001 * len(indices), rates=EXACT)
    assert [(share.label, share.name, share.population_size, share.sample_size) for share in found] == [
        (None, "all classes", 200, 19),
        (0, "boat", 100, 10),
    ]
    assert found[1].sentence.startswith("100 % (70 to 100) of 100 false positives of class boat rest on a mark; delta")
    assert found[1].delta_ap == pytest.approx(0.1)
    assert found[1].delta_ap_interval == pytest.approx((0.07, 0.1), abs=0.005), "no surer than the share"


def test_errors_outside_the_population_do_not_count() -> None:
    cases = make(["mark", "mark", "surroundings", "surroundings"])
    (share,) = estimate_shares(cases, [0, 1], lambda indices: 0.1, rates=EXACT)
    assert share.kind == "mark" and share.share == pytest.approx(1)


def test_missed_objects_and_undefined_costs() -> None:
    cases = make(["surroundings", "not confirmed", None], type="missed")
    shares = estimate_shares(cases, range(3), lambda indices: 0.1, name="missed objects")
    assert all(math.isnan(share.delta_ap) for share in shares)
    assert shares[0].sentence.endswith("of 3 missed objects are detected when a region around them is removed")
    assert shares[-1].sentence.endswith("of 3 missed objects have no confirmed cause")
    undefined = estimate_shares(make(["mark", None], delta_ap=math.nan), range(2), lambda indices: math.nan)
    assert math.isnan(undefined[0].delta_ap) and "delta" not in undefined[0].sentence
    assert estimate_shares(make([None]), [0], lambda indices: 0.1) == []


def test_intervals_of_shares_and_costs_cover_the_truth() -> None:
    """500 errors with three causes in the ratio 60 to 30 to 10, of which 100 are explained."""
    kinds: list[EvidenceKind] = ["mark"] * 300 + ["surroundings"] * 150 + ["look-alike"] * 50
    rng = np.random.default_rng(0)
    costs = rng.gamma(1.0, 0.001, 500) * np.repeat([1, 2, 3], [300, 150, 50])
    cases = [replace(case, delta_ap=cost) for case, cost in zip(make(kinds), costs.tolist(), strict=True)]
    truth = {"mark": 0.6, "surroundings": 0.3, "look-alike": 0.1}
    true_cost = {kind: sum(case.delta_ap for case in cases if case.evidence_kind == kind) for kind in truth}
    covered, covered_costs = [], []
    for _ in range(60):
        chosen = set(rng.permutation(500)[:100].tolist())
        sampled = [case if index in chosen else replace(case, evidence_kind=None) for index, case in enumerate(cases)]
        for kind, share in shares_of(sampled, costs.sum(), rates=EXACT).items():
            covered.append(share.interval[0] <= truth[kind] <= share.interval[1])
            low, high = share.delta_ap_interval
            covered_costs.append(low <= true_cost[kind] <= high)
    assert np.mean(covered) >= 0.93 and 0.9 <= np.mean(covered_costs)
