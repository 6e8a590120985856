"""Typicality of a detection: a conformal p-value against the correct detections of its class."""

from __future__ import annotations

import numpy as np

NEIGHBOR_COUNT = 5
"""Number of nearest neighbors among correct detections, and among wrong ones."""
MIN_CORRECT = 20
"""Minimum number of correct detections."""


def typicality(features: np.ndarray, scores: np.ndarray, correct: np.ndarray, images: np.ndarray) -> np.ndarray:
    r"""Compute the share of the correct detections of a class that are less typical than each detection.

    A detection is typical if its score is high and the nearest neighbors of its features are correct rather than
    wrong detections. With :math:`r(\cdot)` the rank among the correct detections,

    .. math:: s_i = r(\text{score}_i) + r(\bar c_i^{correct} - \bar c_i^{wrong}), \qquad
        \text{typicality}_i = \frac{|\{j \text{ correct}: s_j < s_i\}|}{|\{j \text{ correct}\}|}

    where :math:`\bar c` is the mean cosine similarity to the five nearest neighbors in other images. If a detection of
    an object without an annotation is exchangeable with the correct detections, its typicality is uniform on [0, 1] (a
    conformal p-value), and a threshold of t rejects a share t of such detections. The wrong detections may include
    such objects; this lowers the power of the test, not its validity.

    Args:
        features: (n, D), of the correct detections of one class and of wrong ones.
        scores: (n,) in [0, 1].
        correct: (n,) bool.
        images: (n,) image index of each detection.

    Returns:
        (n,) in [0, 1]; NaN for all if fewer than twenty correct detections have neighbors in other images.
    """
    undefined = np.full(len(scores), np.nan)
    if correct.sum() < MIN_CORRECT:
        return undefined
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    cosine = units @ units.T
    cosine[images[:, None] == images[None]] = np.nan
    similarity = _mean_nearest(cosine[:, correct])
    wrong_similarity = _mean_nearest(cosine[:, ~correct])
    similarity = similarity - wrong_similarity if np.isfinite(wrong_similarity).all() else similarity
    defined = np.isfinite(similarity)
    reference = correct & defined
    if reference.sum() < MIN_CORRECT:
        return undefined
    statistic = _rank(scores, reference) + _rank(similarity, reference)
    return np.where(defined, _rank(statistic, reference), np.nan)


def _mean_nearest(cosine: np.ndarray) -> np.ndarray:
    """(n,) mean of the largest similarities in each row; NaN if fewer than `NEIGHBOR_COUNT` are not NaN."""
    if cosine.shape[1] < NEIGHBOR_COUNT:
        return np.full(len(cosine), np.nan)
    known = np.where(np.isnan(cosine), -np.inf, cosine)
    mean = np.sort(known, axis=1)[:, -NEIGHBOR_COUNT:].mean(1)
    return np.where(np.isfinite(mean), mean, np.nan)


def _rank(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n,) share of the reference values (a bool mask) below each value; ties count half."""
    ordered = np.sort(values[reference])
    below = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return below / (2 * len(ordered))


def pool_boxes(level: np.ndarray, boxes_xyxy: np.ndarray, input_size_hw: tuple[int, int]) -> np.ndarray:
    """Average a feature map over boxes, with cells weighted by the area that the box covers.

    Args:
        level: (C, h, w), covers the network's input.
        boxes_xyxy: (n, 4), input pixels.
        input_size_hw: size of the input.

    Returns:
        (n, C), rows of length 1.
    """
    rows_count, columns_count = level.shape[1:]
    rows = _cell_weights(boxes_xyxy[:, [1, 3]] * (rows_count / input_size_hw[0]), rows_count)
    columns = _cell_weights(boxes_xyxy[:, [0, 2]] * (columns_count / input_size_hw[1]), columns_count)
    pooled = np.einsum("nh,chw,nw->nc", rows, level, columns, optimize=True)
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


def _cell_weights(intervals: np.ndarray, cells: int) -> np.ndarray:
    """(n, cells) share of each interval (n, 2) that each cell covers; at least the cell of its center, sum 1."""
    starts = np.arange(cells)[None]
    covered = np.minimum(intervals[:, 1:], starts + 1) - np.maximum(intervals[:, :1], starts)
    covered = covered.clip(min=0)
    center = intervals.mean(1).astype(int).clip(0, cells - 1)
    empty = covered.sum(1) <= 1e-6
    covered[empty, center[empty]] = 1
    return covered / covered.sum(1, keepdims=True)
