"""Missed objects: what suppresses them is removed, and they have to appear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import detcam
from detcam import ODAM
from detcam.adapters import Adapter, detector
from detcam.auditing import AuditCase
from detcam.auditing.case import Box, Intervention, Outcome, Trial
from detcam.auditing.verification.appearance import AppearanceCriterion, AppearanceHypothesis
from detcam.auditing.verification.interventions import Removal
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.suppression import suppressing_detection
from detcam.auditing.verification.verdict import decide_appearance
from detcam.detections import Detections, Source
from detcam.targets import BoxTarget
from tests.auditing.fixed_output import FAR, FixedOutput
from tests.auditing.verification.driven import answered

OBJECT = (8.0, 8.0, 40.0, 32.0)
NEIGHBOR = (8.0, 8.0, 52.0, 32.0)
SPOT = (slice(48, 56), slice(70, 78))
"""Rows and columns of the bright spot far from the object."""
NEAR_SPOT = (slice(16, 24), slice(43, 51))
"""Rows and columns of the bright spot in the neighbor's box, beside the object."""


class SpotDetector(nn.Module):
    """A detector whose scores are a base plus a weight times the brightness of a spot.

    Args:
        spot: rows and columns that it looks at.
        base: scores (N, 2) of the boxes and classes.
        weight: likewise, change of the scores per brightness of the spot.
    """

    def __init__(self, spot: tuple[slice, slice], base: Sequence[Sequence[float]], weight: Sequence[Sequence[float]]):
        super().__init__()
        self.seen = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        nn.init.zeros_(self.seen.weight)
        self.seen.weight.data[:, 0, 1, 1] = 1
        self.spot, self.base, self.weight = spot, torch.tensor(base), torch.tensor(weight)

    def forward(self, x: Tensor) -> Tensor:
        brightness = self.seen(x)[:, :, self.spot[0], self.spot[1]].mean((1, 2, 3))
        return (self.base + self.weight * brightness[:, None, None]).clamp(0.001, 0.999)


def spot_adapter(
    spot: tuple[slice, slice],
    base: Sequence[Sequence[float]],
    weight: Sequence[Sequence[float]],
    boxes: Sequence[Sequence[float]] = (OBJECT,),
) -> Adapter:
    table = torch.tensor(boxes)
    return detector(
        SpotDetector(spot, base, weight).eval(),
        lambda raw: (table.expand(len(raw), -1, -1), raw),
        names=["boat", "buoy"],
        target_layers="seen",
    )


def audit_missed(
    adapter: Adapter, folder: Path, spot: tuple[slice, slice], others: Sequence[Box] = (), **options: object
) -> AuditCase:
    """The case of the one missed boat, `OBJECT`, of a gray image with a white spot."""
    pixels = np.full((64, 96, 3), 100, dtype=np.uint8)
    pixels[spot] = 255
    Image.fromarray(pixels).save(folder / "a.png")
    boats = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 768, "iscrowd": 0}
        for i, (x1, y1, x2, y2) in enumerate([OBJECT, *others], 1)
    ]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 64}],
        "categories": [{"id": 1, "name": "boat"}],
        "annotations": boats,
    }
    (folder / "labels.json").write_text(json.dumps(data))
    found = detcam.audit(adapter, folder, folder / "labels.json", explain=0, **options)  # type: ignore[arg-type]
    (case,) = [case for case in found.cases if case.type == "missed"]
    return case


