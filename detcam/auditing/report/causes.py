"""What the report page says first: the costliest causes in words, and the action for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detcam.auditing.case import AuditCase, EvidenceKind
from detcam.auditing.grouping.actions import Action, choose_action
from detcam.auditing.grouping.hierarchy import CauseNode, classes_name
from detcam.auditing.grouping.inventory import MISSED_PHRASES
from detcam.auditing.sentences import UNMATCHED
from detcam.utils.console import plural
from detcam.utils.files import json_number

MAX_CAUSES = 3
MIN_PART = 0.6
"""Minimum share of the cases of a cause, and of its cost if it has one, that one cause below it must have to stand in
its place."""
MAX_NAMES = 2
MAX_CASES = 2000
"""Maximum number of cases of a cause that the page can list."""

DETECTIONS: Mapping[EvidenceKind, str] = {
    "part of the object": "rest on a part of the object",
    "object itself": "rest on the object itself, and why its class is wrong is not known",
    "another object": "rest on another object",
    "mark": "rest on a mark outside the object",
    "surroundings": "rest on the surroundings, not on an object in the box",
    "image border": "rest on the border of the image",
    "object and surroundings": "rest on the object together with its surroundings",
    "absent context": "lack the surroundings of found objects",
    "look-alike": "lie on background that looks like the class",
    "unlabeled object": "may lie on real objects without an annotation",
    "not confirmed": "have no confirmed cause",
}
"""Of wrong detections, in words."""
UNSUPPRESSED = "are not detected, and no region is confirmed to suppress them"
ACTION_TEXTS: Mapping[Action, str] = {
    "relabel": "Relabel: check whether the objects are real, and add the missing annotations.",
    "counterfactual pairs": "Train with counterfactual pairs: images with and without the evidence, labels unchanged.",
    "hard negatives": "Train with these images as hard negatives, and check the definition of the class.",
    "review boxes": "Compare the boxes with the annotations, and correct these or train with more such objects.",
    "review classes": "Compare the classes with the annotations, and correct these or agree on what tells them apart.",
    "add images": "Add training images with such objects; if a region suppresses them, also without it; if they "
    "lack the surroundings of found objects, in other surroundings.",
    "look at the cases": "Look at the cases: no region is confirmed as the cause.",
}


@dataclass(frozen=True)
class TopCause:
    """A cause that the page begins with.

    Attributes:
        sentence: the errors and what they have in common.
        action: what to do about it.
        cause: its node in the hierarchy.
        example: the case that the page shows.
    """

    sentence: str
    action: Action
    cause: CauseNode
    example: AuditCase

    def to_json(self) -> dict[str, Any]:
        """Convert for the page."""
        return {
            "sentence": self.sentence,
            "action": self.action,
            "action_text": ACTION_TEXTS[self.action],
            "case_ids": list(self.cause.case_ids[:MAX_CASES]),
            **_numbers(self.cause),
        }


def top_causes(causes: Sequence[CauseNode], cases: Mapping[str, AuditCase], noun: str = "error") -> list[TopCause]:
    """Choose the costliest causes: confirmed kinds of evidence, and missed objects; others only if there are too few.

    A cause is as general as necessary: if most of its cases, with most of its cost, have the same classes or are in one
    group, it is these.

    Args:
        causes: the hierarchy of causes.
        cases: the explained cases by id.
        noun: what the cases are called: detections without annotations are no errors.

    Returns:
        At most three causes, actionable ones first, then by decreasing cost.
    """
    found = []
    for root in causes:
        node = _narrow(root)
        members = [cases[case_id] for case_id in node.case_ids]
        typical = _typical(members)
        example = max(typical, key=lambda case: (case.confirmed, _known(case.delta_ap), case.score))
        found.append(TopCause(_sentence(node, members, noun), choose_action(typical), node, example))
    found.sort(key=lambda top: (top.action == "look at the cases", -_cost(top.cause), -len(top.cause)))
    return found[:MAX_CAUSES]


def _numbers(node: CauseNode) -> dict[str, Any]:
    return {
        "size": len(node),
        "confirmed_count": node.confirmed_count,
        "delta_ap": json_number(node.delta_ap),
        "estimated_count": json_number(node.estimated_count),
        "estimated_interval": [json_number(limit) for limit in node.estimated_interval],
        "estimated_delta_ap": json_number(node.estimated_delta_ap),
    }


def _narrow(node: CauseNode) -> CauseNode:
    """The cause below a cause that most of its cases have, with most of its cost; the cause itself if there is none."""
    for child in node.children:
        # Errors that cost nothing, or less, have no cost to share.
        is_costly = _cost(node) <= 0 or _cost(child) >= MIN_PART * _cost(node)
        if child.level in ("pair", "classes") and len(child) >= MIN_PART * len(node) and is_costly:
            return _narrow(child)
    return node


def _typical(cases: Sequence[AuditCase]) -> list[AuditCase]:
    """The missed objects among cases if these are the majority, else the others."""
    missed = [case for case in cases if case.type == "missed"]
    return missed if 2 * len(missed) > len(cases) else [case for case in cases if case.type != "missed"]


def _sentence(node: CauseNode, cases: Sequence[AuditCase], noun: str) -> str:
    """The errors and what they have in common; the costliest classes are named."""
    typical = _typical(cases)
    if typical[0].type == "missed":
        what, errors = MISSED_PHRASES.get(node.kind, UNSUPPRESSED), "missed object"
    else:
        what, errors = DETECTIONS[node.kind], noun
    subject = plural(len(cases), errors)
    if errors == "missed object" and len(typical) < len(cases):
        subject = f"{len(cases)} errors, most of them missed objects,"
    is_mixed = len({case.type for case in typical}) > 1
    costs: dict[str, float] = {}
    counts = Counter[str]()
    for case in typical:
        name = _name(case, is_mixed)
        costs[name] = costs.get(name, 0.0) + _known(case.delta_ap)
        counts[name] += 1
    names = sorted(counts, key=lambda name: (-costs[name], -counts[name], name))
    return f"{subject} {_agree(what, len(cases))}: {_listed(names, counts)}"


def _listed(names: Sequence[str], counts: Mapping[str, int]) -> str:
    """The first names, with their counts if there are several, and how many errors have other names."""
    if len(names) == 1:
        return names[0]
    listed = [f"{name} ({counts[name]})" for name in names[:MAX_NAMES]]
    rest = sum(counts[name] for name in names[MAX_NAMES:])
    listed += [plural(rest, "other")] if rest else []
    return f"{', '.join(listed[:-1])} and {listed[-1]}"


def _name(case: AuditCase, is_mixed: bool) -> str:
    """The classes of an error, and its type where neither they nor the kind of evidence tell it."""
    if case.type in ("classification", "both"):
        return classes_name(case)
    background = UNMATCHED if is_mixed else ""
    named = {"localization": "inaccurate box of {}", "duplicate": "duplicate of {}", "background": f"{{}}{background}"}
    return named.get(case.type, "{}").format(case.name)


def _agree(what: str, count: int) -> str:
    """The phrase in the singular for one error."""
    if count != 1:
        return what
    verb, rest = what.split(" ", 1)
    singular = {"rest": "rests", "lie": "lies", "lack": "lacks", "may": "may", "have": "has", "are": "is"}[verb]
    rest = rest.replace(" of them ", " of it ").replace(" them", " it").replace("real objects", "a real object")
    return f"{singular} {rest}"


def _cost(node: CauseNode) -> float:
    cost = node.estimated_delta_ap if math.isfinite(node.estimated_delta_ap) else node.delta_ap
    return round(_known(cost), 4)


def _known(value: float) -> float:
    return value if math.isfinite(value) else 0.0
