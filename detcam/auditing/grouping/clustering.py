"""Groups of errors with similar evidence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from detcam.auditing.case import AuditCase, ErrorGroup, EvidenceKind
from detcam.auditing.grouping.evidence_kind import OUTSIDE_KINDS, evidence_kind
from detcam.auditing.sentences import group_sentence
from detcam.utils.batching import group_by

MAX_DISTANCE = 0.35
"""Maximum mean cosine distance between the features of two clusters that are merged."""
MIN_FORM_SHARE = 0.6
"""Minimum share of a cluster whose evidence is a mark, or lies on the image border, that gives the cluster its kind. An
even split must not name the same cause differently in two audits."""
MAX_CLUSTERED = 4000
"""Maximum number of cases that are clustered; further cases join the cluster of their nearest neighbor."""


def group_cases(
    cases: Sequence[AuditCase], features: Sequence[np.ndarray | None], delta_ap: Callable[[Sequence[int]], float]
) -> tuple[list[AuditCase], list[ErrorGroup]]:
    """Group errors with similar evidence, and determine the kinds of evidence.

    Cases with the same error type, class, true class, kind of evidence and failure stage are clustered by the cosine
    distance between the network's features over their evidence (average linkage). Cases that resemble no other have no
    group. Whether evidence in the surroundings is a mark, lies on the image border, or reaches into the object, is
    decided by the majority of its cluster (`MIN_FORM_SHARE`): one thing beside objects is now in their boxes, now
    outside.

    Args:
        cases: explained errors.
        features: (D,) features of each case, or None.
        delta_ap: increase of average precision when some of the cases, given by index, are corrected; NaN where it is
            undefined.

    Returns:
        The cases with the kinds of their evidence and the numbers of their groups; and the groups of at least two
        cases by decreasing `delta_ap`, in thousandths; where it is equal or undefined, by the sum of the scores that
        confirmed evidence costs, then by the highest score. The ids in a group begin with the case nearest to its
        center.
    """
    kinds = [evidence_kind(case) for case in cases]
    by_key = group_by(range(len(cases)), lambda index: _key(cases[index], kinds[index]))
    clusters = [
        [members[position] for position in cluster]
        for members in by_key.values()
        for cluster in _clusters([features[index] for index in members])
    ]
    for cluster in clusters:
        kind = _shared_kind([kinds[index] for index in cluster])
        for index in cluster:
            kinds[index] = kind
    costs = {cluster[0]: delta_ap(cluster) for cluster in clusters if len(cluster) > 1}
    ranked = sorted(
        (cluster for cluster in clusters if len(cluster) > 1),
        key=lambda cluster: (*_rank(costs[cluster[0]], [cases[index] for index in cluster]), cluster),
    )
    result = [replace(case, evidence_kind=kind) for case, kind in zip(cases, kinds, strict=True)]
    for number, cluster in enumerate(ranked):
        for index in cluster:
            result[index] = replace(result[index], group=number)
    groups = [
        _group(number, [result[index] for index in cluster], costs[cluster[0]]) for number, cluster in enumerate(ranked)
    ]
    return result, groups


def _shared_kind(kinds: Sequence[EvidenceKind | None]) -> EvidenceKind | None:
    """The most frequent kind of a cluster; marks and image borders that are few in it are surroundings."""
    (kind, count), *_ = Counter(kinds).most_common()
    return "surroundings" if kind in ("mark", "image border") and count < MIN_FORM_SHARE * len(kinds) else kind


def _rank(delta_ap: float, cases: Sequence[AuditCase]) -> tuple[float, float, float]:
    """Sorting key of a group: its cost, the score that confirmed evidence costs, the highest score.

    The effect of a missed object, which has hardly a score, is already a share of the score threshold.
    """
    effects = [case for case in cases if case.confirmed and case.effect > 0]
    confirmed = sum(case.effect * (1 if case.type == "missed" else case.score) for case in effects)
    return -round(delta_ap, 3) if math.isfinite(delta_ap) else 0.0, -confirmed, -max(case.score for case in cases)


def _key(case: AuditCase, kind: EvidenceKind | None) -> tuple[object, ...]:
    """The properties that the cases of a group have in common."""
    true_label = None if case.ground_truth is None or case.type == "background" else case.ground_truth.label
    stage = case.failure_stage if case.type == "missed" else ""
    merged = "surroundings" if kind in OUTSIDE_KINDS else kind
    evidence_object = case.evidence_object if kind == "another object" else ""
    return case.type, case.label, true_label, merged, evidence_object, stage


def _group(number: int, cases: Sequence[AuditCase], delta_ap: float) -> ErrorGroup:
    first = cases[0]
    located = [case.evidence_location for case in cases if case.confirmed]
    return ErrorGroup(
        number=number,
        type=first.type,
        label=first.label,
        name=first.name,
        evidence_kind=first.evidence_kind,
        evidence_location=Counter(located).most_common(1)[0][0] if located else None,
        case_ids=tuple(case.id for case in cases),
        delta_ap=delta_ap,
        confirmed_count=len(located),
        sentence=group_sentence(cases, delta_ap),
        background_type=Counter(case.background_type for case in cases).most_common(1)[0][0],
    )


def _clusters(features: Sequence[np.ndarray | None]) -> list[list[int]]:
    """Clusters of indices, the nearest to the center first; cases without features form a cluster of their own."""
    with_features = [index for index, each in enumerate(features) if each is not None]
    without_features = [index for index, each in enumerate(features) if each is None]
    clusters = [without_features] if without_features else []
    if not with_features:
        return clusters
    table = np.stack([np.asarray(features[index], dtype=np.float64) for index in with_features])
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    labels = np.zeros(len(table), dtype=np.int64)
    clustered = table[:MAX_CLUSTERED]
    if len(table) > 1:
        distances = np.clip(1 - clustered @ clustered.T, 0, 2)
        tree = linkage(squareform(distances, checks=False), "average")
        labels[:MAX_CLUSTERED] = fcluster(tree, MAX_DISTANCE, "distance")
    for row in range(MAX_CLUSTERED, len(table)):
        labels[row] = labels[int((clustered @ table[row]).argmax())]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        center = table[rows].mean(0)
        nearest_first = rows[np.argsort(-(table[rows] @ center), kind="stable")]
        clusters.append([with_features[row] for row in nearest_first])
    return clusters