@pytest.mark.parametrize("method", ["portfolio", ODAM])
def test_an_object_that_a_spot_suppresses(tmp_path: Path, method: object) -> None:
    adapter = spot_adapter(SPOT, [[0.905, 0.0]], [[-0.9, 0.0]])
    case = audit_missed(adapter, tmp_path, SPOT, method=method)
    assert case.failure_stage == "below threshold" and case.score == pytest.approx(0.005, abs=1e-4)
    assert case.verdict == "strong" and case.confirmed, case.reason
    assert case.question == "what suppresses the missed boat?"
    column, row = case.peak_xy or (0, 0)
    assert SPOT[0].start <= row < SPOT[0].stop and SPOT[1].start <= column < SPOT[1].stop
    assert case.minimal_region_fraction is not None and case.minimal_region_fraction < 0.016
    assert "appears when the region elsewhere in the scene is removed" in case.sentence
    outcomes = {trial.intervention: trial.outcome for trial in case.trials}
    assert outcomes == {"without evidence": "appeared", "random control": "absent", "near control": "absent"}
    assert case.effect == pytest.approx(1.0), case.trials
    assert np.isnan(case.error_rate), "no rate is measured for missed objects"
    assert case.forward_passes <= 27


def test_an_object_that_no_removal_makes_appear(tmp_path: Path) -> None:
    adapter = spot_adapter(SPOT, [[0.208, 0.0]], [[-0.2, 0.0]])
    case = audit_missed(adapter, tmp_path, SPOT)
    assert case.verdict == "not confirmed" and not case.confirmed and case.minimal_region_fraction is None
    assert "scored low (best score 0.01)" in case.sentence and "no region's removal makes it appear" in case.sentence
    assert case.forward_passes <= 27


