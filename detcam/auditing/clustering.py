"""Errors that share a cause: of one type and class, with evidence at one place that looks alike to the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from detcam.auditing.case import AuditCase, ErrorGroup
from detcam.auditing.sentences import group_sentence

APART = 0.35
"""Mean cosine distance above which two clusters of evidence stay apart."""
MOST = 4000
"""Clusters are sought among so many cases at most; further ones join the nearest."""


def group_cases(
    cases: Sequence[AuditCase], features: Sequence[np.ndarray | None], delta_ap: Callable[[Sequence[int]], float]
) -> list[tuple[ErrorGroup, list[int]]]:
    """ErrorGroup errors by shared cause.

    Cases of one type, class (both classes, where a true one is concerned), nature and place of evidence are clustered
    by the cosine distance of the network's features pooled over their evidence (average linkage).

    Args:
        cases: explained errors.
        features: of each, (D,), or None.
        delta_ap: what some of the cases cost together, by their positions.

    Returns:
        groups, the costliest first, with their cases' positions, nearest to the group's centre first.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    for position, case in enumerate(cases):
        true = None if case.ground_truth is None or case.type == "background" else case.ground_truth.label
        stage = case.failure_stage if case.type == "missed" else ""
        kinds.setdefault((case.type, case.label, true, case.background_type, case.evidence_location, stage), []).append(
            position
        )
    found: list[tuple[float, list[int]]] = []
    for members in kinds.values():
        for cluster in _clusters([features[position] for position in members]):
            ordered = [members[index] for index in cluster]
            found.append((delta_ap(ordered), ordered))
    found.sort(key=lambda item: (-item[0], -len(item[1]), item[1]))
    return [(_group(number, cases, *item), item[1]) for number, item in enumerate(found)]


def _group(number: int, cases: Sequence[AuditCase], lost: float, members: Sequence[int]) -> ErrorGroup:
    own = [cases[position] for position in members]
    return ErrorGroup(
        number,
        own[0].type,
        own[0].label,
        own[0].name,
        own[0].evidence_location,
        tuple(case.id for case in own),
        lost,
        sum(case.verdict == "confirmed" for case in own),
        group_sentence(own, lost),
        own[0].background_type,
    )


def _clusters(features: Sequence[np.ndarray | None]) -> list[list[int]]:
    """Clusters of positions, nearest to the centre first; those without features are a cluster of their own."""
    known = [index for index, each in enumerate(features) if each is not None]
    without = [index for index, each in enumerate(features) if each is None]
    clusters = [without] if without else []
    if not known:
        return clusters
    table = np.stack([np.asarray(features[index], dtype=np.float64) for index in known])
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    labels = np.zeros(len(known), dtype=np.int64)
    if len(known) > 1:
        apart = np.clip(1 - table[:MOST] @ table[:MOST].T, 0, 2)
        tree = linkage(squareform(apart, checks=False), "average")
        labels[:MOST] = fcluster(tree, APART, "distance")
    for index in range(MOST, len(known)):
        labels[index] = labels[int((table[:MOST] @ table[index]).argmax())]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        center = table[rows].mean(0)
        clusters.append([known[row] for row in rows[np.argsort(-(table[rows] @ center), kind="stable")]])
    return clusters
