"""From values per image to means, intervals, and differences that are more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST = 6
"""Images below which no difference counts as significant: five of the same sign come by chance once in sixteen."""
NEGLIGIBLE = 1e-3
"""Share of the greater of two means below which a difference is none, however sure it is."""
COVERAGE = 0.8
"""Share of the findings that the best covered method has values of, which another one needs to be compared with it."""

Values = Sequence[np.ndarray]
"""Per image, (N_i,) float64: one value per target, NaN where there is none."""


@dataclass(frozen=True)
class Estimate:
    """A mean over images of the mean over each image's targets.

    Attributes:
        mean: NaN where no target has a value.
        low: lower end of the 95 % bootstrap interval over images; NaN for fewer than two images.
        high: upper end.
        images: how many have a value.
        targets: how many have a value.
        undefined: how many targets have none, in images that were explained.
    """

    mean: float
    low: float
    high: float
    images: int
    targets: int
    undefined: int


@dataclass(frozen=True)
class Row:
    """One method or control.

    Attributes:
        name: as given.
        kind: ``method`` or ``control``.
        scores: metric to estimate.
        tied: metrics by which it is the best method, or not told apart from the best (paired bootstrap).
        passes: computing work for one image's targets, in units of one plain pass; NaN for controls.
        backward: calls of autograd for one image's targets; NaN for controls.
        seconds: median over images, for one image's targets.
        peak_mib: the greatest over the images; NaN where it is not known.
        failed: images on which it failed.
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
    """A difference of two methods over the same targets, the first minus the second.

    Attributes:
        mean: NaN where they share no target.
        low: lower end of the 95 % paired bootstrap interval over images; NaN for fewer than two.
        high: upper end.
        images: how many they share.
        scale: the greater magnitude of the two means.
    """

    mean: float
    low: float
    high: float
    images: int
    scale: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0, there are enough images to say so, and the difference matters at all.

        One test among many: no correction is made for their number.
        """
        sure = self.images >= FEWEST and (self.low > 0 or self.high < 0)
        return sure and abs(self.mean) > NEGLIGIBLE * self.scale


@dataclass(frozen=True)
class Outcome:
    """What was found for one row.

    Attributes:
        name: of the method or control.
        kind: ``method`` or ``control``.
        values: metric to values, per image that was explained.
        passes: per image where it was counted.
        backward: likewise.
        seconds: per image.
        peak_mib: per image where it is known.
        errors: image to what went wrong.
        warnings: what the method warned of, each once.
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


def bootstrap(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a mean: images are drawn with replacement, `resamples` times.

    Efron, *Bootstrap Methods: Another Look at the Jackknife*, Annals of Statistics 1979.

    Args:
        values: (n,) finite.
        resamples: how often.
        seed: of the draws, which depend on it and on n alone; so rows of one table share them.

    Returns:
        low, high; NaN for fewer than two values.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    means = values[drawn].mean(1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def estimate(values: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over images, with its interval. Targets of one image are alike, so images are what is drawn."""
    known = [row[np.isfinite(row)] for row in values]
    means = np.array([row.mean() for row in known if len(row)])
    targets = sum(len(row) for row in known)
    undefined = sum(len(row) for row in values) - targets
    if not len(means):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, 0, undefined)
    low, high = bootstrap(means, resamples=resamples, seed=seed)
    return Estimate(float(means.mean()), low, high, len(means), targets, undefined)


def difference(one: Values, other: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """The mean difference over the targets for which both have a value; both lists have the same images in order."""
    pairs = []
    for mine, theirs in zip(one, other, strict=True):
        if not len(mine) or not len(theirs):
            continue
        both = np.isfinite(mine) & np.isfinite(theirs)
        if both.any():
            pairs.append((mine[both].mean(), theirs[both].mean()))
    if not pairs:
        return Difference(float("nan"), float("nan"), float("nan"), 0, float("nan"))
    means = np.array(pairs)
    gaps = means[:, 0] - means[:, 1]
    low, high = bootstrap(gaps, resamples=resamples, seed=seed)
    return Difference(float(gaps.mean()), low, high, len(gaps), float(np.abs(means.mean(0)).max()))


def make_rows(
    outcomes: Sequence[Outcome], signs: Mapping[str, int], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Row]:
    """Rows of a table.

    Args:
        outcomes: what was found; their values are of the same images in the same order, (0,) where one failed.
        signs: metric to 1 where higher is better, else -1.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    scores = {
        outcome.name: {metric: estimate(outcome.values[metric], resamples=resamples, seed=seed) for metric in signs}
        for outcome in outcomes
    }
    tied: dict[str, set[str]] = {outcome.name: set() for outcome in outcomes}
    for metric, sign in signs.items():
        best = best_of(outcomes, scores, metric, sign, resamples=resamples, seed=seed)
        if best is None:
            continue
        for outcome in comparable(outcomes, scores, metric):
            gap = difference(best.values[metric], outcome.values[metric], resamples=resamples, seed=seed)
            if outcome is best or not gap.significant:
                tied[outcome.name].add(metric)
    return [
        Row(
            outcome.name,
            outcome.kind,
            scores[outcome.name],
            frozenset(tied[outcome.name]),
            _mean(outcome.passes),
            _mean(outcome.backward),
            float(np.median(outcome.seconds)) if len(outcome.seconds) else float("nan"),
            max(outcome.peak_mib, default=float("nan")),
            len(outcome.errors),
        )
        for outcome in outcomes
    ]


def comparable(outcomes: Sequence[Outcome], scores: Mapping[str, Mapping[str, Estimate]], metric: str) -> list[Outcome]:
    """The methods with values of nearly as many targets as any has: a mean over the few that remain is no mean."""
    known = [o for o in outcomes if o.kind == "method" and np.isfinite(scores[o.name][metric].mean)]
    most = max((scores[o.name][metric].targets for o in known), default=0)
    return [o for o in known if scores[o.name][metric].targets >= COVERAGE * most]


def best_of(
    outcomes: Sequence[Outcome],
    scores: Mapping[str, Mapping[str, Estimate]],
    metric: str,
    sign: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Outcome | None:
    """The method with the best mean that none beats significantly on the targets of both; controls are no choice.

    None where no method has a value.
    """
    ranked = sorted(comparable(outcomes, scores, metric), key=lambda o: -sign * scores[o.name][metric].mean)
    if not ranked:
        return None
    best = ranked[0]
    for other in ranked[1:]:
        gap = difference(other.values[metric], best.values[metric], resamples=resamples, seed=seed)
        if gap.significant and sign * gap.mean > 0:
            best = other
    return best


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
