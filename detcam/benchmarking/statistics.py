"""Means, bootstrap intervals and paired differences of metric values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 2000
MIN_IMAGES = 6
"""Fewest images for a significant difference: five differences of one sign occur by chance once in sixteen times."""
MIN_RELATIVE_DIFFERENCE = 1e-3
"""Smallest significant difference, as a share of the greater of the two means."""
MIN_COVERAGE = 0.8
"""Fewest targets with a value for a comparison, as a share of the targets of the method that has the most."""

Values = Sequence[np.ndarray]
"""Per image, (N_i,) float64: one value per target, NaN if it is undefined."""


@dataclass(frozen=True)
class Estimate:
    """A mean over images of the mean over each image's targets.

    Attributes:
        mean: NaN if no target has a value.
        low: lower bound of the 95 % bootstrap interval over images; NaN for fewer than two images.
        high: upper bound.
        images: number of images with a value.
        targets: number of targets with a value.
        undefined: number of targets without a value in the explained images.
    """

    mean: float
    low: float
    high: float
    images: int
    targets: int
    undefined: int


@dataclass(frozen=True)
class Row:
    """One row of a benchmark: a method or a control.

    Attributes:
        name: name of the method or control.
        kind: ``method`` or ``control``.
        scores: mapping from metric to its estimate.
        tied: metrics by which the method is the best or does not differ significantly from the best.
        passes: computing work for the targets of one image, in units of one prediction; NaN for controls.
        backward: number of autograd calls for the targets of one image; NaN for controls.
        seconds: median time over images for the targets of one image.
        peak_mib: greatest memory increase over images, in MiB; NaN if it is unknown.
        failed: number of images on which the method failed.
    """

    name: str
    kind: Literal["method", "control"]
    scores: Mapping[str, Estimate]
    tied: frozenset[str]
    passes: float
    backward: float
    seconds: float
    peak_mib: float
    failed: int


@dataclass(frozen=True)
class Difference:
    """The mean difference of two methods over the same targets, the first minus the second.

    Attributes:
        mean: NaN if the methods share no target with a value.
        low: lower bound of the 95 % paired bootstrap interval over images; NaN for fewer than two images.
        high: upper bound.
        images: number of shared images.
        scale: magnitude of the greater of the two means.
    """

    mean: float
    low: float
    high: float
    images: int
    scale: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0, with at least `MIN_IMAGES` images and a relevant size of the difference.

        No correction is made for multiple comparisons.
        """
        excludes_zero = self.images >= MIN_IMAGES and (self.low > 0 or self.high < 0)
        return excludes_zero and abs(self.mean) > MIN_RELATIVE_DIFFERENCE * self.scale


