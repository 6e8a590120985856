"""Assignment of unexplained errors to the causes of explained ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from detcam.auditing.case import AuditCase, EvidenceKind, GroundTruthObject
from detcam.auditing.grouping.assignment import MIN_EXPLAINED, Assignment, assign_errors, class_key
from detcam.auditing.grouping.hierarchy import build_causes
from tests.auditing.grouping.cases import make_case

PLAIN = make_case(box_xyxy=(40, 40, 50, 50))


def make(kinds: Sequence[EvidenceKind | None], **options: object) -> list[AuditCase]:
    return [
        replace(PLAIN, id=str(number), image_id=number, evidence_kind=kind, **options)  # type: ignore[arg-type]
        for number, kind in enumerate(kinds)
    ]


def assigned(cases: Sequence[AuditCase], features: dict[int, np.ndarray] | None = None) -> Assignment:
    found = assign_errors(cases, range(len(cases)), features or {})
    assert found is not None
    return found


def members(cases: Sequence[AuditCase], kind: EvidenceKind) -> list[int]:
    return [index for index, case in enumerate(cases) if case.evidence_kind == kind]


def test_errors_of_the_same_type_and_classes_are_compared() -> None:
    marks = make(["mark"] * 10 + [None] * 20)
    others = make(["look-alike"] * 10 + [None] * 30, type="localization")
    cases = [*marks, *(replace(case, id=f"b{case.id}", image_id=f"b{case.id}") for case in others)]
    found = assigned(cases)
    assert found.error == 0 and found.baseline_error == 0.5
    assert found.count(members(cases, "mark"), None)[0] == pytest.approx(30)
    assert found.count(members(cases, "look-alike"), None)[0] == pytest.approx(40)
    assert found.most_likely(members(cases, "mark"), None) == list(range(10, 30))


def test_missed_objects_do_not_have_the_causes_of_false_positives() -> None:
    false_positives = make(["look-alike"] * 10 + [None] * 5)
    missed = [replace(case, type="missed", id=f"m{case.id}", image_id=f"m{case.id}") for case in make([None] * 20)]
    found = assigned([*false_positives, *missed])
    assert found.assigned.tolist() == list(range(10, 15)), "no missed object is explained"
    assert found.count(range(10), None)[::2] == pytest.approx((15, 15)), "at most the false positives"
    with_one = [*false_positives, replace(missed[0], evidence_kind="surroundings"), *missed[1:]]
    found = assigned(with_one)
    assert found.count(range(10), None)[0] == pytest.approx(15)
    assert found.count(members(with_one, "surroundings"), None)[0] == pytest.approx(20)


def test_no_more_errors_than_there_are_of_the_type_and_classes() -> None:
    cases = make(["mark", "look-alike"] * 10 + [None] * 3)
    cases += [replace(case, type="localization", id=f"l{case.id}", image_id=f"l{case.id}") for case in make([None] * 9)]
    found, marks = assigned(cases), range(0, 20, 2)
    assert found.count(marks, {class_key(cases[0])})[2] == pytest.approx(13)
    assert found.count(marks, None)[2] > 13, "of any type"


def test_properties_and_features_separate_errors_of_one_class() -> None:
    rng = np.random.default_rng(0)
    kinds: list[EvidenceKind | None] = ["mark"] * 15 + ["surroundings"] * 15 + [None] * 40
    cases = make(kinds)
    is_mark = np.array([True] * 15 + [False] * 15 + [True] * 10 + [False] * 30)
    scored = [
        replace(case, score=float(np.clip(rng.normal(0.4 + 0.4 * mark, 0.03), 0, 1)))
        for case, mark in zip(cases, is_mark.tolist(), strict=True)
    ]
    found = assigned(scored)
    assert found.error < 0.1 and found.count(members(cases, "mark"), None)[0] == pytest.approx(25, abs=3)
    features = {index: rng.normal(size=6) * 0.3 + np.eye(6)[int(mark)] * 2 for index, mark in enumerate(is_mark)}
    found = assigned(cases, features)
    assert found.error < 0.1 and found.count(members(cases, "mark"), None)[0] == pytest.approx(25, abs=3)
    known_half = {index: values for index, values in features.items() if index % 2}
    assert 0 < assigned(cases, known_half).error < 0.5, "the others are at the average distance"


def test_few_explained_errors_without_a_residual_prove_little() -> None:
    """The interval is near that of the rule of three: at most 3 of n are wrong, so at most 3 u / n of u."""
    widths = []
    for size in (20, 41, 400):
        kinds: list[EvidenceKind | None] = ["mark"] * size + ["look-alike"] * size + [None] * 2 * size
        cases = [
            replace(case, score=0.9 if number % (2 * size) < size else 0.4) for number, case in enumerate(make(kinds))
        ]
        found = assigned(cases)
        estimate, low, high = found.count(members(cases, "mark"), None)
        assert found.error == 0 and estimate == 2 * size
        widths.append((high - estimate) / (2 * size))
        assert high - estimate == pytest.approx(estimate - low)
    assert widths == pytest.approx([3.67 / 40, 3.75 / 82, 3.83 / 800], rel=0.01)
    everything = make(["mark"] * 20)
    assert assigned(everything).count(range(20), None) == (20, 20, 20), "nothing is estimated"


def test_intervals_cover_the_true_number() -> None:
    """Three kinds in the ratio 60 to 30 to 10, which features separate in part."""
    kinds: list[EvidenceKind] = ["mark", "surroundings", "look-alike"]
    rng = np.random.default_rng(0)
    covered, errors = [], []
    for _ in range(40):
        true = rng.choice(3, size=200, p=[0.6, 0.3, 0.1])
        features = {index: rng.normal(size=4) + 1.5 * np.eye(4)[value] for index, value in enumerate(true.tolist())}
        cases = make([kinds[value] if index < 60 else None for index, value in enumerate(true.tolist())])
        found = assigned(cases, features)
        for number, kind in enumerate(kinds):
            estimate, low, high = found.count(members(cases, kind), None)
            covered.append(low <= (true == number).sum() <= high)
            errors.append(estimate - (true == number).sum())
    assert np.mean(covered) >= 0.9 and abs(np.mean(errors)) < 3


def test_cross_validation_leaves_out_the_image() -> None:
    cases = [replace(case, image_id=number // 5) for number, case in enumerate(make(["mark"] * 5 + ["look-alike"] * 5))]
    found = assigned(cases)
    assert found.error == 1, "the neighbors in another image all have the other kind"
    with_copies = {index: np.eye(2)[index // 5] for index in range(10)}
    assert assigned(cases, with_copies).error == 1


def test_too_few_explained_errors() -> None:
    assert assign_errors(make(["mark"] * (MIN_EXPLAINED - 1) + [None]), range(MIN_EXPLAINED), {}) is None
    one_image = [replace(case, image_id=1) for case in make(["mark"] * 20)]
    assert assign_errors(one_image, range(20), {}) is None


def test_numbers_in_the_hierarchy() -> None:
    truth = GroundTruthObject((0, 0, 10, 10), 1, "toilet", 0.9, 3)
    sinks = make(
        ["part of the object"] * 10 + [None] * 5, type="classification", label=5, name="sink", ground_truth=truth
    )
    boats = make(["surroundings"] * 10 + [None] * 8 + ["surroundings"])
    cases = [*sinks, *(replace(case, id=f"b{case.id}", image_id=f"b{case.id}") for case in boats)]
    assert class_key(sinks[0]) == ("classification", 5, 1) and class_key(boats[0]) == ("background", 0, None)

    def cost(indices: Sequence[int]) -> float:
        return 0.001 * len(indices)

    causes = {cause.name: cause for root in build_causes(cases, {}, cost, assigned(cases)) for _, cause in root.walk()}
    assert causes["surroundings"].estimated_count == pytest.approx(19)
    assert causes["sink on toilet"].estimated_count == pytest.approx(15)
    low, high = causes["sink on toilet"].estimated_interval
    assert 10 <= low < 15 and high == pytest.approx(15), "at least the explained errors, at most those of the classes"
    assert (causes["sink on toilet"].delta_ap, causes["sink on toilet"].estimated_delta_ap) == pytest.approx(
        (0.010, 0.015)
    )
    (first, *_) = build_causes(cases, {}, cost)
    assert math.isnan(first.estimated_count) and math.isnan(first.estimated_delta_ap)


def test_unknown_classes_count_for_the_kind_alone() -> None:
    cases = make(["mark"] * 10 + [None])
    cases[10] = replace(cases[10], label=7, name="buoy")
    (root,) = build_causes(cases, {}, lambda indices: 0.0, assigned(cases))
    assert root.estimated_count == pytest.approx(11) and root.children[0].estimated_count == pytest.approx(10)


def test_neighbors_do_not_depend_on_the_blocks_of_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    kinds: list[EvidenceKind | None] = ["mark", None, "surroundings", None, None] * 8
    cases = [replace(case, score=float(score)) for case, score in zip(make(kinds), rng.random(40), strict=True)]
    features = {index: rng.normal(size=6) for index in range(0, 40, 3)}
    whole = assigned(cases, features)
    monkeypatch.setattr("detcam.auditing.grouping.assignment.ERRORS_PER_BLOCK", 7)
    parts = assigned(cases, features)
    assert np.array_equal(whole.neighbors, parts.neighbors) and np.array_equal(whole.held_out, parts.held_out)
