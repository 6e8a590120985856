"""Regions, controls, region-size search, persistence and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from detcam import adapt
from detcam.adapters import detector
from detcam.auditing.case import Intervention, Outcome, Trial
from detcam.auditing.verification.evidence import (
    box_region,
    location_regions,
    location_shares,
    move_region,
    region_beside,
    strongest_regions,
)
from detcam.auditing.verification.interventions import Investigation
from detcam.auditing.verification.persistence import PersistenceCriterion
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.region_search import RegionSearch, shrink, try_region
from detcam.auditing.verification.removal_map import MAX_REMOVALS, removal_map
from detcam.auditing.verification.verdict import decide_verdict
from detcam.auditing.verification.verifier import Hypothesis, Verifier
from detcam.demo.model import load_demo_detector
from detcam.perturbation.base import ImageScorer
from detcam.synthetic.harbor import draw_scene
from detcam.targets import BoxTarget
from detcam.trace import guarded
from tests.auditing.fixed_output import BOX, FAR, NEAR, FixedOutput

T = TypeVar("T")


def test_strongest_regions_cover_the_given_fractions() -> None:
    heat = torch.zeros(40, 50)
    heat[10:20, 30:40] = 1
    small, large, most = strongest_regions(heat, (0.01, 0.05, 0.5))
    assert int(small.sum()) == 20 and int(large.sum()) == 100
    assert bool(heat[small].all()) and float(heat[large].mean()) > 0.9
    assert 100 < int(most.sum()) < 14 * 14, "no more than the map points to, smoothed by less than half a pixel"
    assert not strongest_regions(torch.zeros(40, 50), (0.1,)).any(), "a zero map has no evidence"


def test_location_regions_partition_the_image() -> None:
    truth = box_region((20, 0, 40, 10), (40, 60))
    other = box_region((50, 30, 60, 40), (40, 60))
    found = location_regions((40, 60), (10, 0, 30, 20), truth, other)
    total = torch.stack(list(found.values())).sum(0)
    assert bool((total == 1).all())
    # By hand: the truth has 20 x 10; the box 20 x 20 less the 10 x 10 that the truth has of it; the ring reaches 10
    # pixels further and is cut by the image, 40 x 30 less 400 less the 10 x 10 of the truth beyond the box.
    sizes = {name: int(region.sum()) for name, region in found.items()}
    assert sizes == {
        "ground truth": 200, "predicted box": 300, "same class": 100, "ring": 700, "scene": 2400 - 1300
    }  # fmt: skip
    strength = torch.zeros(40, 60)
    strength[0, 0], strength[5, 15], strength[35, 55] = 1.0, 2.0, 5.0
    assert location_shares(strength, found) == pytest.approx(
        {"predicted box": 0.25, "ground truth": 0.0, "same class": 0.625, "ring": 0.125, "scene": 0.0}
    )


def test_controls_have_the_size_of_the_evidence_and_do_not_overlap_it() -> None:
    region = torch.zeros(40, 60, dtype=torch.bool)
    region[5:12, 8:20] = True
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        moved = move_region(region, generator)
        assert moved is not None and int(moved.sum()) == int(region.sum())
        assert int((moved & region).sum()) <= 0.1 * int(region.sum())
    box = box_region((0, 0, 30, 20), (40, 60))
    beside = region_beside(region, box, generator)
    assert beside is not None and int(beside.sum()) == int(region.sum())
    assert not (beside & region).any() and not (beside & ~box).any()
    assert move_region(torch.ones(4, 4, dtype=torch.bool), generator) is None
    assert region_beside(region, box_region((8, 5, 20, 13), (40, 60)), generator) is None, "no free pixels"


def trial(intervention: Intervention, outcome: Outcome, fill: str = "ring", score: float | None = None) -> Trial:
    score = (0.9 if outcome == "unchanged" else 0.1) if score is None else score
    return Trial(intervention, fill, score, outcome)


GONE, BOX_CONTROL = trial("without evidence", "vanished"), trial("box control", "unchanged")


@pytest.mark.parametrize(
    ("trials", "fraction", "grade", "words"),
    [
        ([GONE, BOX_CONTROL], 0.01, "strong", "vanished without the"),
        ([trial("without evidence", "class flipped"), BOX_CONTROL], 0.01, "strong", "class flipped without"),
        ([GONE, BOX_CONTROL], 0.1, "weak", "a tenth of the image"),
        ([GONE, trial("random control", "unchanged")], 0.01, "weak", "the box has no other region"),
        ([trial("without evidence", "vanished", score=0.48), BOX_CONTROL], 0.01, "weak", "effect is small"),
        ([trial("without evidence", "vanished", score=0.8), BOX_CONTROL], 0.01, "not confirmed", "nearly as much"),
        ([trial("without evidence", "moved", score=0.9), BOX_CONTROL], 0.01, "strong", "moved without"),
        ([trial("without evidence", "unchanged"), BOX_CONTROL], 0.01, "not confirmed", "costs next to nothing"),
        ([trial("without evidence", "unchanged", score=0.6), BOX_CONTROL], 0.01, "not confirmed", "persists without"),
        ([GONE, trial("random control", "vanished"), BOX_CONTROL], 0.01, "not confirmed", "a random region"),
        ([GONE, trial("box control", "moved", score=0.9)], 0.01, "not confirmed", "another part of the box"),
        ([GONE, trial("box control", "unchanged", score=0.899), BOX_CONTROL], 0.01, "strong", "over 2 controls"),
        ([GONE], 0.01, "not confirmed", "no control"),
        ([], 0.01, "not tested", "no region was removed"),
    ],
)
def test_verdicts(trials: Sequence[Trial], fraction: float, grade: str, words: str) -> None:
    verdict = decide_verdict(0.9, trials, fraction)
    assert verdict.grade == grade and words in verdict.reason
    assert (verdict.error_rate > 0) == (grade in ("strong", "weak"))


def test_the_effect_is_the_margin_between_the_costliest_control_and_the_weakest_fill() -> None:
    trials = [
        trial("without evidence", "vanished", "linear", 0.1),
        trial("without evidence", "vanished", "ring", 0.2),
        trial("random control", "unchanged", "ring", 0.8),
        trial("box control", "unchanged", "ring", 0.7),
    ]
    assert decide_verdict(0.8, trials, 0.01).effect == pytest.approx((0.7 - 0.2) / 0.8)
    assert decide_verdict(0.8, trials, 0.01, parts_needed=1).grade == "weak"


def test_the_error_must_end_with_every_fill() -> None:
    trials = [GONE, trial("without evidence", "unchanged", "linear"), BOX_CONTROL]
    assert decide_verdict(0.9, trials, 0.01).grade == "not confirmed"


def drive(investigation: Investigation[T], outcome: Callable[[Tensor, int], bool]) -> tuple[T, int]:
    """Answer the requests of an investigation; `outcome` says whether the error ends. Returns result and requests."""
    answers: list[Trial] | None = None
    count = 0
    while True:
        try:
            requests = investigation.send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            return stop.value, count
        count += len(requests)
        answers = [
            Trial(each.intervention, str(each.fill), *((0.1, "vanished") if ends else (0.9, "unchanged")))  # type: ignore[arg-type]
            for each in requests
            for ends in [outcome(each.region, each.fill)]
        ]


def disc(row: int, column: int, radius: float = 6) -> Tensor:
    rows, columns = torch.arange(100)[:, None], torch.arange(100)[None]
    return (rows - row).square() + (columns - column).square() <= radius**2


def test_the_smallest_region_of_any_map_is_found() -> None:
    """Removing more does not remove more: the misleading map ends the error only at one large size."""
    cause = disc(30, 30, 3)
    right, misleading = torch.zeros(100, 100), torch.zeros(100, 100)
    right[disc(30, 30, 12)] = torch.linspace(1, 0.5, int(disc(30, 30, 12).sum()))
    right += cause
    misleading[60:90, 60:90] = 1
    search = RegionSearch([misleading, right], disc(50, 50, 20), fill_count=2)

    def ends(region: Tensor, fill: int) -> bool:
        covers = float((region & cause).sum()) >= 0.9 * float(cause.sum())
        return covers or int((region & ~cause).sum()) == 900  # with nothing but the misleading map at 6.4 %

    found, _ = drive(search.next_region(), ends)
    assert found is not None and found.map_index == 1 and found.ends and len(found.trials) == 2
    assert int(found.region.sum()) == 40, "0.4 % of the image; 0.2 % does not cover the cause"
    following, _ = drive(search.next_region(), ends)
    assert following is not None and int(following.region.sum()) > 40, "the next one is not smaller"


def test_a_region_must_end_the_error_with_every_fill() -> None:
    heat = torch.zeros(100, 100)
    heat[disc(30, 30, 20)] = torch.linspace(1, 0.5, int(disc(30, 30, 20).sum()))
    search = RegionSearch([heat], disc(50, 50, 20), fill_count=2)
    found, _ = drive(search.next_region(), lambda region, fill: int(region.sum()) >= (40, 160)[fill])
    assert found is not None and int(found.region.sum()) == 160
    never = RegionSearch([heat], disc(50, 50, 20), fill_count=2)
    nothing, count = drive(never.next_region(), lambda region, fill: False)
    attempt = never.strongest_attempt()
    assert nothing is None and attempt is not None and not attempt.ends and count <= 10
    empty = RegionSearch([torch.zeros(100, 100)], disc(50, 50, 20), fill_count=2)
    assert drive(empty.next_region(), lambda region, fill: True) == (None, 0)


def test_regions_are_halved_while_a_half_suffices() -> None:
    region = torch.zeros(100, 100, dtype=torch.bool)
    region[10:14, 20:60] = True
    cause = torch.zeros_like(region)
    cause[11:13, 22:28] = True
    tried, _ = drive(try_region(region, 1), lambda each, fill: True)
    smaller, _ = drive(shrink(tried, 1), lambda each, fill: bool((each & cause).sum() == cause.sum()))
    assert int(smaller.region.sum()) == 40 and bool(smaller.region[11:13, 22:28].all())
    whole, count = drive(shrink(tried, 1), lambda each, fill: int(each.sum()) > 100)
    assert whole is tried and count == 2
    small, _ = drive(try_region(cause, 1), lambda each, fill: True)
    assert drive(shrink(small, 1), lambda each, fill: True) == (small, 0)


def test_coarse_to_fine_removal_finds_a_cause_without_gradients() -> None:
    cause, box = disc(70, 25, 5), disc(40, 60, 15)
    segments = (torch.arange(100)[:, None] // 7 * 20 + torch.arange(100)[None] // 7).long()
    heatmap, count = drive(
        removal_map(segments, box, 0.9), lambda each, fill: float((each & cause).sum()) > 0.3 * float(cause.sum())
    )
    row, column = divmod(int(heatmap.argmax()), 100)
    assert bool(disc(70, 25, 10)[row, column]) and count <= MAX_REMOVALS
    assert float(heatmap[cause].mean()) > 10 * float(heatmap[~disc(70, 25, 30)].mean())


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


POND = (25.0, 25.0, 35.0, 35.0)


class BluenessDetector(nn.Module):
    """Detects one boat, with the blueness of its surroundings as the score."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = (self.seen(x)[:, 2, 10:50, 10:50] - x[:, 0, 10:50, 10:50]).mean((1, 2))
        return found


