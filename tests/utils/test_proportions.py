"""Intervals of shares: known values, and their coverage in simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from detcam.utils.proportions import Rates, corrected_share, interval_center, wilson_interval


def test_share_and_interval_of_a_small_sample_are_near_those_of_wilson() -> None:
    for count, size in ((0, 10), (3, 10), (19, 50), (200, 200)):
        share, low, high = corrected_share(count, size, Rates())
        wilson = binomtest(count, size).proportion_ci(method="wilson")
        assert share == pytest.approx(count / size)
        assert low <= wilson.low + 1e-9 and high >= wilson.high - 1e-9, "never narrower"
        assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=0.05)
        assert wilson_interval(count / size, size) == pytest.approx((wilson.low, wilson.high))
        assert interval_center(count, size) == pytest.approx((wilson.low + wilson.high) / 2)
    assert np.isnan(wilson_interval(math.nan, 0)).all(), "no cases"


def test_rogan_gladen() -> None:
    share, low, high = corrected_share(40, 100, Rates(0.9, 100, 0.8, 100))
    assert share == pytest.approx((0.4 - 0.2) / 0.7)
    assert low < share < high
    assert float(corrected_share(10, 100, Rates(0.9, 100, 0.8, 100))[0]) == 0, "below the false positives of the test"
    wide = corrected_share(40, 100, Rates(0.9, 20, 0.8, 20))
    assert wide[2] - wide[1] > high - low, "less certain rates"


def test_a_whole_population_has_no_sampling_error() -> None:
    assert [float(each) for each in corrected_share(3, 10, Rates(), population=10)] == pytest.approx([0.3] * 3)
    half = corrected_share(30, 100, Rates(), population=200)
    small = corrected_share(30, 100, Rates())
    assert small[1] < half[1] < 0.3 < half[2] < small[2]
    with pytest.raises(ValueError, match="at most the population"):
        corrected_share(3, 10, Rates(), population=5)


def test_a_test_no_better_than_chance_is_refused() -> None:
    with pytest.raises(ValueError, match="better than chance"):
        Rates(0.5, 10, 0.5, 10)


@pytest.mark.parametrize("size", [50, 200])
@pytest.mark.parametrize("population", [400, math.inf])
def test_coverage_for_causes_with_shares_of_60_30_and_10_percent(size: int, population: float) -> None:
    """Each cause is recognized in 95 % of its cases, and found in 2 % of those of others; both rates are measured."""
    rng, repeats = np.random.default_rng(0), 3000
    sensitivity, specificity, measured = 0.95, 0.98, 120
    for true_share in (0.6, 0.3, 0.1):
        if math.isinf(population):
            positive = rng.binomial(size, true_share, repeats)
        else:
            of_cause = round(true_share * population)
            positive = rng.hypergeometric(of_cause, int(population) - of_cause, size, repeats)
        counts = rng.binomial(positive, sensitivity) + rng.binomial(size - positive, 1 - specificity)
        found = rng.binomial(measured, sensitivity, repeats), rng.binomial(measured, specificity, repeats)
        covered, shares = [], []
        for count, true_found, false_found in zip(counts, *found, strict=True):
            rates = Rates(true_found / measured, measured, false_found / measured, measured)
            share, low, high = corrected_share(count, size, rates, population=population)
            covered.append(low <= true_share <= high)
            shares.append(share)
        assert 0.935 <= np.mean(covered) <= 0.99, true_share
        assert np.mean(shares) == pytest.approx(true_share, abs=0.006), "unbiased"
