"""The inventory: shares of the kinds of evidence among all errors, estimated from a random sample of explained ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from detcam.auditing.case import EVIDENCE_KINDS, AuditCase, EvidenceKind
from detcam.auditing.case_table import explained_cases
from detcam.auditing.verification.verdict import WRONG_CONFIRMED, WRONG_REGIONS
from detcam.utils.batching import group_by
from detcam.utils.files import json_value
from detcam.utils.proportions import Rates, corrected_share

MIN_SAMPLE = 10
"""Minimum number of explained errors of a class, to estimate its shares."""
RESAMPLES = 1000
"""Number of bootstrap resamples for the interval of a cost."""
VERIFICATION_RATES = Rates(1.0, math.inf, 1 - sum(WRONG_CONFIRMED.values()) / WRONG_REGIONS, WRONG_REGIONS)
"""Error rates of the verification: some wrong regions are confirmed. That causes stay unconfirmed is not corrected:
their share is stated as such."""
UNTESTED_KINDS: tuple[EvidenceKind, ...] = ("not confirmed", "unlabeled object")
"""Kinds that no confirmed region stands for, so that their shares are not corrected."""

Population: TypeAlias = Literal["false positives", "missed objects"]
"""Errors that a sample represents: false positives from the score threshold on, or missed objects."""
POPULATIONS: tuple[Population, ...] = get_args(Population)

_PHRASES: dict[EvidenceKind, str] = {
    "part of the object": "rest on a part of the object",
    "object itself": "rest on the object itself, and why its class is wrong is not known",
    "another object": "rest on another object",
    "mark": "rest on a mark",
    "surroundings": "rest on the surroundings",
    "image border": "rest on the border of the image",
    "object and surroundings": "rest on the object and its surroundings",
    "absent context": "lack the surroundings of found objects",
    "look-alike": "rest on a look-alike",
    "unlabeled object": "may be unlabeled objects",
    "not confirmed": "have no confirmed cause",
}
MISSED_PHRASES: Mapping[EvidenceKind, str] = {
    "part of the object": "are detected when a part of them is removed",
    "another object": "are detected when another object is removed",
    "mark": "are detected when a mark beside them is removed",
    "surroundings": "are detected when a region around them is removed",
    "image border": "are detected when the border of the image is removed",
    "object and surroundings": "are detected when a region on and around them is removed",
    "absent context": "are detected in the surroundings of found objects",
}
"""Of missed objects that a confirmed region suppresses."""


@dataclass(frozen=True)
class CauseShare:
    """The share of a kind of evidence among the errors of a class.

    Attributes:
        population: the errors that the sample represents.
        label: class index; None for all classes.
        name: class name; ``"all classes"`` for all.
        kind: kind of evidence.
        population_size: number of errors.
        sample_size: number of explained errors, a random sample of them.
        count: number of explained errors with this kind.
        observed_share: share of the sample, in [0, 1].
        share: share corrected by the error rates of the verification, in [0, 1].
        interval: 95 % interval of the share.
        delta_ap: estimated increase of average precision when these errors are corrected; NaN if it is undefined, and
            for missed objects.
        delta_ap_interval: its 95 % interval.
    """

    population: Population
    label: int | None
    name: str
    kind: EvidenceKind
    population_size: int
    sample_size: int
    count: int
    observed_share: float
    share: float
    interval: tuple[float, float]
    delta_ap: float
    delta_ap_interval: tuple[float, float]

    @property
    def sentence(self) -> str:
        """Share and cost in one line: ``"38 % (31 to 45) of 212 false positives rest on a mark"``."""
        low, high = (round(100 * limit) for limit in self.interval)
        of_class = "" if self.label is None else f" of class {self.name}"
        cost = ""
        if math.isfinite(self.delta_ap):
            first, last = self.delta_ap_interval
            cost = f"; delta AP {self.delta_ap:.3f} ({first:.3f} to {last:.3f})"
        phrases = MISSED_PHRASES if self.population == "missed objects" and self.kind in MISSED_PHRASES else _PHRASES
        return (
            f"{round(100 * self.share)} % ({low} to {high}) of {self.population_size} {self.population}{of_class} "
            f"{phrases[self.kind]}{cost}"
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to the entry of ``audit.json``."""
        return json_value({**vars(self), "sentence": self.sentence})