@dataclass(frozen=True)
class MethodResult:
    """The measurements of one method or control.

    Attributes:
        name: name of the method or control.
        kind: ``method`` or ``control``.
        values: mapping from metric to values per explained image.
        passes: computing work per image, for the images on which it was counted.
        backward: autograd calls per image, for the images on which they were counted.
        seconds: time per image.
        peak_mib: memory increase per image, for the images with a known one.
        errors: mapping from image name to error message.
        warnings: class names of the warnings, without duplicates.
    """

    name: str
    kind: Literal["method", "control"]
    values: Mapping[str, Values]
    passes: Sequence[float] = ()
    backward: Sequence[float] = ()
    seconds: Sequence[float] = ()
    peak_mib: Sequence[float] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def bootstrap_interval(values: np.ndarray, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Compute the 95 % percentile bootstrap interval of a mean.

    Efron, *Bootstrap Methods: Another Look at the Jackknife*, Annals of Statistics 1979.

    Args:
        values: (n,) finite values, one per image.
        resamples: number of resamples of the n values, drawn with replacement.
        seed: seed of the draws, which depend only on it and on n; the rows of a table share them.

    Returns:
        Lower and upper bound; NaN for fewer than two values.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    means = values[drawn].mean(1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def estimate_mean(values: Values, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0) -> Estimate:
    """Estimate the mean over images. The interval resamples images, since targets of one image are correlated."""
    known = [row[np.isfinite(row)] for row in values]
    means = np.array([row.mean() for row in known if len(row)])
    targets = sum(len(row) for row in known)
    undefined = sum(len(row) for row in values) - targets
    if not len(means):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, 0, undefined)
    low, high = bootstrap_interval(means, resamples=resamples, seed=seed)
    return Estimate(float(means.mean()), low, high, len(means), targets, undefined)


def paired_difference(
    first: Values, second: Values, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> Difference:
    """Compute the mean difference over the targets with a value in both; both are of the same images in order."""
    pairs = []
    for first_values, second_values in zip(first, second, strict=True):
        if not len(first_values) or not len(second_values):
            continue
        both = np.isfinite(first_values) & np.isfinite(second_values)
        if both.any():
            pairs.append((first_values[both].mean(), second_values[both].mean()))
    if not pairs:
        return Difference(float("nan"), float("nan"), float("nan"), 0, float("nan"))
    means = np.array(pairs)
    differences = means[:, 0] - means[:, 1]
    low, high = bootstrap_interval(differences, resamples=resamples, seed=seed)
    return Difference(float(differences.mean()), low, high, len(differences), float(np.abs(means.mean(0)).max()))


def make_rows(
    method_results: Sequence[MethodResult],
    signs: Mapping[str, int],
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """Summarize measurements as the rows of a table.

    Args:
        method_results: measurements of the same images in the same order; an image on which a method failed has values
            of shape (0,).
        signs: mapping from metric to 1 if higher is better, else -1.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
    """
    scores = {
        result.name: {metric: estimate_mean(result.values[metric], resamples=resamples, seed=seed) for metric in signs}
        for result in method_results
    }
    tied: dict[str, set[str]] = {result.name: set() for result in method_results}
    for metric, sign in signs.items():
        best = best_method(method_results, scores, metric, sign, resamples=resamples, seed=seed)
        if best is None:
            continue
        for result in comparable_methods(method_results, scores, metric):
            lead = paired_difference(best.values[metric], result.values[metric], resamples=resamples, seed=seed)
            if result is best or not lead.significant:
                tied[result.name].add(metric)
    return [
        Row(
            result.name,
            result.kind,
            scores[result.name],
            frozenset(tied[result.name]),
            _mean(result.passes),
            _mean(result.backward),
            float(np.median(result.seconds)) if len(result.seconds) else float("nan"),
            max(result.peak_mib, default=float("nan")),
            len(result.errors),
        )
        for result in method_results
    ]


def comparable_methods(
    method_results: Sequence[MethodResult], scores: Mapping[str, Mapping[str, Estimate]], metric: str
) -> list[MethodResult]:
    """Select the methods with values of enough targets: a mean over few remaining targets is not comparable."""
    measured = [
        result for result in method_results if result.kind == "method" and np.isfinite(scores[result.name][metric].mean)
    ]
    max_targets = max((scores[result.name][metric].targets for result in measured), default=0)
    return [result for result in measured if scores[result.name][metric].targets >= MIN_COVERAGE * max_targets]


def best_method(
    method_results: Sequence[MethodResult],
    scores: Mapping[str, Mapping[str, Estimate]],
    metric: str,
    sign: int,
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> MethodResult | None:
    """Find the method with the best mean that no other method significantly outperforms on their shared targets.

    Controls are not considered.

    Returns:
        The measurements of the method, or None if no method has a value.
    """
    ranked = sorted(
        comparable_methods(method_results, scores, metric), key=lambda o: -sign * scores[o.name][metric].mean
    )
    if not ranked:
        return None
    best = ranked[0]
    for other in ranked[1:]:
        lead = paired_difference(other.values[metric], best.values[metric], resamples=resamples, seed=seed)
        if lead.significant and sign * lead.mean > 0:
            best = other
    return best


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
