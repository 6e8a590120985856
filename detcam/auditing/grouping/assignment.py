"""Assignment of unexplained errors to the causes of explained ones that resemble them, and its error."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from detcam.auditing.case import AuditCase
from detcam.auditing.case_table import explained_cases
from detcam.utils.batching import group_by

NEIGHBORS = 5
"""Number of explained errors that an unexplained one is compared with."""
MIN_EXPLAINED = 10
"""Minimum number of explained errors."""
ERRORS_PER_BLOCK = 256
"""Number of errors whose distances to all explained ones are in memory at the same time."""
INTERVAL_WIDTH = 1.96
"""Half width of a 95 % interval, in standard deviations."""

ClassKey: TypeAlias = tuple[object, ...]
"""Error type, class, and true class of classification errors."""


def class_key(case: AuditCase) -> ClassKey:
    """Error type, class, and true class of an error of class."""
    is_confusion = case.type in ("classification", "both") and case.ground_truth is not None
    return case.type, case.label, case.ground_truth.label if is_confusion and case.ground_truth else None


@dataclass(frozen=True, eq=False)
class Assignment:
    """Unexplained errors with the explained ones that resemble them most.

    Attributes:
        cases: all errors.
        explained: (n,) int64, indices of the explained errors.
        assigned: (u,) int64, indices of the unexplained errors; missed objects (or false positives) only if one of them
            is explained.
        neighbors: (u, k) int64, indices of the explained errors nearest to each unexplained one.
        held_out: (n, k) int64, the same for each explained error, without those of its image: cross-validation.
    """

    cases: Sequence[AuditCase]
    explained: np.ndarray
    assigned: np.ndarray
    neighbors: np.ndarray
    held_out: np.ndarray

    @cached_property
    def error(self) -> float:
        """Share of explained errors whose neighbors have another kind of evidence in the majority, in [0, 1]."""
        wrong = [
            self.cases[index].evidence_kind != self._majority(neighbors)
            for index, neighbors in zip(self.explained.tolist(), self.held_out.tolist(), strict=True)
        ]
        return float(np.mean(wrong))

    @cached_property
    def baseline_error(self) -> float:
        """The same share if every error had the most frequent kind of evidence."""
        kinds = group_by(self.explained.tolist(), lambda index: self.cases[index].evidence_kind)
        return 1 - max(len(members) for members in kinds.values()) / len(self.explained)

    @cached_property
    def _keys(self) -> dict[int, ClassKey]:
        """Type and classes of each explained and unexplained error."""
        known: dict[ClassKey, ClassKey] = {}
        keys = ((index, class_key(self.cases[index])) for index in [*self.explained.tolist(), *self.assigned.tolist()])
        return {index: known.setdefault(key, key) for index, key in keys}

    def _majority(self, indices: Sequence[int]) -> str | None:
        kinds = group_by(indices, lambda index: self.cases[index].evidence_kind)
        return max(kinds, key=lambda kind: len(kinds[kind]))

    def count(self, members: Collection[int], keys: Collection[ClassKey] | None) -> tuple[float, float, float]:
        r"""Estimate how many errors have a cause.

        An unexplained error counts with the share :math:`p_j` of its neighbors that have the cause. The interval uses
        the residuals of cross-validation, :math:`r_i = y_i - p_i`: with n explained and u unexplained errors that can
        have the cause, the variance of the sum is :math:`u v + u^2 v / n`,
        :math:`v = (\sum_i r_i^2 + z^2 / 2) / (n + z^2)`, :math:`z = 1.96`. The smoothing is that of Agresti and Coull:
        that n explained errors have no residual does not prove that there is none.

        Args:
            members: indices of the explained errors with the cause.
            keys: type and classes that an error must have; None for any.

        Returns:
            The number of explained and unexplained errors, and the limits of its 95 % interval.
        """
        held = set(members)
        total, count = float(len(held)), self._candidates(self.assigned, held, keys)
        if not count:
            return total, total, total
        shares = self._shares(self.assigned, self.neighbors, held, keys)
        truth = np.array([index in held for index in self.explained.tolist()], dtype=float)
        residuals = truth - self._shares(self.explained, self.held_out, held, keys)
        size, squared = self._candidates(self.explained, held, keys), INTERVAL_WIDTH**2
        variance = (float((residuals**2).sum()) + squared / 2) / (size + squared) * (count + count**2 / size)
        estimate, half = total + float(shares.sum()), INTERVAL_WIDTH * math.sqrt(variance)
        return estimate, max(estimate - half, total), min(estimate + half, total + count)

    def _candidates(self, indices: np.ndarray, held: Collection[int], keys: Collection[ClassKey] | None) -> int:
        """Number of errors that can have a cause: missed objects if it has some, and so on."""
        sides = {_is_missed(self.cases[index]) for index in held}
        found = [index for index in indices.tolist() if _is_missed(self.cases[index]) in sides]
        return len(found) if keys is None else sum(self._keys[index] in keys for index in found)

    def most_likely(self, members: Collection[int], keys: Collection[ClassKey] | None) -> list[int]:
        """Indices of the unexplained errors whose neighbors have a cause in the majority; arguments as in `count`."""
        shares = self._shares(self.assigned, self.neighbors, set(members), keys)
        return self.assigned[shares > 0.5].tolist()

    def _shares(
        self, indices: np.ndarray, neighbors: np.ndarray, held: Collection[int], keys: Collection[ClassKey] | None
    ) -> np.ndarray:
        """(m,) share of the neighbors of each error that have a cause; 0 for errors of other types and classes."""
        shares = np.isin(neighbors, list(held)).mean(1)
        if keys is not None:
            shares = shares * np.array([self._keys[index] in keys for index in indices.tolist()])
        return shares

    def to_json(self) -> dict[str, Any]:
        """Convert to the entry of ``audit.json``."""
        return {
            "explained": len(self.explained),
            "assigned": len(self.assigned),
            "error": self.error,
            "baseline_error": self.baseline_error,
        }


def assign_errors(
    cases: Sequence[AuditCase], relevant: Sequence[int], features: Mapping[int, np.ndarray]
) -> Assignment | None:
    """Find the explained errors that resemble each unexplained one.

    Errors with the same type, class and true class are compared; if there are fewer than `NEIGHBORS` explained ones,
    those with the same type and class, then with the same type, then all false positives. Missed objects are compared
    with missed objects alone; if none of them is explained, they are not assigned, and likewise false positives:
    no missed object looks like a class. The distance is the sum of two parts: the
    difference in score, size, shape, position and IoU with the object concerned, and the cosine distance of the
    network's features over the box; each is 1 on average.

    Args:
        cases: all errors, with kinds of evidence where they are explained.
        relevant: indices of the errors that are counted.
        features: (D,) features over the box of an error, by its index; without them the average distance is used.

    Returns:
        The assignment; None with fewer than `MIN_EXPLAINED` explained errors, or if all are of one image.
    """
    known = {index for index, case in explained_cases(cases).items() if case.evidence_kind is not None}
    explained = [index for index in relevant if index in known]
    sides = {_is_missed(cases[index]) for index in explained}
    assigned = [index for index in relevant if index not in known and _is_missed(cases[index]) in sides]
    images = np.array([str(cases[index].image_id) for index in explained])
    if len(explained) < MIN_EXPLAINED or len(set(images.tolist())) < 2:
        return None
    indices = np.array([*explained, *assigned], dtype=np.int64)
    distances = _distances(cases, indices, len(explained), features)
    levels = [(np.array(codes), NEIGHBORS) for codes in _key_codes([cases[index] for index in indices.tolist()])]
    levels.append((np.array([_is_missed(cases[index]) for index in indices.tolist()]), 1))
    nearest = []
    for row, distance in enumerate(distances):
        allowed = np.ones(len(explained), dtype=bool)
        if row < len(explained):
            allowed = images != images[row]
        for codes, minimum in levels:
            same = allowed & (codes[: len(explained)] == codes[row])
            if same.sum() >= minimum:
                allowed = same
                break
        order = np.argsort(np.where(allowed, distance, np.inf), kind="stable")[:NEIGHBORS]
        order = order[allowed[order]]
        nearest.append(np.array(explained)[np.resize(order, NEIGHBORS)])
    table = np.array(nearest, dtype=np.int64).reshape(-1, NEIGHBORS)
    return Assignment(
        cases,
        np.array(explained, dtype=np.int64),
        np.array(assigned, dtype=np.int64),
        table[len(explained) :],
        table[: len(explained)],
    )


def _is_missed(case: AuditCase) -> bool:
    return case.type == "missed"


def _key_codes(cases: Sequence[AuditCase]) -> list[list[int]]:
    """Numbers of the keys of errors, from the most specific key to the least."""
    keys = [class_key(case) for case in cases]
    levels = []
    for length in (3, 2, 1):
        numbers: dict[ClassKey, int] = {}
        levels.append([numbers.setdefault(key[:length], len(numbers)) for key in keys])
    return levels


def _distances(
    cases: Sequence[AuditCase], indices: np.ndarray, count: int, features: Mapping[int, np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield the distances of each error to the first `count` of them."""
    values = np.array([_properties(cases[index]) for index in indices.tolist()])
    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-9)
    known = np.array([index in features for index in indices.tolist()])
    table, scale = None, 1.0
    if known[:count].sum() >= 2:
        table = np.stack([features[index] for index in indices[known].tolist()]).astype(np.float64)
        table = (table - table.mean(0)) if len(table) > 2 else table
        table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
        scale = max(float(1 - table.mean(0) @ table[: int(known[:count].sum())].mean(0)), 1e-9)
    positions = np.cumsum(known) - 1  # rows of the table
    for first in range(0, len(indices), ERRORS_PER_BLOCK):
        block = slice(first, first + ERRORS_PER_BLOCK)
        distances = ((values[block, None] - values[None, :count]) ** 2).sum(2) / (2 * values.shape[1])
        if table is not None:
            apart = np.ones_like(distances)
            cosine = 1 - table[positions[block][known[block]]] @ table[positions[:count][known[:count]]].T
            apart[np.ix_(known[block], known[:count])] = cosine / scale
            distances += apart
        yield from distances


def _properties(case: AuditCase) -> list[float]:
    """Score, size, shape, position and IoU with the object concerned; the score of missed objects is not known."""
    height, width = case.image_size_hw
    x1, y1, x2, y2 = case.box_xyxy
    box_width, box_height = max(x2 - x1, 1e-3), max(y2 - y1, 1e-3)
    border = min(x1 / width, y1 / height, 1 - x2 / width, 1 - y2 / height)
    return [
        0.0 if _is_missed(case) else case.score,
        math.log(box_width * box_height / (height * width)),
        math.log(box_width / box_height),
        border,
        (y1 + y2) / (2 * height),
        case.ground_truth.iou if case.ground_truth is not None and not _is_missed(case) else 0.0,
    ]