def estimate_shares(
    cases: Sequence[AuditCase],
    population: Sequence[int],
    delta_ap: Callable[[Sequence[int]], float],
    *,
    name: Population = "false positives",
    rates: Rates = VERIFICATION_RATES,
    seed: int = 0,
) -> list[CauseShare]:
    r"""Estimate the shares of the kinds of evidence among some errors, of all classes and of each class.

    The explained errors have to be a random sample. Shares have the interval of `corrected_share`. Costs are scaled:
    with the joint cost D of all errors and the costs :math:`d_i` of single ones, those of kind k cost
    :math:`D \sum_{i \in k} d_i / \sum_i d_i` over the sample; the interval is a bootstrap over the sample, and
    contains that of the share in proportion. Both are multiplied by the ratio of corrected to observed share.

    Args:
        cases: all errors, with kinds of evidence where they are explained.
        population: indices of the errors that the sample represents.
        delta_ap: increase of average precision when some of the errors are corrected; NaN where it is undefined.
        name: what the errors are.
        rates: error rates of the verification. Evidence that is not confirmed, and unlabeled objects, which need no
            confirmation, are not corrected.
        seed: seed of the bootstrap.

    Returns:
        The shares of all classes first, then of each class with at least `MIN_SAMPLE` explained errors; in each, the
        largest first, evidence that is not confirmed last.
    """
    known = {index for index, case in explained_cases(cases).items() if case.evidence_kind is not None}
    by_label = group_by(population, lambda index: cases[index].label)
    parts: list[tuple[int | None, Sequence[int]]] = [(None, population)]
    parts += [(label, by_label[label]) for label in sorted(by_label)]
    shares = []
    for label, members in parts:
        sample = [index for index in members if index in known]
        if len(sample) >= (1 if label is None else MIN_SAMPLE):
            cost = math.nan if name == "missed objects" else delta_ap(members)
            shares += _shares_of(cases, members, sample, label, name, rates, cost, seed)
    return shares


def _shares_of(
    cases: Sequence[AuditCase],
    members: Sequence[int],
    sample: Sequence[int],
    label: int | None,
    name: Population,
    rates: Rates,
    cost: float,
    seed: int,
) -> list[CauseShare]:
    size, costs = len(sample), np.nan_to_num([cases[index].delta_ap for index in sample])
    picks = np.random.default_rng(seed).integers(0, size, (RESAMPLES, size))
    shares = []
    for kind in EVIDENCE_KINDS:
        of_kind = np.array([cases[index].evidence_kind == kind for index in sample])
        count = int(of_kind.sum())
        if not count:
            continue
        used = Rates() if kind in UNTESTED_KINDS else rates
        share, low, high = (float(value) for value in corrected_share(count, size, used, population=len(members)))
        unit = cost / (count / size)
        ratios = _ratio((costs * of_kind)[picks].sum(1), costs[picks].sum(1), of_kind[picks].mean(1))
        spread = np.quantile(ratios, [0.025, 0.975]) if size < len(members) else np.full(2, np.nan)
        ratio = float(_ratio((costs * of_kind).sum(), costs.sum(), of_kind.mean()))
        limits = np.where(np.isnan(spread), ratio, spread) * share * unit
        # A sample of one kind alone has the same ratio in every resample.
        first, last = min(float(limits[0]), ratio * low * unit), max(float(limits[1]), ratio * high * unit)
        shares.append(
            CauseShare(
                population=name,
                label=label,
                name="all classes" if label is None else cases[sample[0]].name,
                kind=kind,
                population_size=len(members),
                sample_size=size,
                count=count,
                observed_share=count / size,
                share=share,
                interval=(low, high),
                delta_ap=ratio * share * unit,
                delta_ap_interval=(first, last),
            )
        )
    return sorted(shares, key=lambda each: (each.kind == "not confirmed", -each.count))


def _ratio(part: np.ndarray, whole: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """``part / whole``; the share of cases where the whole is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), otherwise)
