"""What each type of error is asked, where missed objects died, and which errors are one group: by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detcam.auditing.case import AuditCase, GroundTruthObject
from detcam.auditing.clustering import group_cases
from detcam.auditing.error_targets import question_of, stage_of
from detcam.auditing.errors import DetectionError, ErrorType
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, Source
from detcam.outputs import Candidates
from detcam.targets import BoxTarget, EdgesTarget
from tests.auditing.test_verification import BOX, FAR, NEAR, Said

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


def error(kind: ErrorType, at: int | None, winner: int | None = None) -> DetectionError:
    missed = kind == "missed"
    return DetectionError(
        0, 1, kind, None if missed else 0, at, winner, 0, None if missed else 0.9, 0.0, 0.0, not missed
    )


FOUND = Detections(
    torch.tensor([BOX, NEAR]), torch.tensor([0, 0]), torch.tensor([0.9, 0.8]), (100, 100), (SOURCE, SOURCE)
)


def test_each_type_has_its_question() -> None:
    there = truth((BOX, 1), (FAR, 0))
    asked = question_of(error("background", None), FOUND, there, NAMES)
    assert asked.targets == (BoxTarget(BOX, 0, SOURCE),) and asked.words == "why a cat here?"
    asked = question_of(error("classification", 0), FOUND, there, NAMES)
    assert asked.targets == (BoxTarget(BOX, 0, SOURCE, against=1),) and asked.words == "why cat rather than dog?"
    asked = question_of(error("localization", 1), FOUND, there, NAMES)
    assert isinstance(asked.targets[0], EdgesTarget) and asked.words == "what pushes its edges off the cat?"
    assert asked.tracked == BoxTarget(BOX, 0, SOURCE)
    asked = question_of(error("both", 0), FOUND, truth(((0, 0, 10, 30), 1)), NAMES)
    assert [type(target) for target in asked.targets] == [BoxTarget, EdgesTarget]
    assert asked.words == "why cat rather than dog? And what pushes its bottom edge off the dog?"
    asked = question_of(error("duplicate", 1, winner=1), FOUND, there, NAMES)
    assert asked.beside == BoxTarget(NEAR, 0, SOURCE) and "second cat" in asked.words
    asked = question_of(error("missed", 1), FOUND, there, NAMES)
    assert asked.targets == (BoxTarget(FAR, 0),) and asked.tracked is None


def test_wrong_edges_point_away_from_the_object() -> None:
    target = EdgesTarget.off(BoxTarget((10, 20, 50, 60), 0, SOURCE), (20, 20, 60, 40))
    # Off by -10, 0, -10, +20 of sides 40 and 20: all but the top by more than a tenth.
    assert target.directions == (-1.0, 0.0, -1.0, 1.0) and target.words == "left and right and bottom edges"
    candidates = Candidates(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.zeros(1, 2), torch.zeros(1, 2), None)
    assert float(target.value(candidates, 0)) == -1 - 4 + 8
    small = EdgesTarget.off(BoxTarget((10, 20, 50, 60), 0), (11, 20, 50, 60))
    assert small.edges == ["left"], "where none is off by much, the one that is off most"
    mirrored = target.hflip(100)
    # x1 and x2 change places and count from the other side: left of -1 becomes right of +1.
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
def test_where_a_missed_object_died(candidates: list[tuple], stage: str, score: float) -> None:  # type: ignore[type-arg]
    said = Said((BOX, (0.0, 0.0)), candidates)
    found, best = stage_of(error("missed", 0), said, truth((BOX, 0)), 0.5)
    assert found == stage and best == pytest.approx(score)


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
        verdict="confirmed",
    )
    return replace(plain, **options)  # type: ignore[arg-type]


def test_errors_with_like_evidence_are_one_group() -> None:
    one, other = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    cases = [case(0), case(1), case(2), case(3, evidence_location="scene"), case(4, verdict="unconfirmed"), case(5)]
    features = [one, other, one + 0.1 * other, one, other * 3, None]
    groups = group_cases(cases, features, lambda members: 0.1 if 1 in members else 0.01 * len(members))
    found = [sorted(members) for _, members in groups]
    assert found == [[1, 4], [0, 2], [3], [5]], "the costliest first; another place, and no features, stay apart"
    first = groups[0][0]
    assert first.number == 0 and first.delta_ap == 0.1 and first.confirmed_count == 1
    assert first.sentence == "2 cats fired on nothing, evidence just around the box; 1 of 2 confirmed; 0.100 AP"
    true = GroundTruthObject(BOX, 1, "dog", 0.9, 3)
    split = [
        case(0, type="classification", ground_truth=true),
        case(1, type="classification", ground_truth=replace(true, label=2)),
    ]
    assert len(group_cases(split, [one, one], lambda members: 0.0)) == 2, "another true class is another mistake"


def test_the_case_nearest_to_the_centre_leads() -> None:
    angles = (0.0, 0.35, 0.3)
    features = [np.array([np.cos(angle), np.sin(angle)]) for angle in angles]
    ((group, members),) = group_cases([case(i) for i in range(3)], features, lambda members: 0.0)
    center = sum(features) / 3
    expected = sorted(range(3), key=lambda i: -float(features[i] @ center))
    assert members == expected and group.case_ids == tuple(f"case-{i}" for i in expected)
