"""Questions of each error type, and failure stages of missed objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

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
    assert question.targets == (BoxTarget(BOX, 0, SOURCE),) and question.text == "why cat here?"
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
    assert target.directions == (-1.0, 0.0, -1.0, 1.0) and target.edges_text == "left, right and bottom edges"
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


def test_another_quantity_is_explained_of_what_has_a_score() -> None:
    there = truth(((0, 0, 10, 30), 1))
    for kind, index in (("background", None), ("missed", 0), ("duplicate", 0)):
        question = question_for(error(kind, index, duplicate_of=0), FOUND, there, NAMES, "logit")  # type: ignore[arg-type]
        assert question.targets[0].quantity == "logit"  # type: ignore[attr-defined]
    contrast = question_for(error("classification", 0), FOUND, truth(((0, 0, 10, 30), 2)), NAMES, "logit")
    assert contrast.targets[0].quantity == "score"  # type: ignore[attr-defined]
