"""TIDE's oracle: increase of average precision when all errors of one type are corrected.

For classification and localization errors, class or location is corrected (of the detections that would match the same
free object, the first becomes a true positive and the others are removed); duplicates, background and both errors are
removed; missed objects are no longer counted. As in the published tool, and unlike pycocotools, a class that is
detected but has no objects counts with an average precision of 0 in the mean over classes, and among equal scores false
positives come first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from detcam.auditing.average_precision import average_precision
from detcam.auditing.error_table import ErrorTable
from detcam.auditing.errors import ERROR_TYPES, ErrorType, ImageErrors
from detcam.auditing.matching import ScoredLabels, is_evaluated, to_array
from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.utils.packed import concatenate

TIDE_RECALLS = np.array([step / 100 for step in range(101)])
"""Recalls at which TIDE reads precision. They differ from pycocotools' in the last bit, which can change the result."""


@dataclass(frozen=True)
class DeltaAP:
    """Cost of the errors by TIDE's rules.

    Attributes:
        average_precision: TIDE's mean over classes, in [0, 1]; NaN if there are no detections and no objects.
        by_type: increase of average precision when all errors of a type are corrected, >= 0; NaN if nothing would be
            left to evaluate, for example if there are no detections and every object is missed.
        false_positive: increase when every false positive scores 0 and every true positive 1.
        false_negative: increase when objects without a match are not counted.
    """

    average_precision: float
    by_type: dict[ErrorType, float]
    false_positive: float
    false_negative: float


@dataclass(frozen=True)
class _Entries:
    """Entries of a ranking: class index, score and whether a true positive, (n,) each."""

    label: np.ndarray
    score: np.ndarray
    hit: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> _Entries:
        return _Entries(self.label[chosen], self.score[chosen], self.hit[chosen])


def compute_delta_ap(
    errors: ErrorTable,
    image_errors: Sequence[ImageErrors],
    detections: Sequence[ScoredLabels],
    ground_truths: Sequence[GroundTruth] | Annotations,
    labels: Sequence[int] | None = None,
) -> DeltaAP:
    """Compute the cost of each error type over all images.

    Args:
        errors: the errors of all images.
        image_errors: what the oracle needs beside them, of each image; their own errors are not read.
        detections: the detections of each image.
        ground_truths: the objects of each image.
        labels: class indices to evaluate; None evaluates all.
    """
    objects = _count(
        of_image[~to_array(truth.crowd) & is_evaluated(of_image, labels)]
        for truth in ground_truths
        for of_image in [to_array(truth.labels)]
    )
    unmatched = _count(
        to_array(truth.labels)[image.unmatched_objects]
        for truth, image in zip(ground_truths, image_errors, strict=True)
    )
    nothing = (np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=bool))
    of_images = (
        (to_array(detected.labels)[image.ranked], _scores(detected)[image.ranked], image.hits)
        for detected, image in zip(detections, image_errors, strict=True)
    )
    ranked = _Entries(*concatenate(chain([nothing], of_images)))
    baseline = _mean_over_classes(ranked, objects)
    # From here on false positives come first among equal scores, because the published tool ranks them first.
    wrong, corrected = _error_entries(errors, image_errors, ground_truths)
    correct = ranked[ranked.hit]
    types = errors.types
    in_ranking, _ = _flags(image_errors)
    by_type: dict[ErrorType, float] = {}
    for kind in ERROR_TYPES:
        of_type = types == kind
        label = np.where(of_type, corrected.label, wrong.label)
        kept = np.where(of_type, corrected.hit, in_ranking)
        entries = _concatenate([_Entries(label, wrong.score, of_type & corrected.hit)[kept], correct])
        missed = _count([wrong.label[of_type]]) if kind == "missed" else {}
        by_type[kind] = max(_mean_over_classes(entries, _subtract(objects, missed)) - baseline, 0.0)
    everything = _concatenate([wrong[in_ranking], correct])
    perfect = _Entries(everything.label, everything.hit.astype(np.float64), everything.hit)
    return DeltaAP(
        average_precision=baseline,
        by_type=by_type,
        false_positive=_mean_over_classes(perfect, objects) - baseline,
        false_negative=_mean_over_classes(everything, _subtract(objects, unmatched)) - baseline,
    )


def _error_entries(
    errors: ErrorTable, image_errors: Sequence[ImageErrors], ground_truths: Sequence[GroundTruth] | Annotations
) -> tuple[_Entries, _Entries]:
    """The entry of every error, and its corrected entry, which stays in the ranking only as a true positive."""
    columns = errors.columns
    corrected_labels = columns["label"].copy()
    for row in np.flatnonzero((errors.types == "classification") & (columns["ground_truth_index"] >= 0)).tolist():
        truth = ground_truths[columns["image_index"][row]]
        corrected_labels[row] = int(truth.labels[columns["ground_truth_index"][row]])
    _, hits = _flags(image_errors)
    score = np.nan_to_num(columns["score"], nan=0.0)
    return _Entries(columns["label"], score, np.zeros_like(hits)), _Entries(corrected_labels, score, hits)


def _flags(image_errors: Sequence[ImageErrors]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each error is in the ranking, and whether it becomes correct, (n,) bool each."""
    none = np.zeros(0, dtype=bool)
    of_images = ((image.in_ranking, image.becomes_correct) for image in image_errors)
    in_ranking, becomes_correct = concatenate(chain([(none, none)], of_images))
    return in_ranking, becomes_correct


def _mean_over_classes(entries: _Entries, objects: Mapping[int, int]) -> float:
    """The mean average precision over classes that are detected or have objects."""
    order = np.argsort(-entries.score, kind="stable")
    labels, hits = entries.label[order], entries.hit[order]
    classes = {int(label) for label in np.unique(labels)} | {label for label, count in objects.items() if count}
    values = [
        average_precision(hits[labels == label], objects[label], TIDE_RECALLS) if objects.get(label) else 0.0
        for label in sorted(classes)
    ]
    return float(np.mean(values)) if values else float("nan")


def _concatenate(parts: Sequence[_Entries]) -> _Entries:
    return _Entries(
        np.concatenate([np.zeros(0, dtype=np.int64), *(part.label for part in parts)]),
        np.concatenate([np.zeros(0), *(part.score for part in parts)]),
        np.concatenate([np.zeros(0, dtype=bool), *(part.hit for part in parts)]),
    )


def _scores(detections: ScoredLabels) -> np.ndarray:
    return to_array(detections.scores).astype(np.float64)


def _count(labels: Iterable[np.ndarray]) -> dict[int, int]:
    return dict(Counter(int(label) for part in labels for label in part))


def _subtract(counts: Mapping[int, int], removed: Mapping[int, int]) -> dict[int, int]:
    return {label: count - removed.get(label, 0) for label, count in counts.items()}
