"""COCO's average precision, stored so that it can be recomputed cheaply when given errors are corrected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detcam.auditing.matching import Match, ScoredLabels, to_array
from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections
from detcam.utils.packed import concatenate

COCO_RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which pycocotools reads precision, equal to the last bit."""


@dataclass(frozen=True)
class Ranking:
    """The counted detections of one class over all images, by decreasing score.

    Attributes:
        hits: (n,) bool, whether each detection is a true positive; ignored and dropped detections are not included.
        keys: (n, 2) int64, image index and detection index of each detection.
        object_count: number of objects of the class.
        scores: (n,) float64 in [0, 1].
        object_images: (object_count,) int64, image index of each object.
        image_ranks: (images,) int64, rank of each image by its id, which orders equal scores.
    """

    hits: np.ndarray
    keys: np.ndarray
    object_count: int
    scores: np.ndarray
    object_images: np.ndarray
    image_ranks: np.ndarray

    @property
    def average_precision(self) -> float:
        """In [0, 1]; NaN if there are no objects."""
        return average_precision(self.hits, self.object_count)

    def positions(self, scores: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Find the places of detections of other classes in the ranking.

        Args:
            scores: (k,) float64.
            keys: (k, 2) int64, image index and detection index of each.

        Returns:
            (k,) int64, number of ranked detections before each.
        """
        images, indices = np.concatenate([self.keys, keys]).T
        order = np.lexsort((indices, self.image_ranks[images], -np.concatenate([self.scores, scores])))
        is_ranked, result = order < len(self.hits), np.empty(len(scores), dtype=np.int64)
        result[order[~is_ranked] - len(self.hits)] = np.cumsum(is_ranked)[~is_ranked]
        return result

    def corrected(
        self, removed: np.ndarray, found: np.ndarray, added: np.ndarray | None = None, removed_objects: int = 0
    ) -> float:
        """Compute the average precision when errors are corrected.

        Args:
            removed: (n,) bool, false positives that are left out.
            found: (n,) bool, false positives that become true positives.
            added: `positions` of detections of other classes that become true positives of this class.
            removed_objects: number of objects that are left out.
        """
        hits, kept = self.hits | found, ~removed
        if added is not None:
            hits, kept = np.insert(hits, added, True), np.insert(kept, added, True)
        return average_precision(hits[kept], self.object_count - removed_objects)

    def without_each(self) -> np.ndarray:
        """Compute the average precision without each single false positive.

        False positives between the same two true positives change it alike, so they share one computation.

        Returns:
            (n,) float64; NaN for true positives.
        """
        result = np.full(len(self.hits), np.nan)
        first, index = np.unique(np.cumsum(self.hits)[~self.hits], return_inverse=True)
        result[~self.hits] = _without_one(np.flatnonzero(self.hits) + 1, first, self.object_count)[index]
        return result

    def found_each(self, ranks: np.ndarray) -> np.ndarray:
        """Compute the average precision when a false positive becomes a true positive, for each of given ones.

        Args:
            ranks: (f,) int64, index of each in `hits`.

        Returns:
            (f,) float64.
        """
        return _with_one(np.flatnonzero(self.hits) + 1, ranks + 1, 0, self.object_count)

    def added_each(self, positions: np.ndarray) -> np.ndarray:
        """Compute the average precision with one more true positive, for each of the `positions` (f,).

        Returns:
            (f,) float64.
        """
        return _with_one(np.flatnonzero(self.hits) + 1, positions + 1, 1, self.object_count)


def average_precision(hits: np.ndarray, object_count: int, recalls: np.ndarray = COCO_RECALLS) -> float:
    r"""Compute the mean of interpolated precision at 101 recalls: :math:`\frac{1}{101}\sum_r \max_{r' \ge r} p(r')`.

    Args:
        hits: (n,) bool, whether each detection is a true positive, by decreasing score.
        object_count: number of objects.
        recalls: increasing recalls at which precision is read.

    Returns:
        In [0, 1]; NaN if there are no objects.

    Example:
        >>> import numpy as np
        >>> from detcam.auditing import average_precision
        >>> round(average_precision(np.array([True, False, True]), object_count=2), 3)
        0.835
    """
    return _from_ranks(np.flatnonzero(hits) + 1, object_count, recalls)


def _from_ranks(ranks: np.ndarray, object_count: int, recalls: np.ndarray) -> float:
    """Compute average precision from the ranks (from 1) of the true positives, where precision has its maxima."""
    if object_count <= 0:
        return float("nan")
    if not len(ranks):
        return 0.0
    hit_counts = np.arange(1, len(ranks) + 1)
    interpolated = np.maximum.accumulate((hit_counts / ranks)[::-1])[::-1]
    positions = np.searchsorted(hit_counts / object_count, recalls, side="left")
    return float(interpolated[positions[positions < len(ranks)]].sum() / len(recalls))


def _without_one(ranks: np.ndarray, first: np.ndarray, object_count: int) -> np.ndarray:
    """Compute average precision without a false positive before the true positive number `first`, (f,) increasing.

    The true positives from that one on move up by one rank. The maximum of the precisions from a true positive on is
    then the larger one of two: of those before the removed detection, as they were, and of those behind it, moved up.
    """
    if object_count <= 0:
        return np.full(len(first), np.nan)
    hit_counts = np.arange(1, len(ranks) + 1)
    before = hit_counts / ranks
    behind = np.append(np.maximum.accumulate((hit_counts / np.maximum(ranks - 1, 1))[::-1])[::-1], 0.0)
    positions = np.searchsorted(hit_counts / object_count, COCO_RECALLS, side="left")
    positions = positions[positions < len(ranks)]
    precision = np.zeros((len(first), len(positions)))
    for column, position in enumerate(positions.tolist()):
        is_behind = first <= position
        precision[is_behind, column] = behind[position]
        maxima = np.maximum.accumulate(before[position:])
        later = first[~is_behind]
        precision[~is_behind, column] = np.maximum(maxima[later - position - 1], behind[later])
    return np.array([row.sum() / len(COCO_RECALLS) for row in precision])


def _with_one(ranks: np.ndarray, new_ranks: np.ndarray, shift: int, object_count: int) -> np.ndarray:
    """Compute average precision with one more true positive, at each of the ranks (f,) from 1.

    The true positives from there on have one more before them, and move down by `shift`. The maximum of the precisions
    from a true positive on is the largest of those before the new one, as they were, its own, and those behind it.
    """
    hit_counts = np.arange(1, len(ranks) + 2)
    first = np.searchsorted(ranks, new_ranks, side="left")
    before = hit_counts[:-1] / ranks
    behind = np.append(np.maximum.accumulate((hit_counts[1:] / (ranks + shift))[::-1])[::-1], 0.0)
    from_new = np.maximum((first + 1) / new_ranks, behind[first])
    positions = np.searchsorted(hit_counts / object_count, COCO_RECALLS, side="left")
    total = np.zeros(len(first))
    for position in positions[positions < len(hit_counts)].tolist():
        precision = np.where(first < position, behind[position - 1], from_new)
        later = first > position
        maxima = np.maximum.accumulate(before[position:])
        precision[later] = np.maximum(maxima[first[later] - position - 1], from_new[later])
        total += precision
    return total / len(COCO_RECALLS)


def mean_average_precision(values: Iterable[float]) -> float:
    """The mean over classes that have objects; NaN if none has."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def image_ranks(image_ids: Sequence[int | str]) -> np.ndarray:
    """(images,) int64, the rank of each image by its id, which orders equal scores as in COCO; texts come last."""
    order = sorted(range(len(image_ids)), key=lambda i: (isinstance(image_ids[i], str), image_ids[i]))
    return np.argsort(np.array(order, dtype=np.int64))


def rank_detections(
    detections: Sequence[Detections] | Sequence[ScoredLabels],
    ground_truths: Sequence[GroundTruth] | Annotations,
    matches: Sequence[Match],
) -> Mapping[int, Ranking]:
    """Rank the detections of all images by class.

    As in COCO, equal scores are ordered by image id.

    Args:
        detections: the detections of each image.
        ground_truths: the objects of each image.
        matches: the matching of each image.

    Returns:
        Rankings by class index.
    """
    ranks = image_ranks([truth.image_id for truth in ground_truths])
    order = np.argsort(ranks).tolist()
    if not order:
        return {}
    label, score, hit, key, true_label, true_image = concatenate(
        _ranked_columns(image, detections[image], ground_truths[image], matches[image]) for image in order
    )
    by_score = np.argsort(-score, kind="stable")
    rankings = {}
    for each in np.union1d(label, true_label).tolist():
        of_class = by_score[label[by_score] == each]
        images = true_image[true_label == each]
        rankings[int(each)] = Ranking(hit[of_class], key[of_class], len(images), score[of_class], images, ranks)
    return rankings


def _ranked_columns(
    image: int, detected: Detections | ScoredLabels, truth: GroundTruth, matched: Match
) -> tuple[np.ndarray, ...]:
    """Label, score, hit and key of the counted detections of an image; label and image index of its objects."""
    counted = np.flatnonzero(matched.true_positive | matched.false_positive)
    counted = counted[np.argsort(-to_array(detected.scores)[counted].astype(np.float64), kind="stable")]
    true_labels = to_array(truth.labels)[~matched.ground_truth_ignored]
    return (
        to_array(detected.labels)[counted],
        to_array(detected.scores)[counted].astype(np.float64),
        matched.true_positive[counted],
        np.stack([np.full_like(counted, image), counted], axis=1),
        true_labels,
        np.full_like(true_labels, image),
    )
