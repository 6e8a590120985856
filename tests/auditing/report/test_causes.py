"""What the page says first: costliest causes, actions, curves, confusions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detcam.auditing import analyze_errors
from detcam.auditing.case import EVIDENCE_KINDS, AuditCase, EvidenceKind, GroundTruthObject
from detcam.auditing.errors import ErrorType
from detcam.auditing.grouping.hierarchy import CauseNode, build_causes
from detcam.auditing.report.causes import top_causes
from detcam.auditing.report.curves import MAX_CONFUSED, ScoreCurves, confusions
from tests.auditing.random_data import make_random_data


def case(number: int, **changes: object) -> AuditCase:
    made = AuditCase(
        id=f"case-{number}", image_id=1, file_name="a.png", image_size_hw=(100, 100), type="background", label=1,
        name="boat", score=0.9, box_xyxy=(0.0, 0.0, 10.0, 10.0), is_false_positive=True, ground_truth=None,
        delta_ap=0.01, method="ReachCAM", verdict="strong", evidence_location="ring", background_type="context",
        evidence_shares={"ring": 1.0}, evidence_kind="surroundings", effect=0.8,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def truth(name: str) -> GroundTruthObject:
    return GroundTruthObject((0.0, 0.0, 10.0, 10.0), 2, name, 0.6, 7)


def hierarchy(cases: list[AuditCase]) -> tuple[CauseNode, ...]:
    return build_causes(cases, {}, lambda members: sum(cases[member].delta_ap for member in members))


def test_costliest_causes_come_first_with_their_action() -> None:
    missed = {"type": "missed", "is_false_positive": False, "background_type": None, "score": 0.1}
    cases = [
        *(case(number, name="gull" if number else "boat", delta_ap=0.001) for number in range(4)),
        *(case(number, background_type="missing annotation", evidence_kind="unlabeled object") for number in (4, 5)),
        *(case(number, **missed, evidence_kind="another object", delta_ap=0.02) for number in (6, 7)),
        *(case(number, verdict="not confirmed", evidence_kind="not confirmed", delta_ap=0.5) for number in (8, 9)),
        case(10, evidence_kind="mark", delta_ap=0.0001),
    ]
    tops = top_causes(hierarchy(cases), {each.id: each for each in cases})
    assert [(top.sentence, top.action) for top in tops] == [
        ("2 missed objects are detected when another object is removed: boat", "add images"),
        ("2 errors may lie on real objects without an annotation: boat", "relabel"),
        ("3 errors rest on the surroundings, not on an object in the box: gull", "counterfactual pairs"),
    ]
    assert tops[2].cause.case_ids == ("case-1", "case-2", "case-3"), "most of the errors on surroundings"
    assert top_causes(hierarchy(cases[-1:]), {cases[-1].id: cases[-1]}, "detection")[0].sentence.startswith(
        "1 detection "
    )
    assert tops[0].to_json()["delta_ap"] == pytest.approx(0.04)
    nothing = [each for each in cases if each.evidence_kind in ("not confirmed", "mark")]
    tops = top_causes(hierarchy(nothing), {each.id: each for each in nothing})
    assert [top.action for top in tops] == ["counterfactual pairs", "look at the cases"], (
        "what can be acted on is first"
    )
    assert tops[0].sentence == "1 error rests on a mark outside the object: boat"


def test_a_cause_of_many_cheap_errors_does_not_hide_few_that_cost_more() -> None:
    cheap = [case(number, name="gull", delta_ap=0.001) for number in range(9)]
    costly = [case(number, name="boat", delta_ap=0.02) for number in (9, 10, 11)]
    mark = [case(number, evidence_kind="mark", delta_ap=0.01) for number in (12, 13)]
    cases = [*cheap, *costly, *mark]
    first, second = top_causes(hierarchy(cases), {each.id: each for each in cases})
    assert len(first.cause) == 12 and first.sentence.endswith(": boat (3) and gull (9)")
    assert len(second.cause) == 2


@pytest.mark.parametrize("cost", [-0.01, 0.0])
def test_a_cause_that_costs_nothing_is_as_general_as_necessary_too(cost: float) -> None:
    cases = [case(number, name="gull" if number else "boat", delta_ap=cost) for number in range(4)]
    (top,) = top_causes(hierarchy(cases), {each.id: each for each in cases})
    assert top.sentence.endswith(": gull") and len(top.cause) == 3


@pytest.mark.parametrize("kind", EVIDENCE_KINDS)
@pytest.mark.parametrize("error_type", ["classification", "missed"])
@pytest.mark.parametrize("count", [1, 2])
def test_every_kind_of_evidence_has_words(kind: EvidenceKind, error_type: ErrorType, count: int) -> None:
    cases = [case(at, type=error_type, evidence_kind=kind, ground_truth=truth("sink")) for at in range(count)]
    (top,) = top_causes(hierarchy(cases), {each.id: each for each in cases})
    subject = "missed object" if error_type == "missed" else "error"
    assert top.sentence.startswith(f"{count} {subject}{'' if count == 1 else 's'} ")


def test_names_of_the_costliest_classes() -> None:
    kinds = ("localization", "classification", "duplicate", "background")
    cases = [
        case(number, type=kind, name=f"class {number}", ground_truth=truth("sink"), background_type=None,
             evidence_kind="part of the object", delta_ap=cost)
        for number, (kind, cost) in enumerate(zip(kinds, (0.1, 0.2, 0.3, math.nan), strict=True))
    ]  # fmt: skip
    (top,) = top_causes(hierarchy(cases), {each.id: each for each in cases})
    assert top.sentence.endswith("part of the object: duplicate of class 2 (1), class 1 on sink (1) and 2 others")
    assert top.example.name == "class 2"
    two = [
        replace(case, type=kind, name="cup") for case, kind in zip(cases, ("background", "localization"), strict=False)
    ]
    (top,) = top_causes(hierarchy(two), {each.id: each for each in two})
    assert top.sentence.endswith(": inaccurate box of cup (1) and cup without a matching annotation (1)")


def test_mixed_causes_say_so() -> None:
    changes = {"verdict": "not confirmed", "evidence_kind": "not confirmed", "background_type": None}
    cases = [case(number, type="missed", **changes) for number in range(3)] + [case(3, score=0.99, **changes)]
    root = replace(hierarchy(cases)[0], children=())
    (top,) = top_causes([root], {each.id: each for each in cases})
    assert top.sentence.startswith("4 errors, most of them missed objects, are not detected, and no region")
    assert top.action == "add images" and top.example.type == "missed"


def test_curves_count_true_and_false_positives_from_each_score_on(tmp_path: Path) -> None:
    made = make_random_data(tmp_path, 4, detected=8)
    analysis = analyze_errors(made.detections, made.annotations)
    curves = ScoreCurves.from_analysis(analysis)
    pairs = [
        (score, hit)
        for ranking in analysis.rankings.values()
        for score, hit in zip(ranking.scores.tolist(), ranking.hits.tolist(), strict=True)
    ]
    objects = sum(summary.objects for summary in analysis.classes.values())
    assert 0 < sum(hit for _, hit in pairs) < len(pairs)
    for threshold, precision, recall, f1 in zip(
        curves.thresholds, curves.precision, curves.recall, curves.f1, strict=True
    ):
        kept = [hit for score, hit in pairs if score >= threshold]
        assert recall == pytest.approx(sum(kept) / objects)
        expected = sum(kept) / len(kept) if kept else math.nan
        assert precision == pytest.approx(expected, nan_ok=True)
        if kept:
            assert f1 == pytest.approx(2 * sum(kept) / (len(kept) + objects))
    assert curves.recall[0] == max(curves.recall) and curves.to_json()["precision"][100] is None
    assert np.allclose(curves.thresholds, np.arange(101) / 100)


def test_confusions_count_relevant_errors_by_true_and_predicted_class() -> None:
    cases = [
        case(0),
        case(1, ground_truth=truth("sink")),
        case(2, type="classification", ground_truth=truth("sink")),
        case(3, type="localization", ground_truth=truth("boat")),
        case(4, type="missed", name="sink", score=0.0, ground_truth=truth("sink")),
        case(5, score=0.1),
    ]
    found = confusions(cases, 0.3)
    names = found["names"]
    assert names == ["boat", "sink"] and found["class_count"] == 2
    counts = {(true, predicted): count for true, predicted, count in found["cells"]}
    boat, sink = 0, 1
    assert counts == {(-1, boat): 2, (sink, boat): 1, (boat, boat): 1, (sink, -1): 1}
    many = [case(number, name=f"class {number}") for number in range(30)]
    assert len(confusions(many, 0)["names"]) == MAX_CONFUSED and confusions(many, 0)["class_count"] == 30