def test_an_object_that_a_neighbor_suppresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two boats with an IoU of 0.73; the score of the larger one comes from a spot outside the smaller one."""
    monkeypatch.setattr("detcam.auditing.explainer.color_segments", pytest.fail)  # no proposal needs segments
    adapter = spot_adapter(NEAR_SPOT, [[0.6, 0.0], [0.1, 0.0]], [[0.0, 0.0], [0.8, 0.0]], [OBJECT, NEIGHBOR])
    case = audit_missed(adapter, tmp_path, NEAR_SPOT, [NEIGHBOR])
    assert case.failure_stage == "suppressed" and case.score == pytest.approx(0.6)
    assert case.verdict == "strong", case.reason
    assert "suppressed by another detection" in case.sentence and case.proposal.startswith("suppressing detection")
    column, row = case.peak_xy or (0, 0)
    assert NEAR_SPOT[0].start <= row < NEAR_SPOT[0].stop and NEAR_SPOT[1].start <= column < NEAR_SPOT[1].stop


def test_a_detector_without_candidates(tmp_path: Path) -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.seen(x).flatten(2)[:, :, :0].transpose(1, 2)
            return found

    adapter = detector(
        Nothing().eval(),
        lambda raw: (torch.cat([raw, raw], 2), raw.sigmoid()),
        names=["boat", "buoy"],
        target_layers="seen",
    )
    case = audit_missed(adapter, tmp_path, SPOT)
    assert case.failure_stage == "no candidate" and case.verdict == "not tested" and "no heatmap" in case.reason
    assert "no candidate forms there" in case.sentence


class FoundOutput(FixedOutput):
    """An output with given detections of class 0, and raw candidates."""

    def __init__(self, found: Sequence[tuple[Sequence[float], float]], raw: Sequence[tuple] = ()) -> None:  # type: ignore[type-arg]
        super().__init__((OBJECT, (0.1, 0.0)), raw)
        self.found = found

    def detections(self) -> Detections:
        count = len(self.found)
        boxes = torch.tensor([box for box, _ in self.found]).reshape(-1, 4)
        scores = torch.tensor([score for _, score in self.found])
        sources = tuple(Source("anchor", 0, index, (0.0, 0.0)) for index in range(count))
        return Detections(boxes, torch.zeros(count, dtype=torch.int64), scores, (64, 96), sources)


@pytest.mark.parametrize(
    ("found", "raw", "expected"),
    [
        ([(OBJECT, 0.6)], [], (0.6, "appeared")),
        ([(OBJECT, 0.2)], [(OBJECT, (0.2, 0.0))], (0.2, "absent")),
        ([(FAR, 0.9)], [(OBJECT, (0.1, 0.9)), (FAR, (0.9, 0.0))], (0.1, "absent")),
        ([], [(OBJECT, (0.8, 0.0))], (0.8, "absent")),
        ([], [], (0.0, "absent")),
    ],
)
def test_an_object_is_found_if_a_detection_of_its_class_survives(
    found: list[tuple],
    raw: list[tuple],
    expected: tuple[float, Outcome],  # type: ignore[type-arg]
) -> None:
    criterion = AppearanceCriterion(OBJECT, 0, 0.5, 0.5)
    score, outcome = criterion.evaluate(FoundOutput(found, raw))
    assert (pytest.approx(score), outcome) == expected
    other_class = AppearanceCriterion(OBJECT, 1, 0.5, 0.5)
    assert other_class.evaluate(FoundOutput(found, []))[1] == "absent"


def test_a_detection_of_another_object_does_not_count() -> None:
    before = FoundOutput([(NEIGHBOR, 0.7)], [(NEIGHBOR, (0.7, 0.0))])
    rivals = torch.tensor([NEIGHBOR])
    criterion = AppearanceCriterion.from_output(before, OBJECT, 0, 0.5, 0.5, rivals=rivals, is_suppressed=False)
    assert criterion.evaluate(before) == (0.0, "absent"), "it is nearer to the other object"
    score, outcome = criterion.evaluate(FoundOutput([(OBJECT, 0.6)]))
    assert outcome == "appeared" and score == pytest.approx(0.6), "the other detection may be gone"


def test_one_of_two_objects_with_the_same_box() -> None:
    before = FoundOutput([(OBJECT, 0.7)])
    rivals = torch.tensor([OBJECT])
    criterion = AppearanceCriterion.from_output(before, OBJECT, 0, 0.5, 0.5, rivals=rivals, is_suppressed=True)
    assert criterion.others == 1 and criterion.evaluate(before) == (0.0, "absent")
    assert criterion.evaluate(FoundOutput([(OBJECT, 0.7), (OBJECT, 0.6)]))[1] == "appeared"


def test_the_suppressing_detection_overlaps_the_best_candidate() -> None:
    output = FoundOutput([(FAR, 0.95), (NEIGHBOR, 0.9)], [(OBJECT, (0.6, 0.0)), (FAR, (0.95, 0.0))])
    criterion = AppearanceCriterion(OBJECT, 0, 0.5, 0.8, is_suppressed=True)
    found = suppressing_detection(output, criterion)
    assert found == BoxTarget(NEIGHBOR, 0, Source("anchor", 0, 1, (0.0, 0.0)))
    assert suppressing_detection(FoundOutput([(FAR, 0.95)], [(OBJECT, (0.6, 0.0))]), criterion) is None


def trial(intervention: Intervention, score: float, fill: str = "ring") -> Trial:
    return Trial(intervention, fill, score, "appeared" if score >= 0.5 else "absent")


WITHOUT = [trial("without evidence", 0.8, "linear"), trial("without evidence", 0.7)]
NEAR_CONTROL = trial("near control", 0.1)


@pytest.mark.parametrize(
    ("trials", "fraction", "grade", "words"),
    [
        ([*WITHOUT, trial("random control", 0.1), NEAR_CONTROL], 0.01, "strong", "effect 1.00 over 2 controls"),
        ([*WITHOUT, NEAR_CONTROL], 0.2, "weak", "a tenth of the image"),
        ([*WITHOUT, trial("random control", 0.1)], 0.01, "weak", "beside the object"),
        ([*WITHOUT, trial("random control", 0.49), NEAR_CONTROL], 0.01, "weak", "the effect is small"),
        ([*WITHOUT, trial("random control", 0.55), NEAR_CONTROL], 0.01, "not confirmed", "a random region"),
        ([*WITHOUT, trial("near control", 0.6)], 0.01, "not confirmed", "beside the object"),
        (WITHOUT, 0.01, "not confirmed", "no control"),
        ([WITHOUT[0], trial("without evidence", 0.4), NEAR_CONTROL], 0.01, "not confirmed", "at most 0.40"),
    ],
)
def test_verdicts(trials: Sequence[Trial], fraction: float, grade: str, words: str) -> None:
    verdict = decide_appearance(0.05, 0.5, trials, fraction)
    assert verdict.grade == grade and words in verdict.reason


def test_a_candidate_that_is_suppressed_without_the_region_is_not_found() -> None:
    trials = [Trial("without evidence", "ring", 0.8, "absent")]
    verdict = decide_appearance(0.05, 0.5, trials, 0.01)
    assert verdict.grade == "not confirmed" and "suppresses its candidate" in verdict.reason


def test_an_object_without_a_detection_has_no_score() -> None:
    trials = [*WITHOUT, trial("random control", 0.1), NEAR_CONTROL]
    assert decide_appearance(0.0, 0.5, trials, 0.01).reason == (
        "not detected; score 0.70 without the region; effect 1.00 over 2 controls"
    )
    assert decide_appearance(0.2, 0.5, trials[:3], 0.01).reason.startswith(
        "score 0.20, and 0.70 without the region; effect 1.00 over 1 control;"
    )


def test_a_score_just_below_the_threshold_needs_an_effect() -> None:
    trials = [trial("without evidence", 0.55), trial("random control", 0.4), trial("near control", 0.4)]
    assert decide_appearance(0.48, 0.5, trials, 0.01).grade == "not confirmed"


def investigate(appears: bool, is_suppressed: bool) -> tuple[list[Removal], Tensor, Tensor]:
    """The requests of an investigation whose removals all succeed, or all fail, its evidence, and the object.

    The maps are strongest along the border of the object.
    """
    own = torch.zeros(64, 96, dtype=torch.bool)
    own[8:32, 8:40] = True
    around, ring = torch.zeros_like(own), torch.zeros_like(own)
    around[7:33, 7:41], ring[:44, :56] = True, True
    generator = torch.Generator().manual_seed(0)
    heat = [torch.rand(64, 96, generator=generator) + 9 * around for _ in range(3)]
    maps = [Proposal(f"map {index}", each) for index, each in enumerate(heat)]
    criterion = AppearanceCriterion(OBJECT, 0, 0.5, 0.5, is_suppressed)
    investigation = AppearanceHypothesis("case", criterion, 0.1, maps, own, ring & ~own).investigate(2)
    result, asked = answered(investigation, lambda each: trial(each.intervention, 0.9 if appears else 0.1))
    assert result.ends == appears and 4 <= len(asked) <= 25
    return asked, result.evidence, own


@pytest.mark.parametrize("appears", [False, True])
def test_the_object_is_never_removed_and_the_cost_is_bounded(appears: bool) -> None:
    requests, evidence, own = investigate(appears, is_suppressed=False)
    assert bool(evidence.any()) and not bool((evidence & own).any())
    assert not any(bool((each.region & own).any()) for each in requests)


@pytest.mark.parametrize("is_suppressed", [False, True])
def test_controls_have_the_size_of_the_evidence_and_lie_outside_the_object(is_suppressed: bool) -> None:
    requests, evidence, own = investigate(True, is_suppressed)
    attempts = [each for each in requests if each.intervention == "without evidence"]
    reach = any(bool((each.region & own).any()) for each in attempts)
    assert reach == is_suppressed, "a neighbor that covers the object is removed where it does"
    controls = [each for each in requests if each.intervention in ("random control", "near control")]
    assert {each.intervention for each in controls} == {"random control", "near control"}
    assert {int(each.region.sum()) for each in controls} == {int(evidence.sum())}
    assert not any(bool((each.region & own).any()) for each in controls)
