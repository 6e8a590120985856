"""Paired statistics of two models on the same images: bootstrap intervals and sign-flip tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DEFAULT_SIGNIFICANCE = 0.05
"""Maximum probability that any of the compared causes is called changed by chance."""
BOOTSTRAP_SAMPLES = 1000


def bootstrap_weights(images: int, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0) -> np.ndarray:
    """Return how often each image occurs in each sample of as many images with replacement.

    Returns:
        (samples, images) uint16; every row has the sum `images`.
    """
    random = np.random.default_rng(seed)
    counts = np.zeros((samples, images), dtype=np.uint16)
    for row in counts:
        row += np.bincount(random.integers(0, images, images), minlength=images).astype(np.uint16)
    return counts


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the central 95 % of bootstrap values (B,); NaN if none is defined."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_p_value(differences: np.ndarray) -> float:
    """Compute the exact two-sided p-value of a sign-flip test.

    If both models are equally prone to an error on every image, the difference of its counts on an image is as likely
    positive as negative.

    Args:
        differences: (images,) int, the count of one model minus that of the other.

    Returns:
        The probability of a sum at least as large in magnitude, in (0, 1].
    """
    sizes = np.abs(differences[differences != 0]).astype(np.int64)
    reach = int(sizes.sum())
    chances = np.zeros(2 * reach + 1)  # of the sums -reach to reach
    chances[reach] = 1.0
    for size in sizes.tolist():
        flipped = np.zeros_like(chances)
        flipped[size:] += chances[: len(chances) - size] / 2
        flipped[: len(chances) - size] += chances[size:] / 2
        chances = flipped
    observed = abs(int(differences.sum()))
    extreme = np.abs(np.arange(-reach, reach + 1)) >= observed
    return float(min(chances[extreme].sum(), 1.0))


def corrected_threshold(smallest: Sequence[float], significance: float = DEFAULT_SIGNIFICANCE) -> float:
    """Compute the threshold of p-values for several tests by Tarone's correction.

    Tests that cannot become significant, because too few images differ, do not count: the number of tests is the
    smallest m such that at most m tests can reach ``significance / m``.

    Args:
        smallest: the smallest attainable p-value of each test.
        significance: maximum probability of any false finding.
    """
    count = 1
    while sum(value <= significance / count for value in smallest) > count:
        count += 1
    return significance / count
