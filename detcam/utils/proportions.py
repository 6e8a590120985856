"""Proportions: intervals of shares in a population, corrected by the error rates of the test that counts them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = 1.959963984540054
"""Quantile of the standard normal distribution of a two-sided 95 % interval."""

Values: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """Measured error rates of a test.

    Attributes:
        sensitivity: share of positive cases that the test finds, in [0, 1].
        sensitivity_count: number of cases that it was measured on; infinite if it is exact.
        specificity: share of negative cases that the test rejects, in [0, 1].
        specificity_count: number of cases that it was measured on; infinite if it is exact.
    """

    sensitivity: float = 1.0
    sensitivity_count: float = math.inf
    specificity: float = 1.0
    specificity_count: float = math.inf

    def __post_init__(self) -> None:
        if self.sensitivity + self.specificity <= 1:
            raise ValueError(
                "expected sensitivity + specificity above 1, for a test that is better than chance; got "
                f"{self.sensitivity} and {self.specificity}"
            )


def corrected_share(
    count: ArrayLike, size: ArrayLike, rates: Rates, *, population: ArrayLike = math.inf
) -> tuple[Values, Values, Values]:
    r"""Estimate a share from a test with errors, with a 95 % interval.

    The share is that of Rogan and Gladen, *Estimating prevalence from the results of a screening test*, 1978:
    :math:`(p + sp - 1) / (se + sp - 1)`, in [0, 1], with the share p of positive tests. The interval is that of Lang
    and Reiczigel, *Confidence limits for prevalence of disease adjusted for estimated sensitivity and specificity*,
    2014, which includes the uncertainty of the rates. With exact rates of 1 it is that of Agresti and Coull, which
    contains Wilson's. A sample without replacement counts as one of :math:`n (N - 1) / (N - n)` cases.

    Args:
        count: number of positive tests.
        size: number n of tested cases, at least 1.
        rates: error rates of the test.
        population: number N of cases that they were drawn from, without replacement.

    Returns:
        The share and the limits of its interval, in [0, 1], in the shape of the inputs.
    """
    count, size, population = (np.asarray(each, dtype=np.float64) for each in (count, size, population))
    observed = count / size
    effective = _effective_size(size, population)
    squared = Z**2
    with np.errstate(invalid="ignore"):
        centered = np.where(np.isinf(effective), observed, (observed * effective + squared / 2) / (effective + squared))
    tested = effective + squared
    sensitivity, sensitivity_variance = _smoothed(rates.sensitivity, rates.sensitivity_count)
    specificity, specificity_variance = _smoothed(rates.specificity, rates.specificity_count)
    power = sensitivity + specificity - 1
    share = (centered + specificity - 1) / power
    shift = 2 * squared * (share * sensitivity_variance - (1 - share) * specificity_variance)
    variance = centered * (1 - centered) / tested
    variance = variance + share**2 * sensitivity_variance + (1 - share) ** 2 * specificity_variance
    # In a finite population the test's positives vary about their expected number.
    limited = np.clip(share, 0, 1)
    errors = limited * sensitivity * (1 - sensitivity) + (1 - limited) * specificity * (1 - specificity)
    variance = variance + errors / population
    half = Z * np.sqrt(variance) / power
    plain = (observed + rates.specificity - 1) / (rates.sensitivity + rates.specificity - 1)
    value = np.clip(plain, 0, 1)
    low, high = np.clip(share + shift - half, 0, 1), np.clip(share + shift + half, 0, 1)
    return value, np.minimum(low, value), np.maximum(high, value)


def interval_center(count: float, size: float) -> float:
    """The center of Wilson's 95 % interval of a share. It is above 0 even if none of the cases is positive."""
    return (count + Z**2 / 2) / (size + Z**2)


def wilson_interval(share: float, size: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of independent cases; NaN without cases.

    Args:
        share: observed share, in [0, 1].
        size: number of cases.

    Example:
        >>> from detcam.utils.proportions import wilson_interval
        >>> low, high = wilson_interval(0.5, 10)
        >>> round(low, 3), round(high, 3)
        (0.237, 0.763)
    """
    if not size:
        return math.nan, math.nan
    center = interval_center(share * size, size)
    half = Z * math.sqrt(size * share * (1 - share) + Z**2 / 4) / (size + Z**2)
    return max(0.0, center - half), min(1.0, center + half)


def _effective_size(size: Values, population: Values) -> Values:
    """The size of a sample with replacement that is as precise as one without."""
    if np.any(size > population):
        raise ValueError(f"expected samples of at most the population; got {size} of {population}")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isinf(population), size, size * (population - 1) / (population - size))


def _smoothed(rate: float, count: float) -> tuple[float, float]:
    """A rate with one success and one failure added, and its variance; the rate itself and 0 if it is exact."""
    if math.isinf(count):
        return rate, 0.0
    smoothed = (count * rate + 1) / (count + 2)
    return smoothed, smoothed * (1 - smoothed) / (count + 2)
