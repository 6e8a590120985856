"""The hierarchy of causes: kinds of evidence, confusions as pairs of classes, classes, groups of errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from detcam.auditing.case import EVIDENCE_KINDS, AuditCase, EvidenceKind
from detcam.auditing.case_table import explained_cases
from detcam.auditing.grouping.assignment import Assignment, class_key
from detcam.utils.batching import group_by
from detcam.utils.files import json_value

CauseLevel: TypeAlias = Literal["kind", "pair", "classes", "group", "single cases"]
"""Level of a cause.

``kind``: a kind of evidence; ``pair``: two classes that are confused, in either direction, or the class of an error
that concerns no other; ``classes``: predicted and true class and error type; ``group``: errors whose evidence looks
alike; ``single cases``: errors that have no other of their own kind at this level.
"""


@dataclass(frozen=True, order=True)
class Cause:
    """What identifies a cause in any audit: the names of its nodes in the hierarchy, without the groups.

    Groups are clusters of a network's features, which another network does not share.

    Attributes:
        kind: kind of evidence.
        classes: predicted and true class and error type: `classes_name`.
    """

    kind: EvidenceKind
    classes: str

    @classmethod
    def of(cls, case: AuditCase) -> Cause | None:
        """The cause of a case; None if it is not explained, or neither confirmed nor a possible missing annotation."""
        if case.evidence_kind is None or case.evidence_kind == "not confirmed":
            return None
        return cls(case.evidence_kind, classes_name(case))

    @property
    def name(self) -> str:
        """The cause in a line: ``"surroundings: boat, background"``."""
        return f"{self.kind}: {self.classes}"


@dataclass(frozen=True)
class CauseNode:
    """A node in the hierarchy of causes.

    Attributes:
        level: level of the hierarchy.
        name: kind of evidence, classes, or summary of a group.
        kind: kind of evidence.
        group: number of the group; None at other levels.
        case_ids: ids of its explained cases, in the order of the audit.
        confirmed_count: number of those whose evidence is confirmed.
        delta_ap: increase of average precision when its explained cases are corrected; NaN if their classes have no
            objects.
        estimated_count: estimated number of relevant errors of the whole data set with this cause; NaN if it was not
            estimated.
        estimated_interval: 95 % interval of that number, from cross-validation; NaN if it was not estimated.
        estimated_delta_ap: the same with the unexplained cases that are assigned to it; NaN if it was not estimated.
        children: causes of the next level, by decreasing cost, single cases last.
    """

    level: CauseLevel
    name: str
    kind: EvidenceKind
    group: int | None
    case_ids: tuple[str, ...]
    confirmed_count: int
    delta_ap: float
    estimated_count: float = math.nan
    estimated_interval: tuple[float, float] = (math.nan, math.nan)
    estimated_delta_ap: float = math.nan
    children: tuple[CauseNode, ...] = ()

    def __len__(self) -> int:
        return len(self.case_ids)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, CauseNode]]:
        """Yield the cause and those below it, each before its children, with their depth in the hierarchy."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


def causes_to_json(causes: Sequence[CauseNode]) -> list[dict[str, Any]]:
    """Convert a hierarchy to the entries of ``audit.json``: each cause with its depth, before its children."""
    return [
        json_value({"depth": depth} | {key: value for key, value in vars(cause).items() if key != "children"})
        for root in causes
        for depth, cause in root.walk()
    ]


