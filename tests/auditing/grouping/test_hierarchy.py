"""The hierarchy of causes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from detcam.auditing.case import AuditCase, GroundTruthObject
from detcam.auditing.grouping.hierarchy import CauseNode, build_causes, causes_to_json, classes_name, pair_name
from tests.auditing.grouping.cases import make_case

PLAIN = make_case(name="", delta_ap=0.01)


def on(
    name: str, true: str, kind: str = "part of the object", group: int | None = None, **options: object
) -> AuditCase:
    truth = GroundTruthObject((0, 0, 10, 10), 1, true, 0.9, 3)
    return replace(
        PLAIN, type="classification", name=name, ground_truth=truth, evidence_kind=kind, group=group, **options
    )  # type: ignore[arg-type]


def plain(name: str, kind: str | None, group: int | None = None, **options: object) -> AuditCase:
    return replace(PLAIN, name=name, evidence_kind=kind, group=group, **options)  # type: ignore[arg-type]


def numbered(cases: Sequence[AuditCase]) -> list[AuditCase]:
    return [replace(case, id=str(number)) for number, case in enumerate(cases)]


def tree(causes: Sequence[CauseNode]) -> list[str]:
    """Lines of depth, level, name and ids."""
    return [
        f"{'  ' * depth}{cause.level}: {cause.name} ({' '.join(cause.case_ids)})"
        for root in causes
        for depth, cause in root.walk()
    ]


def build(cases: Sequence[AuditCase], groups: int = 2) -> tuple[CauseNode, ...]:
    sentences = {number: f"group {number}" for number in range(groups)}
    return build_causes(cases, sentences, lambda indices: round(sum(cases[index].delta_ap for index in indices), 6))


CASES = numbered(
    [
        on("sink", "toilet"),
        on("toilet", "sink"),
        on("cat", "dog"),
        on("sink", "toilet", group=0),
        on("sink", "toilet", group=0),
        plain("boat", "surroundings", 1),
        plain("boat", "surroundings", 1),
        plain("buoy", "surroundings"),
        plain("boat", None),
        plain("boat", "not confirmed", verdict="not confirmed", delta_ap=1.0),
        plain("boat", "another object", evidence_object="buoy"),
        plain("buoy", "another object", evidence_object="boat"),
    ]
)


def test_levels_of_the_hierarchy() -> None:
    assert tree(build(CASES)) == [
        "kind: part of the object (0 1 2 3 4)",
        "  pair: sink and toilet (0 1 3 4)",
        "    classes: sink on toilet (0 3 4)",
        "      group: group 0 (3 4)",
        "      single cases: single cases (0)",
        "    single cases: single cases (1)",
        "  single cases: single cases (2)",
        "kind: surroundings (5 6 7)",
        "  classes: boat, background (5 6)",
        "    group: group 1 (5 6)",
        "  single cases: single cases (7)",
        "kind: another object (10 11)",
        "  pair: boat and buoy (10 11)",
        "kind: not confirmed (9)",
    ], "evidence that is not confirmed is last, whatever it costs; pairs without further structure have no children"


def test_costs_and_counts() -> None:
    first, *_, last = build(CASES)
    assert first.delta_ap == pytest.approx(0.05) and (len(first), first.confirmed_count) == (5, 5)
    assert (last.delta_ap, last.confirmed_count) == (1.0, 0)
    assert first.children[0].children[0].children[0].group == 0 and first.group is None


def test_every_explained_case_is_once_at_each_level() -> None:
    roots = build(CASES)
    assert sorted(int(name) for root in roots for name in root.case_ids) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    for root in roots:
        for _, cause in root.walk():
            inside = [name for child in cause.children for name in child.case_ids]
            assert not inside or sorted(inside) == sorted(cause.case_ids), cause.name


def test_costliest_cause_first_then_the_largest() -> None:
    cases = numbered(
        [plain("a", "mark")] + [plain("b", "surroundings", delta_ap=0.0)] * 3 + [plain("c", "look-alike", delta_ap=0.0)]
    )
    assert [root.kind for root in build(cases)] == ["mark", "surroundings", "look-alike"]


def test_names_of_classes_and_pairs() -> None:
    assert (pair_name(CASES[0]), pair_name(CASES[1])) == ("sink and toilet", "sink and toilet")
    assert classes_name(CASES[1]) == "toilet on sink"
    assert classes_name(replace(CASES[1], type="both")) == "toilet beside sink"
    assert classes_name(CASES[10]) == "boat, background because of buoy"
    assert classes_name(replace(CASES[10], type="missed")) == "boat missed because of buoy"
    assert (pair_name(CASES[5]), classes_name(CASES[5])) == ("boat", "boat, background")


def test_json_is_flat_in_the_order_of_the_hierarchy() -> None:
    rows = causes_to_json(build(CASES))
    assert [row["depth"] for row in rows] == [0, 1, 2, 3, 3, 2, 1, 0, 1, 2, 1, 0, 1, 0]
    assert rows[0]["kind"] == "part of the object" and rows[0]["estimated_count"] is None
    assert "children" not in rows[0] and rows[3]["group"] == 0 and rows[3]["case_ids"] == ["3", "4"]