def decode_blueness(raw: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tensor(POND).expand(len(raw), 1, 4), torch.stack([raw, torch.zeros_like(raw)], 1)[:, None].clamp(0, 1)


def test_fills_of_a_large_uniform_region_leave_no_trace() -> None:
    """A blur of the image would fill a pond with its own blue, and the detection that rests on it would stay."""
    adapter = detector(BluenessDetector().eval(), decode_blueness, names=["boat", "barge"], target_layers="seen")
    adapter = adapter.without_layers()
    box = POND
    image = torch.zeros(3, 96, 96)
    pond = torch.zeros(96, 96)
    pond[10:50, 10:50] = 1
    image[2] = pond
    with guarded(adapter.model, gradients=False), torch.no_grad():
        batch = adapter.prepare([image])
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        target = BoxTarget(box, 0)
        scorer = ImageScorer(adapter, batch, output, [target], torch.zeros(1), (), (), 8, False)
        hypothesis = Hypothesis(
            "pond",
            PersistenceCriterion.from_output(output, target, 0.5),
            1.0,
            Proposals([Proposal("pond", pond)]),
            box_region(box, (96, 96)),
            box_region(box, (96, 96)),
        )
        (result,) = Verifier(scorer).verify([hypothesis])
    without = {trial.fill: trial for trial in result.trials if trial.intervention == "without evidence"}
    assert set(without) == {"ring", "linear"} and result.ends
    assert all(trial.outcome != "unchanged" for trial in without.values())


class TwoSpots(nn.Module):
    """Detects a boat from two spots: from both, or from either."""

    def __init__(self, either: bool) -> None:
        super().__init__()
        self.seen = nn.Identity()
        self.either = either

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.seen(x)[:, 2, 4:10, column : column + 6].mean((1, 2)) for column in (4, 50))
        return torch.maximum(first, second) if self.either else torch.minimum(first, second)


