"""Regions, controls, the ladder and the verdict: by hand, and where the evidence is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from detcam import adapt
from detcam.adapters import detector
from detcam.auditing.case import Intervention, Outcome, Trial
from detcam.auditing.evidence import box_region, elsewhere, places, shares, strongest
from detcam.auditing.persistence import TrackedDetection
from detcam.auditing.verification import Hypothesis, Verifier, _RegionSizeSearch, judge
from detcam.demo.model import load_demo_detector
from detcam.detections import Detections
from detcam.outputs import Candidates, DetectorOutput
from detcam.perturbation.base import ImageScorer
from detcam.synthetic.harbour import draw_scene
from detcam.targets import BoxTarget
from detcam.trace import guarded


def test_the_strongest_pixels_are_a_share_of_the_image_around_the_peak() -> None:
    heat = torch.zeros(40, 50)
    heat[10:20, 30:40] = 1
    small, large, most = strongest(heat, (0.01, 0.05, 0.5))
    assert int(small.sum()) == 20 and int(large.sum()) == 100
    assert bool(heat[small].all()) and float(heat[large].mean()) > 0.9
    assert 100 < int(most.sum()) < 14 * 14, "no more than the map points to, smoothed by less than half a pixel"
    assert not strongest(torch.zeros(40, 50), (0.1,)).any(), "a map of nothing has no evidence"


def test_places_do_not_overlap_and_fill_the_image() -> None:
    truth = box_region((20, 0, 40, 10), (40, 60))
    other = box_region((50, 30, 60, 40), (40, 60))
    found = places((40, 60), (10, 0, 30, 20), truth, other)
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
    assert shares(strength, found) == pytest.approx(
        {"predicted box": 0.25, "ground truth": 0.0, "same class": 0.625, "ring": 0.125, "scene": 0.0}
    )


def test_controls_are_as_large_and_off_the_evidence() -> None:
    region = torch.zeros(40, 60, dtype=torch.bool)
    region[5:12, 8:20] = True
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        moved = elsewhere(region, generator)
        assert moved is not None and int(moved.sum()) == int(region.sum())
        assert int((moved & region).sum()) <= 0.1 * int(region.sum())
    box = box_region((0, 0, 30, 20), (40, 60))
    beside = elsewhere(region, generator, inside=box)
    assert beside is not None and int(beside.sum()) == int(region.sum())
    assert not (beside & region).any() and not (beside & ~box).any()
    assert elsewhere(torch.ones(4, 4, dtype=torch.bool), generator) is None
    assert elsewhere(region, generator, inside=box_region((8, 5, 20, 13), (40, 60))) is None, "no room beside it"


def trial(change: Intervention, outcome: Outcome, fill: str = "blur") -> Trial:
    return Trial(change, fill, 0.9 if outcome == "unchanged" else 0.1, outcome)


@pytest.mark.parametrize(
    ("trials", "verdict", "words"),
    [
        ([("without evidence", "vanished"), ("random control", "unchanged")], "confirmed", "vanished without the"),
        ([("without evidence", "class flipped"), ("box control", "unchanged")], "confirmed", "class flipped without"),
        ([("without evidence", "unchanged"), ("random control", "unchanged")], "unconfirmed", "it stays"),
        ([("without evidence", "vanished"), ("random control", "vanished")], "unconfirmed", "a random region"),
        ([("without evidence", "vanished"), ("box control", "moved")], "unconfirmed", "another part of the box"),
        ([("without evidence", "vanished")], "unconfirmed", "nothing of its size"),
        ([], "not tested", "nothing was taken away"),
    ],
)
def test_verdicts(trials: Sequence[tuple[Intervention, Outcome]], verdict: str, words: str) -> None:
    found, reason = judge([trial(*each) for each in trials])
    assert found == verdict and words in reason


def test_one_fill_alone_proves_nothing() -> None:
    trials = [trial("without evidence", "vanished"), trial("without evidence", "unchanged", "linear")]
    assert judge([*trials, trial("random control", "unchanged")])[0] == "unconfirmed"


def test_the_ladder_finds_the_smallest_rung_that_removes_with_every_fill() -> None:
    truth = {
        (size_index, fill): "vanished" if size_index >= (1, 3)[fill] else "unchanged"
        for size_index in range(5)
        for fill in (0, 1)
    }
    search = _RegionSizeSearch(5, 2)
    rounds = 0
    while asked := search.next():
        rounds += 1
        for key in asked:
            search.answers[key] = (0.5, truth[key])  # type: ignore[assignment]
    assert search.found == 3 and rounds == 6 and len(search.answers) == 8
    assert list(search.answers)[:3] == [(4, 0), (1, 0), (0, 0)], "halved from the greatest region on"
    never = _RegionSizeSearch(3, 2)
    while asked := never.next():
        for key in asked:
            never.answers[key] = (0.9, "unchanged")
    assert never.found is None and list(never.answers) == [(2, 0)], (
        "where the greatest region does nothing, all else is spared"
    )


class Said(DetectorOutput):
    """A detector's output that is given: the candidate itself, then all others."""

    def __init__(self, own: tuple[Sequence[float], Sequence[float]], others: Sequence[tuple]) -> None:  # type: ignore[type-arg]
        self.own, self.others = own, others

    def candidates(self, targets: Sequence[BoxTarget]) -> Candidates:  # type: ignore[override]
        scores = torch.tensor([self.own[1]])
        return Candidates(torch.tensor([self.own[0]]), scores, scores.logit(), None)

    def detections(self) -> Detections:
        raise NotImplementedError

    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        return (
            torch.tensor([box for box, _ in self.others]).reshape(-1, 4),
            torch.tensor([scores for _, scores in self.others]).reshape(-1, 2),
        )


