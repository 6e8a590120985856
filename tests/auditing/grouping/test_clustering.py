"""Groups of errors with similar evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from detcam.auditing.case import AuditCase, GroundTruthObject
from detcam.auditing.grouping.clustering import group_cases
from tests.auditing.grouping.cases import make_case

BOX = (0.0, 0.0, 10.0, 10.0)
RING, INSIDE = {"ring": 1.0}, {"predicted box": 1.0}


def case(number: int, **options: object) -> AuditCase:
    evidence = {"evidence_shares": RING, "evidence_location": "ring", "evidence_form": "area"}
    plain = {"id": f"case-{number}", "image_id": number, "name": "cat", "delta_ap": 0.0, "method": "portfolio"}
    return make_case(**{**plain, **evidence, **options})


def found(cases: list[AuditCase], features: list[np.ndarray | None], delta_ap: object = None) -> list[list[str]]:
    """The ids in each group."""
    _, groups = group_cases(cases, features, delta_ap or (lambda members: float("nan")))  # type: ignore[arg-type]
    return [[name.removeprefix("case-") for name in group.case_ids] for group in groups]


def test_groups_of_undefined_cost_are_ranked_by_confirmed_effect_then_by_score() -> None:
    features = [each for each in np.eye(4) for _ in range(2)]
    of_group = [
        {"score": 0.7, "verdict": "not confirmed"},
        {"score": 0.4, "effect": 0.5},
        {"score": 0.8, "verdict": "not confirmed"},
        {"score": 0.6, "effect": 0.9},
    ]
    cases = [case(number, **of_group[number // 2]) for number in range(8)]
    assert found(cases, features) == [["6", "7"], ["2", "3"], ["4", "5"], ["0", "1"]]
    _, groups = group_cases(cases, features, lambda members: float("nan"))
    assert groups[2].sentence == "cat: 2 background errors; no evidence confirmed; highest score 0.80"
    costs = {0: 0.0004, 2: 0.1, 4: float("nan"), 6: 0.2}
    ranked = found(cases, features, lambda members: costs[members[0]])
    assert ranked == [["6", "7"], ["2", "3"], ["4", "5"], ["0", "1"]], "equal in thousandths: by score"


def test_errors_with_similar_evidence_form_a_group() -> None:
    one, other = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    cases = [case(0), case(1), case(2), case(3, evidence_location="scene"), case(4, verdict="weak"), case(5)]
    cases.append(case(6, verdict="not confirmed"))
    cases.append(case(7, evidence_shares=INSIDE, evidence_location="predicted box"))
    features = [one, other, one + 0.1 * other, one, other * 3, None, other, one]
    described, groups = group_cases(cases, features, lambda members: 0.1 if 1 in members else 0.01 * len(members))
    assert [set(group.case_ids) for group in groups] == [{"case-1", "case-4"}, {"case-0", "case-2", "case-3"}]
    assert [each.group for each in described] == [1, 0, 1, 1, 0, None, None, None], "single cases have no group"
    kinds = [each.evidence_kind for each in described]
    assert kinds == ["surroundings"] * 6 + ["not confirmed", "look-alike"]
    first, second = groups
    assert first.number == 0 and first.delta_ap == 0.1 and first.confirmed_count == 2
    assert (
        first.sentence
        == "cat: 2 background errors, evidence in the ring around the box; 2 of 2 confirmed; delta AP 0.100"
    )
    assert second.evidence_location == "ring", "the most frequent one"
    true = GroundTruthObject(BOX, 1, "dog", 0.9, 3)
    split = [
        case(0, type="classification", ground_truth=true),
        case(1, type="classification", ground_truth=replace(true, label=2)),
    ]
    assert found(split, [one, one]) == [], "another true class forms another group"
    assert found([replace(each, ground_truth=true) for each in split], [one, one]) == [["0", "1"]]


def test_the_majority_of_a_group_decides_on_the_form_of_its_evidence() -> None:
    one = np.array([1.0, 0.0])
    forms = ["mark", "mark", "area"]
    described, (group,) = group_cases(
        [case(number, evidence_form=form) for number, form in enumerate(forms)], [one] * 3, lambda members: 0.01
    )
    assert group.evidence_kind == "mark" and {each.evidence_kind for each in described} == {"mark"}
    assert "evidence in the ring around the box (a mark); 3 of 3" in group.sentence
    forms = ["mark", "mark", "mark", "area", "area", "border"]
    _, (group,) = group_cases(
        [case(number, evidence_form=form) for number, form in enumerate(forms)], [one] * 6, lambda members: 0.01
    )
    assert group.evidence_kind == "surroundings", "half of them are no mark"
    both = {"evidence_shares": {"ring": 0.6, "predicted box": 0.4}}
    described, (group,) = group_cases([case(0), case(1, **both), case(2, **both)], [one] * 3, lambda members: 0.01)
    assert group.evidence_kind == "object and surroundings" and len(group) == 3, "the same thing reaches into the box"
    other = np.array([0.0, 1.0])
    described, _ = group_cases([case(0, evidence_form="mark"), case(1)], [one, other], lambda members: 0.01)
    assert [each.evidence_kind for each in described] == ["mark", "surroundings"]


def test_missed_objects_are_ranked_by_what_removal_gains() -> None:
    """The best candidates of missed objects have hardly a score."""
    one, other = np.eye(2)
    missed = {"type": "missed", "score": 0.001}
    small = [case(n, **missed, effect=0.3, failure_stage="below threshold") for n in (0, 1)]
    large = [case(n, **missed, effect=0.9, failure_stage="no candidate") for n in (2, 3)]
    weak_alarm = [case(n, score=0.5, effect=0.5) for n in (4, 5)]
    cases = [*small, *large, *weak_alarm]
    assert found(cases, [one] * 6) == [["2", "3"], ["0", "1"], ["4", "5"]]
    _, groups = group_cases(cases, [one] * 4 + [other] * 2, lambda members: float("nan"))
    assert "2 missed objects (no candidate), appearing when the region in the ring" in groups[0].sentence
    assert "2 of 2 confirmed" in groups[0].sentence


def test_the_case_nearest_to_the_center_comes_first() -> None:
    angles = (0.0, 0.35, 0.3)
    features = [np.array([np.cos(angle), np.sin(angle)]) for angle in angles]
    _, (group,) = group_cases([case(i) for i in range(3)], features, lambda members: 0.0)
    center = sum(features) / 3
    expected = sorted(range(3), key=lambda i: -float(features[i] @ center))
    assert group.case_ids == tuple(f"case-{i}" for i in expected)
