"""Questions of each error type, failure stages of missed objects, and groups of errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detcam.auditing.case import AuditCase, GroundTruthObject
from detcam.auditing.clustering import group_cases
from detcam.auditing.error_targets import failure_stage, question_for
from detcam.auditing.errors import DetectionError, ErrorType
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, Source
from detcam.outputs import Candidates
from detcam.targets import BoxTarget, EdgesTarget, SuppressionTarget
from tests.auditing.fixed_output import BOX, FAR, NEAR, FixedOutput

NAMES = {0: "cat", 1: "dog"}
SOURCE = Source("anchor", 1, 2, (5.0, 5.0))


def truth(*objects: tuple[Sequence[float], int]) -> GroundTruth:
    boxes = torch.tensor([box for box, _ in objects]).reshape(-1, 4)
    labels = torch.tensor([label for _, label in objects], dtype=torch.int64)
    count = len(objects)
    return GroundTruth(
        1,
        "a.png",
        Path("a.png"),
        (100, 100),
        boxes,
        boxes.double().numpy(),
        labels,
        labels,
        torch.zeros(count, dtype=torch.bool),
        torch.ones(count, dtype=torch.float64),
        torch.arange(count),
        (None,) * count,
    )


def error(kind: ErrorType, index: int | None, duplicate_of: int | None = None) -> DetectionError:
    missed = kind == "missed"
    return DetectionError(
        0, 1, kind, None if missed else 0, index, duplicate_of, 0, None if missed else 0.9, 0.0, 0.0, not missed
    )


FOUND = Detections(
    torch.tensor([BOX, NEAR]), torch.tensor([0, 0]), torch.tensor([0.9, 0.8]), (100, 100), (SOURCE, SOURCE)
)


def test_question_of_each_error_type() -> None:
    there = truth((BOX, 1), (FAR, 0))
    question = question_for(error("background", None), FOUND, there, NAMES)
    assert question.targets == (BoxTarget(BOX, 0, SOURCE),) and question.text == "why a cat here?"
    question = question_for(error("classification", 0), FOUND, there, NAMES)
    assert question.targets == (BoxTarget(BOX, 0, SOURCE, against=1),) and question.text == "why cat rather than dog?"
    question = question_for(error("localization", 1), FOUND, there, NAMES)
    assert isinstance(question.targets[0], EdgesTarget) and question.text == "what moves its edges off the cat?"
    assert question.detection == BoxTarget(BOX, 0, SOURCE)
    question = question_for(error("both", 0), FOUND, truth(((0, 0, 10, 30), 1)), NAMES)
    assert [type(target) for target in question.targets] == [BoxTarget, EdgesTarget]
    assert question.text == "why cat rather than dog? And what moves its bottom edge off the dog?"
    question = question_for(error("duplicate", 1, duplicate_of=1), FOUND, there, NAMES)
    assert question.reference == BoxTarget(NEAR, 0, SOURCE) and "duplicate cat" in question.text
    question = question_for(error("missed", 1), FOUND, there, NAMES)
    assert question.targets == (SuppressionTarget(FAR, 0),) and question.detection is None


def test_wrong_edges_point_away_from_the_object() -> None:
    target = EdgesTarget.displaced(BoxTarget((10, 20, 50, 60), 0, SOURCE), (20, 20, 60, 40))
    # Off by -10, 0, -10, +20 of sides 40 and 20: all but the top by more than a tenth.
    assert target.directions == (-1.0, 0.0, -1.0, 1.0) and target.edges_text == "left and right and bottom edges"
    candidates = Candidates(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.zeros(1, 2), torch.zeros(1, 2), None)
    assert float(target.value(candidates, 0)) == -1 - 4 + 8
    small = EdgesTarget.displaced(BoxTarget((10, 20, 50, 60), 0), (11, 20, 50, 60))
    assert small.edges == ["left"], "if all are within the tolerance, the edge with the largest error"
    mirrored = target.hflip(100)
    # x1 and x2 are exchanged and count from the other side: left of -1 becomes right of +1.
    assert mirrored.box_xyxy == (50, 20, 90, 60) and mirrored.directions == (1.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("candidates", "stage", "score"),
    [
        ([(FAR, (0.9, 0.0))], "no candidate", 0.9),
        ([(BOX, (0.2, 0.1)), (FAR, (0.9, 0.0))], "below threshold", 0.2),
        ([(BOX, (0.2, 0.7))], "another class", 0.2),
        ([(BOX, (0.6, 0.7))], "suppressed", 0.6),
    ],
)
def test_failure_stages(candidates: list[tuple], stage: str, score: float) -> None:  # type: ignore[type-arg]
    output = FixedOutput((BOX, (0.0, 0.0)), candidates)
    stage_name, best = failure_stage(error("missed", 0), output, truth((BOX, 0)), 0.5)
    assert stage_name == stage and best == pytest.approx(score)


def test_a_candidate_that_fits_another_object_better_is_none_of_the_missed_object() -> None:
    near = (2.0, 0.0, 12.0, 10.0)
    output = FixedOutput((BOX, (0.0, 0.0)), [(near, (0.9, 0.0))])
    alone, beside = truth((BOX, 0)), truth((BOX, 0), (near, 0))
    assert failure_stage(error("missed", 0), output, alone, 0.5)[0] == "suppressed"
    assert failure_stage(error("missed", 0), output, beside, 0.5)[0] == "no candidate"
    assert failure_stage(error("missed", 0), output, truth((BOX, 0), (near, 1)), 0.5)[0] == "suppressed"


def case(number: int, **options: object) -> AuditCase:
    plain = AuditCase(
        id=f"case-{number}",
        image_id=number,
        file_name="a.png",
        image_size_hw=(100, 100),
        type="background",
        label=0,
        name="cat",
        score=0.9,
        box_xyxy=BOX,
        is_false_positive=True,
        ground_truth=None,
        delta_ap=0.0,
        evidence_location="ring",
        verdict="strong",
    )
    return replace(plain, **options)  # type: ignore[arg-type]


def test_groups_of_undefined_cost_are_ranked_by_confirmed_effect_then_by_score() -> None:
    features = list(np.eye(4))
    cases = [
        case(0, score=0.7, verdict="not confirmed"),
        case(1, score=0.4, effect=0.5),
        case(2, score=0.8, verdict="not confirmed"),
        case(3, score=0.6, effect=0.9),
    ]
    groups = group_cases(cases, features, lambda members: float("nan"))
    assert [members for _, members in groups] == [[3], [1], [2], [0]]
    assert groups[2][0].sentence == "cat: 1 background error; 0 of 1 confirmed; score 0.80"
    costs = {0: 0.0004, 1: 0.1, 2: float("nan"), 3: 0.2}
    ranked = group_cases(cases, features, lambda members: costs[members[0]])
    assert [members for _, members in ranked] == [[3], [1], [2], [0]], "equal in thousandths: by score"


def test_errors_with_similar_evidence_form_a_group() -> None:
    one, other = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    cases = [case(0), case(1), case(2), case(3, evidence_location="scene"), case(4, verdict="weak"), case(5)]
    cases.append(case(6, verdict="not confirmed"))
    features = [one, other, one + 0.1 * other, one, other * 3, None, other]
    groups = group_cases(cases, features, lambda members: 0.1 if 1 in members else 0.01 * len(members))
    found = [sorted(members) for _, members in groups]
    assert found == [[1, 4], [0, 2], [3], [5], [6]], "by cost; other locations and missing features apart"
    first = groups[0][0]
    assert first.number == 0 and first.delta_ap == 0.1 and first.confirmed_count == 2
    assert (
        first.sentence
        == "cat: 2 background errors, evidence in the ring around the box; 2 of 2 confirmed; delta AP 0.100"
    )
    true = GroundTruthObject(BOX, 1, "dog", 0.9, 3)
    split = [
        case(0, type="classification", ground_truth=true),
        case(1, type="classification", ground_truth=replace(true, label=2)),
    ]
    assert len(group_cases(split, [one, one], lambda members: 0.0)) == 2, "another true class forms another group"


def test_missed_objects_are_ranked_by_what_removal_gains() -> None:
    """The best candidates of missed objects have hardly a score."""
    small = case(0, type="missed", score=0.001, effect=0.3, failure_stage="below threshold")
    large = case(1, type="missed", score=0.0, effect=0.9, failure_stage="no candidate")
    weak_alarm = case(2, score=0.5, effect=0.5)
    groups = group_cases([small, large, weak_alarm], [None] * 3, lambda members: float("nan"))
    assert [members for _, members in groups] == [[1], [0], [2]]
    sentences = [group.sentence for group, _ in groups]
    assert "1 missed object (no candidate), appearing when the region in the ring" in sentences[0]
    assert "1 of 1 confirmed" in sentences[0]


def test_the_case_nearest_to_the_center_comes_first() -> None:
    angles = (0.0, 0.35, 0.3)
    features = [np.array([np.cos(angle), np.sin(angle)]) for angle in angles]
    ((group, members),) = group_cases([case(i) for i in range(3)], features, lambda members: 0.0)
    center = sum(features) / 3
    expected = sorted(range(3), key=lambda i: -float(features[i] @ center))
    assert members == expected and group.case_ids == tuple(f"case-{i}" for i in expected)


def test_another_quantity_is_explained_of_what_has_a_score() -> None:
    there = truth(((0, 0, 10, 30), 1))
    for kind, index in (("background", None), ("missed", 0), ("duplicate", 0)):
        question = question_for(error(kind, index, duplicate_of=0), FOUND, there, NAMES, "logit")  # type: ignore[arg-type]
        assert question.targets[0].quantity == "logit"  # type: ignore[attr-defined]
    contrast = question_for(error("classification", 0), FOUND, truth(((0, 0, 10, 30), 2)), NAMES, "logit")
    assert contrast.targets[0].quantity == "score"  # type: ignore[attr-defined]