BOX, NEAR, FAR = (0.0, 0.0, 10.0, 10.0), (6.0, 0.0, 16.0, 10.0), (50.0, 50.0, 60.0, 60.0)


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
def test_what_becomes_of_a_detection(own: tuple, others: list[tuple], outcome: Outcome) -> None:  # type: ignore[type-arg]
    target = BoxTarget(BOX, 0)
    tracked = TrackedDetection.start(Said((BOX, (0.9, 0.0)), [(BOX, (0.9, 0.0))]), target, 0.5)
    assert tracked.find(Said(own, others))[1] == outcome


def test_a_neighbour_that_was_there_before_is_no_move() -> None:
    before = Said((BOX, (0.9, 0.0)), [(NEAR, (0.8, 0.0))])
    tracked = TrackedDetection.start(before, BoxTarget(BOX, 0), 0.5)
    assert tracked.find(Said((BOX, (0.2, 0.0)), [(NEAR, (0.8, 0.0))]))[1] == "vanished"


def test_a_duplicate_is_its_own_candidate_alone() -> None:
    before = Said((BOX, (0.9, 0.0)), [(BOX, (0.9, 0.0))])
    alone = TrackedDetection.start(before, BoxTarget(BOX, 0), 0.5, alone=True)
    assert alone.find(Said((BOX, (0.2, 0.0)), [(BOX, (0.9, 0.0))]))[1] == "vanished"


def test_a_box_in_the_wrong_place_is_mended_when_it_reaches_its_object() -> None:
    before = Said((BOX, (0.9, 0.0)), [])
    tracked = TrackedDetection.start(before, BoxTarget(BOX, 0), 0.5, alone=True, truth_xyxy=(4.0, 0.0, 14.0, 10.0))
    assert tracked.find(Said((BOX, (0.9, 0.0)), []))[1] == "unchanged"
    assert tracked.find(Said(((3.0, 0.0, 13.0, 10.0), (0.9, 0.0)), []))[1] == "moved"


POND = (25.0, 25.0, 35.0, 35.0)


class Blueness(nn.Module):
    """Says one boat, as surely as what is around it is blue."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = (self.seen(x)[:, 2, 10:50, 10:50] - x[:, 0, 10:50, 10:50]).mean((1, 2))
        return found


def decode_blueness(raw: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tensor(POND).expand(len(raw), 1, 4), torch.stack([raw, torch.zeros_like(raw)], 1)[:, None].clamp(0, 1)


def test_a_large_thing_of_one_colour_leaves_nothing_of_it_behind() -> None:
    """A blur of the image would fill a pond with its own blue, and the detection that rests on it would stay."""
    adapter = detector(Blueness().eval(), decode_blueness, names=["boat", "barge"], target_layers="seen")
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
        hypothesis = Hypothesis("pond", TrackedDetection.start(output, target, 0.5), pond, box_region(box, (64, 64)))
        (said,) = Verifier(scorer, search=(0.4,)).verify([hypothesis])
    without = {trial.fill: trial for trial in said.trials if trial.intervention == "without evidence"}
    assert set(without) == {"blur", "linear"}
    assert all(trial.score < 0.05 and trial.outcome != "unchanged" for trial in without.values())


def test_nothing_to_verify_asks_nothing() -> None:
    """An image's first folding compares its targets' scores, of which there are none here."""
    adapter = adapt(load_demo_detector()).without_layers()
    with guarded(adapter.model, gradients=False), torch.no_grad():
        batch = adapter.prepare([torch.rand(3, 96, 128)])
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        scorer = ImageScorer(adapter, batch, output, [], torch.zeros(0), (), (), 8, False)
        verifier = Verifier(scorer)
        assert verifier.verify([]) == [] and verifier._ask([], []) == []
        assert scorer.folding is None, "nothing ran"
        assert scorer.score_variants(0, lambda part: batch.inputs).shape == (0, 0)
        assert scorer.score_variants(3, lambda part: batch.inputs.repeat(part.stop - part.start, 1, 1, 1)).shape == (
            3,
            0,
        )


def test_evidence_at_the_wrong_place_is_not_confirmed() -> None:
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
        tracked = TrackedDetection.start(output, target, 0.5)
        heats = {"wake": wake.float(), "sky": sky}
        hypotheses = [Hypothesis(name, tracked, heat, box) for name, heat in heats.items()]
        verdicts = dict(zip(heats, Verifier(scorer).verify(hypotheses), strict=True))
    assert verdicts["wake"].verdict == "confirmed" and verdicts["wake"].minimal_region_fraction is not None
    assert verdicts["sky"].verdict == "unconfirmed" and verdicts["sky"].minimal_region_fraction is None
    assert float((verdicts["wake"].evidence & wake).sum()) > 0.5 * float(verdicts["wake"].evidence.sum())
