"""How much a detection looks, to the network, like what it rightly finds: for detections where nothing is labelled."""

from __future__ import annotations

import numpy as np

NEAREST = 5
"""So many neighbours say how near a detection is to right ones, and how near to wrong ones."""
LEAST_RIGHT = 20
"""Right detections below which nothing is compared."""


def typicality(features: np.ndarray, scores: np.ndarray, right: np.ndarray, images: np.ndarray) -> np.ndarray:
    r"""Share of the right detections of a class that look less like one than each detection does.

    Two things make a detection look right: its score, and features whose nearest neighbours are right rather than
    wrong detections. With :math:`r(\cdot)` the rank among the right detections,

    .. math:: s_i = r(\text{score}_i) + r(\bar c_i^{right} - \bar c_i^{wrong}), \qquad
        \text{typicality}_i = \frac{|\{j \text{ right}: s_j < s_i\}|}{|\{j \text{ right}\}|}

    where :math:`\bar c` is the mean cosine to the five nearest in other images. An object that nobody labelled is a
    right detection in all but name, so its typicality is spread evenly over [0, 1] as theirs is (a conformal p-value),
    and a threshold of t misses about a share t of such objects, whatever the detector. What is compared with as wrong
    may hold such objects too: that costs sharpness, not the meaning of the number.

    Args:
        features: (n, D), of the right detections of one class and the wrong ones that are compared.
        scores: (n,) in [0, 1].
        right: (n,) bool.
        images: (n,) which image each is in: neighbours are sought in others.

    Returns:
        (n,) in [0, 1]; NaN for all where fewer than twenty right ones have neighbours in other images.
    """
    nothing = np.full(len(scores), np.nan)
    if right.sum() < LEAST_RIGHT:
        return nothing
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    cosine = units @ units.T
    cosine[images[:, None] == images[None]] = np.nan
    nearness = _nearest(cosine[:, right])
    wrong = _nearest(cosine[:, ~right])
    nearness = nearness - wrong if np.isfinite(wrong).all() else nearness
    usable = np.isfinite(nearness)
    if (usable & right).sum() < LEAST_RIGHT:
        return nothing
    summed = _rank(scores, right & usable) + _rank(nearness, right & usable)
    return np.where(usable, _rank(summed, right & usable), np.nan)


def _nearest(cosine: np.ndarray) -> np.ndarray:
    """(n,) mean of each row's greatest few that are known; NaN where there are not as many."""
    if cosine.shape[1] < NEAREST:
        return np.full(len(cosine), np.nan)
    known = np.where(np.isnan(cosine), -np.inf, cosine)
    mean = np.sort(known, axis=1)[:, -NEAREST:].mean(1)
    return np.where(np.isfinite(mean), mean, np.nan)


def _rank(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(n,) share of some of the values that lie below each; of equal ones, half."""
    ordered = np.sort(values[among])
    below = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return below / (2 * len(ordered))


def pool_boxes(level: np.ndarray, boxes_xyxy: np.ndarray, input_size_hw: tuple[int, int]) -> np.ndarray:
    """The mean of a layer's output over each box, cells counted by how much of them the box covers.

    Args:
        level: (C, h, w), over the network's input.
        boxes_xyxy: (n, 4) in input pixels.
        input_size_hw: of the input.

    Returns:
        (n, C), each scaled to length 1.
    """
    cells = level.shape[1:]
    rows = _covered(boxes_xyxy[:, [1, 3]] * (cells[0] / input_size_hw[0]), cells[0])
    columns = _covered(boxes_xyxy[:, [0, 2]] * (cells[1] / input_size_hw[1]), cells[1])
    pooled = np.einsum("nh,chw,nw->nc", rows, level, columns, optimize=True)
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


def _covered(intervals: np.ndarray, cells: int) -> np.ndarray:
    """(n, cells): how much of each cell an interval covers, in sum 1; at least the cell that holds its middle."""
    starts = np.arange(cells)[None]
    covered = np.minimum(intervals[:, 1:], starts + 1) - np.maximum(intervals[:, :1], starts)
    covered = covered.clip(min=0)
    middle = intervals.mean(1).astype(int).clip(0, cells - 1)
    empty = covered.sum(1) <= 1e-6
    covered[empty, middle[empty]] = 1
    return covered / covered.sum(1, keepdims=True)
