"""Selection of the errors to explain: those with the highest scores and the largest objects, or random samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from detcam.auditing.error_table import ErrorTable
from detcam.data.ground_truth import GroundTruth

ExplainOrder: TypeAlias = Literal["score", "random"]
"""``score``: the false positives with the highest scores and the largest missed objects; ``random``: random samples."""
EXPLAIN_ORDERS: tuple[ExplainOrder, ...] = get_args(ExplainOrder)


def relevant_errors(
    errors: ErrorTable,
    ground_truths: Sequence[GroundTruth],
    score_threshold: float,
    labels: Sequence[int] | None,
) -> tuple[list[int], list[int]]:
    """Find the errors that may be explained.

    Args:
        errors: all errors.
        ground_truths: objects of each image.
        score_threshold: minimum score of a false positive.
        labels: class indices; None takes all classes.

    Returns:
        Indices of the false positives from the score threshold on, the highest scores first, and of the missed
        objects, the largest first.
    """
    columns = errors.columns
    candidates = np.ones(len(columns), dtype=bool) if labels is None else np.isin(columns["label"], list(labels))
    false_positives = np.flatnonzero(candidates & columns["is_false_positive"] & (columns["score"] >= score_threshold))
    missed = np.flatnonzero(candidates & (columns["detection_index"] < 0) & (columns["ground_truth_index"] >= 0))
    objects = zip(columns["image_index"][missed].tolist(), columns["ground_truth_index"][missed].tolist(), strict=True)
    areas = np.array([float(ground_truths[image].area[index]) for image, index in objects])
    return (
        false_positives[np.argsort(-columns["score"][false_positives], kind="stable")].tolist(),
        missed[np.argsort(-areas, kind="stable")].tolist(),
    )


def choose_errors(
    relevant: Sequence[Sequence[int]], limits: Sequence[int], order: ExplainOrder = "score", seed: int = 0
) -> list[int]:
    """Choose the errors to explain.

    Args:
        relevant: lists of indices, as from `relevant_errors`.
        limits: maximum number of each list.
        order: whether to take the first of each list, or a random sample.
        seed: seed of the samples. A larger sample contains the smaller ones of the same seed.
    """
    chosen: list[int] = []
    for indices, limit in zip(relevant, limits, strict=True):
        ordered = list(indices)
        if order == "random":
            ordered = np.random.default_rng(seed).permutation(np.array(sorted(indices), dtype=np.int64)).tolist()
        chosen += ordered[:limit]
    return chosen
