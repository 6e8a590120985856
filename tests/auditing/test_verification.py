"""Regions, controls, region-size search, persistence and verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from detcam import adapt
from detcam.adapters import detector
from detcam.auditing.case import Intervention, Outcome, Trial
from detcam.auditing.evidence import (
    box_region,
    location_regions,
    location_shares,
    move_region,
    region_beside,
    strongest_regions,
)
from detcam.auditing.persistence import PersistenceCriterion
from detcam.auditing.verification import Hypothesis, RegionSizeSearch, Verifier, decide_verdict
from detcam.demo.model import load_demo_detector
from detcam.perturbation.base import ImageScorer
from detcam.synthetic.harbor import draw_scene
from detcam.targets import BoxTarget
from detcam.trace import guarded
from tests.auditing.fixed_output import BOX, FAR, NEAR, FixedOutput


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


def trial(intervention: Intervention, outcome: Outcome, fill: str = "blur") -> Trial:
    return Trial(intervention, fill, 0.9 if outcome == "unchanged" else 0.1, outcome)


@pytest.mark.parametrize(
    ("trials", "verdict", "words"),
    [
        ([("without evidence", "vanished"), ("random control", "unchanged")], "confirmed", "vanished without the"),
        ([("without evidence", "class flipped"), ("box control", "unchanged")], "confirmed", "class flipped without"),
        ([("without evidence", "unchanged"), ("random control", "unchanged")], "unconfirmed", "persists without"),
        ([("without evidence", "vanished"), ("random control", "vanished")], "unconfirmed", "a random region"),
        ([("without evidence", "vanished"), ("box control", "moved")], "unconfirmed", "another part of the box"),
        ([("without evidence", "vanished")], "unconfirmed", "no control"),
        ([], "not tested", "no region was removed"),
    ],
)
def test_verdicts(trials: Sequence[tuple[Intervention, Outcome]], verdict: str, words: str) -> None:
    found, reason = decide_verdict([trial(*each) for each in trials])
    assert found == verdict and words in reason


def test_the_error_must_end_with_every_fill() -> None:
    trials = [trial("without evidence", "vanished"), trial("without evidence", "unchanged", "linear")]
    assert decide_verdict([*trials, trial("random control", "unchanged")])[0] == "unconfirmed"


def test_region_size_search() -> None:
    truth = {
        (size_index, fill): "vanished" if size_index >= (1, 3)[fill] else "unchanged"
        for size_index in range(5)
        for fill in (0, 1)
    }
    search = RegionSizeSearch(5, 2)
    rounds = 0
    while trials := search.next_trials():
        rounds += 1
        for key in trials:
            search.results[key] = (0.5, truth[key])  # type: ignore[assignment]
    assert search.minimal_index == 3 and rounds == 6 and len(search.results) == 8
    assert list(search.results)[:3] == [(4, 0), (1, 0), (0, 0)], "bisection starts with the largest region"
    never = RegionSizeSearch(3, 2)
    while trials := never.next_trials():
        for key in trials:
            never.results[key] = (0.9, "unchanged")
    assert never.minimal_index is None and list(never.results) == [(2, 0)], (
        "if the largest region has no effect, no other is tried"
    )


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
    criterion = PersistenceCriterion.from_output(
        before, BoxTarget(BOX, 0), 0.5, own_candidate_only=True, ground_truth_xyxy=(4.0, 0.0, 14.0, 10.0)
    )
    assert criterion.evaluate(FixedOutput((BOX, (0.9, 0.0)), []))[1] == "unchanged"
    assert criterion.evaluate(FixedOutput(((3.0, 0.0, 13.0, 10.0), (0.9, 0.0)), []))[1] == "moved"


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
    image = torch.zeros(3, 64, 64)
    pond = torch.zeros(64, 64)
    pond[10:50, 10:50] = 1
    image[2] = pond
    with guarded(adapter.model, gradients=False), torch.no_grad():
        batch = adapter.prepare([image])
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        target = BoxTarget(box, 0)
        scorer = ImageScorer(adapter, batch, output, [target], torch.zeros(1), (), (), 8, False)
        hypothesis = Hypothesis(
            "pond", PersistenceCriterion.from_output(output, target, 0.5), pond, box_region(box, (64, 64))
        )
        (result,) = Verifier(scorer, region_sizes=(0.4,)).verify([hypothesis])
    without = {trial.fill: trial for trial in result.trials if trial.intervention == "without evidence"}
    assert set(without) == {"blur", "linear"}
    assert all(trial.score < 0.05 and trial.outcome != "unchanged" for trial in without.values())


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
        hypotheses = [Hypothesis(name, criterion, heat, box) for name, heat in heatmaps.items()]
        verdicts = dict(zip(heatmaps, Verifier(scorer).verify(hypotheses), strict=True))
    assert verdicts["wake"].verdict == "confirmed" and verdicts["wake"].minimal_region_fraction is not None
    assert verdicts["sky"].verdict == "unconfirmed" and verdicts["sky"].minimal_region_fraction is None
    assert float((verdicts["wake"].evidence & wake).sum()) > 0.5 * float(verdicts["wake"].evidence.sum())