@dataclass(frozen=True)
class _Builder:
    """Builds the nodes of the hierarchy.

    Args:
        cases: all errors.
        delta_ap: increase of average precision when some of them, given by index, are corrected.
        sentences: sentences of the groups by number.
        assignment: the unexplained errors; None estimates no numbers of all errors.
    """

    cases: Sequence[AuditCase]
    delta_ap: Callable[[Sequence[int]], float]
    sentences: Mapping[int, str]
    assignment: Assignment | None

    def node(
        self, level: CauseLevel, name: str, indices: Sequence[int], children: Sequence[CauseNode] = ()
    ) -> CauseNode:
        first = self.cases[indices[0]]
        if first.evidence_kind is None:
            raise ValueError(f"expected cases with a kind of evidence; case {first.id} has none")
        return CauseNode(
            level=level,
            name=name,
            kind=first.evidence_kind,
            group=first.group if level == "group" else None,
            case_ids=tuple(self.cases[index].id for index in indices),
            confirmed_count=sum(self.cases[index].confirmed for index in indices),
            delta_ap=self.delta_ap(indices),
            children=tuple(children),
            **self._estimates(level, indices),
        )

    def _estimates(self, level: CauseLevel, indices: Sequence[int]) -> dict[str, Any]:
        """The estimated number and cost of all errors with a cause."""
        if self.assignment is None:
            return {}
        keys = None if level == "kind" else {class_key(self.cases[index]) for index in indices}
        estimate, low, high = self.assignment.count(indices, keys)
        assigned = self.assignment.most_likely(indices, keys)
        return {
            "estimated_count": estimate,
            "estimated_interval": (low, high),
            "estimated_delta_ap": self.delta_ap([*indices, *assigned]),
        }

    def kind(self, name: str, indices: Sequence[int]) -> CauseNode:
        return self.node("kind", name, indices, self._split(indices, pair_name, self.pair))

    def pair(self, name: str, indices: Sequence[int]) -> CauseNode:
        """A pair; with errors of one type and direction only, their classes take its place."""
        if len({classes_name(self.cases[index]) for index in indices}) == 1:
            return self.classes(classes_name(self.cases[indices[0]]), indices)
        return self.node("pair", name, indices, self._split(indices, classes_name, self.classes))

    def classes(self, name: str, indices: Sequence[int]) -> CauseNode:
        groups = group_by(indices, lambda index: self.cases[index].group)
        children = [
            self.node("group", self.sentences[number], members)
            for number, members in groups.items()
            if number is not None
        ]
        singles = [self.node("single cases", "single cases", groups[None])] if children and None in groups else []
        return self.node("classes", name, indices, [*sorted(children, key=_rank), *singles])

    def _split(
        self, indices: Sequence[int], key: Callable[[AuditCase], str], build: Callable[[str, Sequence[int]], CauseNode]
    ) -> list[CauseNode]:
        """The nodes of the next level; those of one case are joined, and omitted if there are no others."""
        parts = group_by(indices, lambda index: key(self.cases[index]))
        children = [build(name, members) for name, members in parts.items() if len(members) > 1]
        singles = [members[0] for members in parts.values() if len(members) == 1]
        if children and singles:
            return [*sorted(children, key=_rank), self.node("single cases", "single cases", singles)]
        return sorted(children, key=_rank)


def build_causes(
    cases: Sequence[AuditCase],
    sentences: Mapping[int, str],
    delta_ap: Callable[[Sequence[int]], float],
    assignment: Assignment | None = None,
) -> tuple[CauseNode, ...]:
    """Build the hierarchy of the causes of explained errors.

    Args:
        cases: all errors, with kinds of evidence and groups where they are explained.
        sentences: sentences of the groups by number.
        delta_ap: increase of average precision when some of the errors, given by index, are corrected; NaN where it is
            undefined.
        assignment: the unexplained errors, with the explained ones that resemble them; None estimates no numbers of all
            errors.

    Returns:
        The kinds of evidence by decreasing cost, evidence that is not confirmed last.
    """
    builder = _Builder(cases, delta_ap, sentences, assignment)
    explained = [index for index, case in explained_cases(cases).items() if case.evidence_kind is not None]
    kinds = group_by(explained, lambda index: cases[index].evidence_kind)
    roots = [builder.kind(kind, kinds[kind]) for kind in EVIDENCE_KINDS if kind in kinds]
    return tuple(sorted(roots, key=lambda root: (root.kind == "not confirmed", *_rank(root))))


def _rank(cause: CauseNode) -> tuple[float, int, str]:
    """Sorting key: the cost, in thousandths, the number of cases, the name."""
    cost = round(cause.delta_ap, 3) if math.isfinite(cause.delta_ap) else 0.0
    return -cost, -len(cause), cause.name


def other_class(case: AuditCase) -> str:
    """Name of the second class that an error concerns; empty if there is none.

    It is the true class of a classification error, or the class of the object that the evidence lies on.
    """
    if case.type in ("classification", "both"):
        return "" if case.ground_truth is None else case.ground_truth.name
    if case.evidence_kind == "another object":
        is_overlapped = case.evidence_location == "ground truth" and case.ground_truth is not None
        return case.evidence_object or (case.ground_truth.name if is_overlapped and case.ground_truth else case.name)
    return ""


def pair_name(case: AuditCase) -> str:
    """Name of the pair of classes that an error concerns, in either direction: ``"sink and toilet"``."""
    return " and ".join(sorted({case.name, other_class(case)} - {""}))


def classes_name(case: AuditCase) -> str:
    """Name of the classes and type of an error: ``"sink on toilet"``."""
    other = other_class(case)
    if case.type in ("classification", "both"):
        return f"{case.name} {'on' if case.type == 'classification' else 'beside'} {other or 'another object'}"
    evidence = f" because of {other}" if other else ""
    return f"{case.name} missed{evidence}" if case.type == "missed" else f"{case.name}, {case.type}{evidence}"
