"""What each type of error costs: TIDE's oracle mends one type and reads off the average precision again.

Right class and place for classification and localization errors (the best-scored of those that would find the same free
object becomes right, the others go), nothing left of duplicates, background and both, and missed objects no longer
looked for. As in the published tool, and unlike pycocotools, a class that was detected and has no object counts with
an average precision of 0 in the mean over classes, and equal scores come wrong ones first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detcam.auditing.average_precision import average_precision
from detcam.auditing.errors import ERROR_TYPES, ErrorType, ImageErrors
from detcam.auditing.matching import as_array
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections

TIDE_RECALLS = np.array([step / 100 for step in range(101)])
"""Where TIDE reads precision off: differs from pycocotools' in the last bit, and so which side of a step is read."""


@dataclass(frozen=True)
class DeltaAP:
    """What errors cost, by TIDE's rules.

    Attributes:
        average_precision: the mean over classes as TIDE counts it, in [0, 1]; NaN where there is nothing at all.
        by_type: what mending all errors of a type would add, >= 0; NaN where nothing would be left to judge, as when
            a detector found nothing at all and every object is missed.
        false_positive: what scoring every wrong detection 0 and every right one 1 would add.
        false_negative: what not looking for the objects that nothing found would add.
    """

    average_precision: float
    by_type: dict[ErrorType, float]
    false_positive: float
    false_negative: float


@dataclass(frozen=True)
class _Points:
    """Entries of the ranking: class, score and whether right, (n,) each."""

    label: np.ndarray
    score: np.ndarray
    hit: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> _Points:
        return _Points(self.label[chosen], self.score[chosen], self.hit[chosen])


def delta_ap(errors: Sequence[ImageErrors], detections: Sequence[Detections], truths: Sequence[GroundTruth]) -> DeltaAP:
    """What each type of error costs over all images.

    Args:
        errors: of each image.
        detections: of each image, those that the errors were found in.
        truths: what is in each image.
    """
    wanted = _count(as_array(truth.labels)[~as_array(truth.crowd)] for truth in truths)
    unfound = _count(as_array(truth.labels)[image.unfound] for truth, image in zip(truths, errors, strict=True))
    ranked = _concatenate(
        [
            _Points(as_array(found.labels)[image.ranked], _scores(found)[image.ranked], image.hits)
            for found, image in zip(detections, errors, strict=True)
        ]
    )
    base = _mean(ranked, wanted)
    # From here on equal scores come wrong ones first, because the published tool puts them into its ranking first.
    wrong, mended = _cases(errors, detections, truths)
    right = ranked[ranked.hit]
    kinds = np.array([case.type for image in errors for case in image.cases], dtype=object)
    in_ranking = np.concatenate([np.zeros(0, dtype=bool), *(image.in_ranking for image in errors)])
    by_type: dict[ErrorType, float] = {}
    for kind in ERROR_TYPES:
        here = kinds == kind
        label = np.where(here, mended.label, wrong.label)
        changed = _Points(label, wrong.score, here & mended.hit)[np.where(here, mended.hit, in_ranking)]
        fewer = _count([wrong.label[here]]) if kind == "missed" else {}
        by_type[kind] = max(_mean(_concatenate([changed, right]), _less(wanted, fewer)) - base, 0.0)
    everything = _concatenate([wrong[in_ranking], right])
    perfect = _Points(everything.label, everything.hit.astype(np.float64), everything.hit)
    return DeltaAP(
        average_precision=base,
        by_type=by_type,
        false_positive=_mean(perfect, wanted) - base,
        false_negative=_mean(everything, _less(wanted, unfound)) - base,
    )


def _cases(
    errors: Sequence[ImageErrors], detections: Sequence[Detections], truths: Sequence[GroundTruth]
) -> tuple[_Points, _Points]:
    """Every case as it is, and as it would be if it were mended (only right ones stay in the ranking then)."""
    label, score, mended_label = [], [], []
    for image, found, truth in zip(errors, detections, truths, strict=True):
        scores = _scores(found)
        for case in image.cases:
            label.append(case.label)
            score.append(0.0 if case.detection is None else float(scores[case.detection]))
            right_class = case.type == "classification" and case.truth is not None
            mended_label.append(int(truth.labels[case.truth]) if right_class else case.label)
    hits = np.concatenate([np.zeros(0, dtype=bool), *(image.becomes_right for image in errors)])
    labels, scores_ = np.array(label, dtype=np.int64), np.array(score, dtype=np.float64)
    return (
        _Points(labels, scores_, np.zeros_like(hits)),
        _Points(np.array(mended_label, dtype=np.int64), scores_, hits),
    )


def _mean(points: _Points, wanted: Mapping[int, int]) -> float:
    """The mean over classes that were found or are to be found."""
    order = np.argsort(-points.score, kind="stable")
    labels, hits = points.label[order], points.hit[order]
    classes = {int(label) for label in np.unique(labels)} | {label for label, count in wanted.items() if count}
    values = [
        average_precision(hits[labels == label], wanted[label], TIDE_RECALLS) if wanted.get(label) else 0.0
        for label in sorted(classes)
    ]
    return float(np.mean(values)) if values else float("nan")


def _concatenate(parts: Sequence[_Points]) -> _Points:
    return _Points(
        np.concatenate([np.zeros(0, dtype=np.int64), *(part.label for part in parts)]),
        np.concatenate([np.zeros(0), *(part.score for part in parts)]),
        np.concatenate([np.zeros(0, dtype=bool), *(part.hit for part in parts)]),
    )


def _scores(detections: Detections) -> np.ndarray:
    return as_array(detections.scores).astype(np.float64)


def _count(labels: Iterable[np.ndarray]) -> dict[int, int]:
    return dict(Counter(int(label) for part in labels for label in part))


def _less(counts: Mapping[int, int], fewer: Mapping[int, int]) -> dict[int, int]:
    return {label: count - fewer.get(label, 0) for label, count in counts.items()}
