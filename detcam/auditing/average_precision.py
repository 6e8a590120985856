"""COCO's average precision, kept so that it is cheap to ask what it would be without some detections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detcam.auditing.matching import Match, as_array
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections

COCO_RECALLS = np.linspace(0.0, 1.0, 101)
"""Where pycocotools reads precision off, to its last bit."""


@dataclass(frozen=True)
class Ranking:
    """All counted detections of one class over all images, best first.

    Attributes:
        hits: (n,) bool, whether each is right; detections that are ignored or dropped are not here.
        keys: (n, 2) int64, each detection's image and index there.
        truths: how many objects of the class there are to find.
    """

    hits: np.ndarray
    keys: np.ndarray
    truths: int

    @property
    def average_precision(self) -> float:
        """In [0, 1]; NaN where there is nothing to find."""
        return average_precision(self.hits, self.truths)

    def without(self, removed: np.ndarray, found_for: int = 0) -> float:
        """The average precision without some detections (n,) bool, and with fewer objects to find."""
        return average_precision(self.hits[~removed], self.truths - found_for)

    def without_each(self) -> np.ndarray:
        """(n,) the average precision without each single detection that is wrong; NaN for those that are right.

        Wrong detections between the same two right ones change it alike, so one computation serves them all.
        """
        ranks = np.flatnonzero(self.hits) + 1
        behind = np.cumsum(self.hits)  # right detections up to each: the first right one behind it, as an index
        result = np.full(len(self.hits), np.nan)
        for first in np.unique(behind[~self.hits]):
            closer = ranks - (np.arange(len(ranks)) >= first)
            result[~self.hits & (behind == first)] = _from_ranks(closer, self.truths, COCO_RECALLS)
        return result


def average_precision(hits: np.ndarray, truths: int, recalls: np.ndarray = COCO_RECALLS) -> float:
    r"""Precision interpolated at 101 recalls, and their mean: :math:`\frac{1}{101}\sum_r \max_{r' \ge r} p(r')`.

    Args:
        hits: (n,) bool, whether each detection is right, best score first.
        truths: how many objects there are to find.
        recalls: where precision is read off, rising.

    Returns:
        In [0, 1]; NaN where there is nothing to find.
    """
    return _from_ranks(np.flatnonzero(hits) + 1, truths, recalls)


def _from_ranks(ranks: np.ndarray, truths: int, recalls: np.ndarray) -> float:
    """From the ranks (from 1) of the right detections: precision peaks at them, so the wrong ones need no place."""
    if truths <= 0:
        return float("nan")
    if not len(ranks):
        return 0.0
    right = np.arange(1, len(ranks) + 1)
    best_from_here = np.maximum.accumulate((right / ranks)[::-1])[::-1]
    at = np.searchsorted(right / truths, recalls, side="left")
    return float(best_from_here[at[at < len(ranks)]].sum() / len(recalls))


def mean_average_precision(values: Iterable[float]) -> float:
    """The mean over classes that have something to find; NaN where none has."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def rank(
    detections: Sequence[Detections], truths: Sequence[GroundTruth], matches: Sequence[Match]
) -> Mapping[int, Ranking]:
    """All images' detections by class, best first; equal scores in the order of the images' ids, as in COCO."""
    order = sorted(range(len(truths)), key=lambda i: (isinstance(truths[i].image_id, str), truths[i].image_id))
    labels, scores, hits, keys, wanted = [], [], [], [], []
    for position in order:
        found, truth, matched = detections[position], truths[position], matches[position]
        counted = matched.true_positive | matched.false_positive
        chosen = np.flatnonzero(counted)
        chosen = chosen[np.argsort(-as_array(found.scores)[chosen].astype(np.float64), kind="stable")]
        labels.append(as_array(found.labels)[chosen])
        scores.append(as_array(found.scores)[chosen].astype(np.float64))
        hits.append(matched.true_positive[chosen])
        keys.append(np.stack([np.full_like(chosen, position), chosen], axis=1))
        wanted.append(as_array(truth.labels)[~matched.truth_ignored])
    if not order:
        return {}
    label, score, hit, key, want = (np.concatenate(part) for part in (labels, scores, hits, keys, wanted))
    ranked = np.argsort(-score, kind="stable")
    rankings = {}
    for one in np.union1d(label, want).tolist():
        own = ranked[label[ranked] == one]
        rankings[int(one)] = Ranking(hit[own], key[own], int((want == one).sum()))
    return rankings