@pytest.mark.parametrize("either", [False, True])
def test_causes_that_act_together_and_causes_that_replace_one_another(either: bool) -> None:
    adapter = detector(TwoSpots(either).eval(), decode_blueness, names=["boat", "barge"], target_layers="seen")
    adapter = adapter.without_layers()
    image = torch.full((3, 64, 64), 0.1)
    spots = torch.zeros(64, 64)
    for column in (4, 50):
        spots[4:10, column : column + 6] = 1
    image[2] += 0.8 * spots
    box = box_region(POND, (64, 64))
    with guarded(adapter.model, gradients=False), torch.no_grad():
        batch = adapter.prepare([image])
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        target = BoxTarget(POND, 0)
        scorer = ImageScorer(adapter, batch, output, [target], torch.zeros(1), (), (), 8, False)
        criterion = PersistenceCriterion.from_output(output, target, 0.5)
        hypothesis = Hypothesis("spots", criterion, 0.9, Proposals([Proposal("spots", spots)]), box, box)
        (result,) = Verifier(scorer).verify([hypothesis])
    assert result.ends and result.verdict.grade == "strong", result.verdict.reason
    for column in (4, 50):
        assert bool(result.needed[4:10, column : column + 6].any()), "both spots are in the evidence"
    if either:
        assert [part.needed for part in result.parts] == [False, False]
        assert bool(result.evidence[4:10, 4:10].any()) and bool(result.evidence[4:10, 50:56].any())
    else:
        assert int(result.evidence.sum()) <= 36 and [part.needed for part in result.parts] == [True]


