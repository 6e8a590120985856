"""Whether a detection remains in a perturbed image."""

from __future__ import annotations

import pytest

from detcam.auditing.case import Outcome
from detcam.auditing.verification.persistence import PersistenceCriterion
from detcam.targets import BoxTarget
from tests.auditing.fixed_output import BOX, FAR, NEAR, FixedOutput


@pytest.mark.parametrize(
    ("own", "others", "outcome"),
    [
        ((BOX, (0.8, 0.1)), [], "unchanged"),
        ((BOX, (0.2, 0.1)), [], "vanished"),
        ((BOX, (0.2, 0.1)), [(BOX, (0.7, 0.1))], "unchanged"),
        ((BOX, (0.2, 0.7)), [], "class flipped"),
        ((NEAR, (0.8, 0.1)), [], "moved"),
        ((BOX, (0.2, 0.1)), [(NEAR, (0.8, 0.1))], "moved"),
        ((BOX, (0.2, 0.1)), [(FAR, (0.8, 0.1))], "vanished"),
    ],
)
def test_outcomes(own: tuple, others: list[tuple], outcome: Outcome) -> None:  # type: ignore[type-arg]
    target = BoxTarget(BOX, 0)
    criterion = PersistenceCriterion.from_output(FixedOutput((BOX, (0.9, 0.0)), [(BOX, (0.9, 0.0))]), target, 0.5)
    assert criterion.evaluate(FixedOutput(own, others))[1] == outcome


def test_a_neighbor_of_the_unperturbed_image_is_not_a_move() -> None:
    before = FixedOutput((BOX, (0.9, 0.0)), [(NEAR, (0.8, 0.0))])
    criterion = PersistenceCriterion.from_output(before, BoxTarget(BOX, 0), 0.5)
    assert criterion.evaluate(FixedOutput((BOX, (0.2, 0.0)), [(NEAR, (0.8, 0.0))]))[1] == "vanished"


def test_only_the_candidate_itself() -> None:
    before = FixedOutput((BOX, (0.9, 0.0)), [(BOX, (0.9, 0.0))])
    alone = PersistenceCriterion.from_output(before, BoxTarget(BOX, 0), 0.5, own_candidate_only=True)
    assert alone.evaluate(FixedOutput((BOX, (0.2, 0.0)), [(BOX, (0.9, 0.0))]))[1] == "vanished"


def test_a_localization_error_ends_when_the_box_reaches_its_object() -> None:
    before = FixedOutput((BOX, (0.9, 0.0)), [])
    truth = (4.0, 0.0, 14.0, 10.0)
    criterion = PersistenceCriterion.from_output(before, BoxTarget(BOX, 0), 0.5, ground_truth_xyxy=truth)
    assert criterion.evaluate(FixedOutput((BOX, (0.9, 0.0)), []))[1] == "unchanged"
    near_miss, reached = (0.7, 0.0, 10.7, 10.0), (3.0, 0.0, 13.0, 10.0)  # IoU with the object 0.50 and 0.82
    assert criterion.evaluate(FixedOutput((near_miss, (0.9, 0.0)), []))[1] == "unchanged", "within the margin"
    assert criterion.evaluate(FixedOutput((reached, (0.9, 0.0)), []))[1] == "moved"
    others = [(BOX, (0.95, 0.0))]
    assert criterion.evaluate(FixedOutput((reached, (0.9, 0.0)), others))[1] == "unchanged", "a neighbor is still wrong"
    correct = FixedOutput((BOX, (0.8, 0.0)), [(reached, (0.9, 0.0))])
    alone = PersistenceCriterion.from_output(correct, BoxTarget(BOX, 0), 0.5, ground_truth_xyxy=truth)
    assert alone.own_candidate_only and alone.evaluate(correct)[1] == "unchanged", "the object has its own detection"
