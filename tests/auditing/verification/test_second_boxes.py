"""Second boxes of objects that are detected: why there are two, rather than what any box there needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import detcam
from detcam.adapters import detector
from detcam.auditing import AuditCase
from detcam.auditing.case import Outcome, Trial
from detcam.auditing.verification.hypothesis import Hypothesis, VerificationResult, better_result
from detcam.auditing.verification.interventions import Investigation, Removal, sparing
from detcam.auditing.verification.persistence import PersistenceCriterion
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.region_probes import RegionProbes
from detcam.auditing.verification.second_boxes import may_lie_outside
from detcam.auditing.verification.verdict import Verdict, decide_verdict
from detcam.auditing.verification.verifier import Verifier
from detcam.perturbation.base import ImageScorer
from detcam.targets import BoxTarget
from tests.auditing.fixed_output import BOX, FAR, FixedOutput
from tests.auditing.verification.driven import answered, disc

FIRST = (12.0, 0.0, 22.0, 10.0)
"""Box of the correct detection."""
OBJECT, SECOND = (8.0, 16.0, 40.0, 48.0), (8.0, 16.0, 40.0, 28.0)
CABIN, BUOY = (slice(18, 26), slice(20, 28)), (slice(28, 36), slice(60, 68))
"""Rows and columns of the part of the object that its second box needs, and of the cause beside it."""


@pytest.mark.parametrize(
    ("own", "others", "outcome"),
    [
        (0.2, [(FIRST, (0.9, 0.0))], "vanished"),
        (0.2, [], "object lost"),
        (0.2, [(FAR, (0.9, 0.0))], "object lost"),
        (0.2, [(FIRST, (0.1, 0.9))], "object lost"),
        (0.8, [], "unchanged"),
    ],
)
def test_the_correct_detection_has_to_remain(own: float, others: list[tuple], outcome: Outcome) -> None:  # type: ignore[type-arg]
    before = FixedOutput((BOX, (0.9, 0.0)), [(FIRST, (0.9, 0.0))])
    criterion = PersistenceCriterion.from_output(
        before, BoxTarget(BOX, 0), 0.5, own_candidate_only=True, first_xyxy=FIRST
    )
    assert criterion.evaluate(FixedOutput((BOX, (own, 0.1)), others))[1] == outcome


def test_a_region_without_which_the_object_is_lost_confirms_nothing() -> None:
    trials = [Trial("without evidence", "ring", 0.0, "object lost"), Trial("random control", "ring", 0.9, "unchanged")]
    verdict = decide_verdict(0.9, trials, 0.01, lost_reason=PersistenceCriterion.lost_reason)
    assert verdict.grade == "not confirmed" and "the correct detection of the object ends with it" in verdict.reason


def test_evidence_that_takes_the_object_away_comes_last_and_a_control_that_does_says_nothing() -> None:
    def result(without: Outcome, control: Outcome) -> VerificationResult:
        trials = Trial("without evidence", "ring", 0.0, without), Trial("random control", "ring", 0.0, control)
        verdict, nothing = Verdict("not confirmed", 0.0, ""), torch.zeros(8, 8)
        return VerificationResult(trials, verdict, Proposal("map", nothing), nothing.bool(), (), None, ends=True)

    good, loses = result("vanished", "object lost"), result("object lost", "unchanged")
    assert better_result(good, loses) is good and better_result(loses, good) is good
    other = result("vanished", "unchanged")
    assert better_result(other, good) is good, "of two like results, the second"


def test_evidence_outside_is_removed_without_the_object_and_controls_stay() -> None:
    spared, region = torch.zeros(2, 8, 8, dtype=torch.bool)
    spared[:, :4], region[:, 3:6] = True, True

    def investigation() -> Investigation[None]:
        yield [Removal("without evidence", region), Removal("random control", region)]

    evidence, control = sparing(investigation(), spared).send(None)  # type: ignore[arg-type]
    assert torch.equal(evidence.region, region & ~spared) and torch.equal(control.region, region)


class SecondBox(nn.Module):
    """Finds an object, and a part of it where the cabin is bright and, with a weight in [0, 1], a buoy too."""

    def __init__(self, buoy_weight: float, first_needs_cabin: bool) -> None:
        super().__init__()
        self.seen = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        nn.init.zeros_(self.seen.weight)
        self.seen.weight.data[:, 0, 1, 1] = 1
        self.buoy_weight, self.first_needs_cabin = buoy_weight, first_needs_cabin

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seen(x)
        cabin, buoy = (seen[:, :, rows, columns].mean((1, 2, 3)) for rows, columns in (CABIN, BUOY))
        first = cabin if self.first_needs_cabin else 0.9 + 0 * cabin
        # The cabin has the larger gradient.
        second = 0.9 * cabin.square() * (1 - self.buoy_weight + self.buoy_weight * buoy)
        scores = torch.stack([first, second], 1)
        return torch.stack([scores, torch.zeros_like(scores)], 2).clamp(0.001, 0.999)


def audit_second(folder: Path, buoy_weight: float, first_needs_cabin: bool = False) -> AuditCase:
    """The case of the second box of an object."""
    pixels = np.full((64, 96, 3), 60, dtype=np.uint8)
    pixels[CABIN], pixels[BUOY] = 255, 255
    Image.fromarray(pixels).save(folder / "a.png")
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 64}],
        "categories": [{"id": 1, "name": "boat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 16, 32, 32], "area": 1024, "iscrowd": 0}
        ],
    }
    (folder / "labels.json").write_text(json.dumps(data))
    adapter = detector(
        SecondBox(buoy_weight, first_needs_cabin).eval(),
        lambda raw: (torch.tensor([OBJECT, SECOND]).expand(len(raw), -1, -1), raw),
        names=["boat", "buoy"],
        target_layers="seen",
    )
    (case,) = detcam.audit(adapter, folder, folder / "labels.json", score_threshold=0.3).cases
    assert case.type == "localization" and case.ground_truth is not None and case.ground_truth.iou < 0.5
    return case


def test_the_cause_beside_the_object_is_found_although_a_part_of_it_is_needed(tmp_path: Path) -> None:
    case = audit_second(tmp_path, 1.0)
    column, row = case.peak_xy or (0, 0)
    assert BUOY[0].start <= row < BUOY[0].stop and BUOY[1].start <= column < BUOY[1].stop, case.sentence
    assert case.confirmed and "lies outside the box" in case.sentence
    kinds = {trial.intervention for trial in case.trials}
    assert kinds == {"without evidence", "near control", "random control"}


def test_a_part_of_the_object_is_weak_evidence_for_its_second_box(tmp_path: Path) -> None:
    case = audit_second(tmp_path, 0.0)
    assert case.verdict == "weak" and "no region outside them is known to end this one" in case.reason
    column, row = case.peak_xy or (0, 0)
    assert CABIN[0].start <= row < CABIN[0].stop and CABIN[1].start <= column < CABIN[1].stop


def test_a_part_that_both_boxes_need_is_no_evidence(tmp_path: Path) -> None:
    case = audit_second(tmp_path, 0.0, first_needs_cabin=True)
    assert not case.confirmed and "the correct detection of the object ends with it" in case.reason


def test_what_costs_a_second_box_half_of_its_score_is_shown_rather_than_what_the_object_needs(tmp_path: Path) -> None:
    case = audit_second(tmp_path, 0.75, first_needs_cabin=True)
    column, row = case.peak_xy or (0, 0)
    assert BUOY[0].start <= row < BUOY[0].stop and BUOY[1].start <= column < BUOY[1].stop, case.sentence
    assert not case.confirmed and "persists without the evidence (score 0.3" in case.reason


LEFT, RIGHT, HIGHLIGHTED = disc(20, 10), disc(80, 90), disc(85, 20, 4)
"""Possible causes in different quarters of what lies outside the object, and a region that a map highlights."""


@pytest.mark.parametrize(
    ("causes", "needed", "score", "outcome", "may_end"),
    [
        ([], 1, 0.9, "unchanged", False),
        ([LEFT], 1, 0.1, "vanished", True),
        ([LEFT], 1, 0.1, "object lost", True),  # the quarter holds more than the cause
        ([LEFT], 1, 0.4, "unchanged", True),  # it costs more than half of the score
        ([LEFT], 1, 0.6, "unchanged", False),
        ([LEFT, RIGHT], 2, 0.1, "vanished", True),  # they replace one another, and maps highlight both
    ],
)
def test_causes_outside_are_searched_where_there_may_be_some(
    causes: list[Tensor], needed: int, score: float, outcome: Outcome, may_end: bool
) -> None:
    box = disc(50, 50, 15)
    probes = RegionProbes(torch.zeros(1, 100, 100), torch.stack([LEFT, RIGHT]), torch.zeros(100, 100))
    hypothesis = Hypothesis(
        "case",
        PersistenceCriterion(BoxTarget(BOX, 0), 0.3, True, torch.zeros(0, 4)),
        0.9,
        Proposals([], probes),
        box,
        box,
        lambda: (torch.arange(100)[:, None] // 7 * 20 + torch.arange(100)[None] // 7).long(),
        is_outside=True,
    )

    def answer(request: Removal) -> Trial:
        removed = sum(bool(request.region[cause].all()) for cause in causes)
        is_changed = bool(causes) and removed >= needed
        return Trial(request.intervention, str(request.fill), *((score, outcome) if is_changed else (0.9, "unchanged")))

    found, asked = answered(may_lie_outside(hypothesis, [HIGHLIGHTED], 2), answer)
    assert found == may_end
    assert not any(bool((each.region & box).any()) for each in asked if each.intervention == "without part")
    assert len(asked) < 10, "a fill that changes nothing ends it"
    persists = {each.fill for each in asked} == {0}
    assert persists == (not may_end)


def test_a_region_that_ends_the_error_with_one_fill_only_is_no_reason_to_search_outside() -> None:
    box = disc(50, 50, 15)
    hypothesis = Hypothesis(
        "case",
        PersistenceCriterion(BoxTarget(BOX, 0), 0.3, True, torch.zeros(0, 4)),
        0.9,
        Proposals([]),
        box,
        box,
        lambda: torch.zeros(100, 100, dtype=torch.long),
        is_outside=True,
    )

    def answer(request: Removal) -> Trial:
        ends = request.fill == 0
        return Trial(request.intervention, str(request.fill), *((0.1, "vanished") if ends else (0.9, "unchanged")))

    assert not answered(may_lie_outside(hypothesis, [HIGHLIGHTED], 2), answer)[0]


def second_claim(heatmap: Tensor) -> Hypothesis:
    """A claim that a map (100, 100) shows the cause of the second box of an object, both of them a disc."""
    box = disc(50, 50, 15)
    return Hypothesis(
        "case",
        PersistenceCriterion(BoxTarget(BOX, 0), 0.3, True, torch.zeros(0, 4)),
        0.9,
        Proposals([Proposal("map", heatmap)]),
        box,
        box,
        lambda: (torch.arange(100)[:, None] // 7 * 20 + torch.arange(100)[None] // 7).long(),
        is_second=True,
    )


def gray_verifier() -> Verifier:
    """A verifier of a gray image, whose requests a test answers."""
    adapter = detector(
        SecondBox(False, False).eval(),
        lambda raw: (torch.tensor([OBJECT, SECOND]).expand(len(raw), -1, -1), raw),
        names=["boat", "buoy"],
        target_layers="seen",
    ).without_layers()
    with torch.no_grad():
        batch = adapter.prepare([torch.full((3, 100, 100), 0.5)])
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        return Verifier(ImageScorer(adapter, batch, output, []))


def test_the_search_outside_is_left_out_where_nothing_outside_costs_half_of_the_score() -> None:
    claim = second_claim(disc(50, 50, 8) + 0.5 * HIGHLIGHTED)

    def answer(request: Removal) -> Trial:
        costs = bool(request.region[LEFT].all())  # less than half of the score
        return Trial(request.intervention, str(request.fill), 0.6 if costs else 0.9, "unchanged")

    outside = claim.outside()
    _, at_gate = answered(may_lie_outside(outside, [outside.proposals.maps[0].heatmap > 0], 2), answer)
    result, asked = answered(gray_verifier().investigate(claim), answer)
    beside = [each for each in asked if not bool((each.region & claim.inside).any())]
    assert len(beside) == len(at_gate) < len(asked) and not result.ends


def test_evidence_outside_is_what_was_removed() -> None:
    """A region of a map is smooth: it reaches into the box beside which the cause lies."""
    box = disc(50, 50, 15)
    cause = disc(50, 70, 6) & ~box

    def answer(request: Removal) -> Trial:
        ends = bool(request.region[cause].all())
        return Trial(request.intervention, str(request.fill), *((0.1, "vanished") if ends else (0.9, "unchanged")))

    result, asked = answered(gray_verifier().investigate(second_claim(cause.float())), answer)
    removed = [each.region for each in asked if each.intervention == "without evidence"]
    assert result.ends and not bool((result.evidence & box).any())
    assert any(torch.equal(region, result.evidence) for region in removed)