def test_without_hypotheses_nothing_runs() -> None:
    """An image's first folding compares its targets' scores, of which there are none here."""
    adapter = adapt(load_demo_detector()).without_layers()
    with guarded(adapter.model, gradients=False), torch.no_grad():
        batch = adapter.prepare([torch.rand(3, 96, 128)])
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        scorer = ImageScorer(adapter, batch, output, [], torch.zeros(0), (), (), 8, False)
        verifier = Verifier(scorer)
        assert verifier.verify([]) == []
        assert scorer.folding is None, "nothing ran"
        assert scorer.score_variants(0, lambda part: batch.inputs).shape == (0, 0)
        assert scorer.score_variants(3, lambda part: batch.inputs.repeat(part.stop - part.start, 1, 1, 1)).shape == (
            3,
            0,
        )


def test_wrong_evidence_is_not_confirmed() -> None:
    """The boat is seen because of its wake; a map on the sky, or on the empty box, must not pass."""
    adapter = adapt(load_demo_detector()).without_layers()
    scene = draw_scene(1_000_000)
    found = adapter.predict(scene.image)[0]
    (name,) = list(scene.ghost_boxes_xyxy)[:1]
    ghost = torch.as_tensor(scene.ghost_boxes_xyxy[name])
    at = int((found.boxes_xyxy - ghost).abs().sum(1).argmin())
    target = adapter.targets_of(found)[at]
    assert isinstance(target, BoxTarget)
    size = scene.image.shape[:2]
    wake = torch.from_numpy(scene.object(name).mask)
    sky = torch.zeros(size)
    sky[:30] = torch.rand(30, size[1], generator=torch.Generator().manual_seed(0))
    box = box_region(target.box_xyxy, (size[0], size[1]))
    with guarded(adapter.model, gradients=False), torch.no_grad():
        batch = adapter.prepare([torch.from_numpy(scene.image).permute(2, 0, 1) / 255])
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        scorer = ImageScorer(adapter, batch, output, [target], torch.zeros(1), (), (), 8, False)
        criterion = PersistenceCriterion.from_output(output, target, 0.5)
        heatmaps = {"wake": wake.float(), "sky": sky}
        score = float(found.scores[at])
        hypotheses = [
            Hypothesis(name, criterion, score, Proposals([Proposal(name, heat)]), box, box)
            for name, heat in heatmaps.items()
        ]
        verdicts = dict(zip(heatmaps, Verifier(scorer).verify(hypotheses), strict=True))
    assert verdicts["wake"].verdict.grade in ("strong", "weak") and verdicts["wake"].ends
    assert verdicts["sky"].verdict.grade == "not confirmed" and not verdicts["sky"].ends
    assert float((verdicts["wake"].evidence & wake).sum()) > 0.5 * float(verdicts["wake"].evidence.sum())
