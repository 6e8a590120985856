"""Verification of hypotheses on networks whose causes are known."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from detcam import adapt
from detcam.auditing.case import LIGHT_FILLS, Trial
from detcam.auditing.verification import verifier
from detcam.auditing.verification.evidence import box_region
from detcam.auditing.verification.hypothesis import Hypothesis
from detcam.auditing.verification.persistence import PersistenceCriterion
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.verifier import Verifier
from detcam.demo.model import load_demo_detector
from detcam.perturbation.base import ImageScorer
from detcam.perturbation.fills import Fill, LinearFill, RingFill, UniformFill
from detcam.synthetic.harbor import draw_scene
from detcam.targets import BoxTarget
from detcam.trace import guarded
from tests.auditing.verification.blue_regions import (
    HULL,
    LEFT,
    RIGHT,
    BluenessDetector,
    Spots,
    boat_or_barge,
    claim_about,
    spots_image,
    verify,
)


def test_fills_of_a_large_uniform_region_leave_no_trace() -> None:
    """A blur of the image would fill a pond with its own blue, and the detection that rests on it would stay."""
    pond = torch.zeros(96, 96)
    pond[10:50, 10:50] = 1
    image = torch.zeros(3, 96, 96)
    image[2] = pond
    result = verify(BluenessDetector(), image, pond)
    without = {trial.fill: trial for trial in result.trials if trial.intervention == "without evidence"}
    assert set(without) == {"ring", "linear"} and result.ends
    assert all(trial.outcome != "unchanged" for trial in without.values())


@pytest.mark.parametrize("either", [False, True])
def test_causes_that_act_together_and_causes_that_replace_one_another(either: bool) -> None:
    image, spots = spots_image(LEFT, RIGHT)
    network = Spots([LEFT, RIGHT], lambda blueness: blueness.amax(0) if either else blueness.amin(0))
    result = verify(network, image, spots)
    assert result.ends and result.verdict.grade == "strong", result.verdict.reason
    assert bool(result.needed[LEFT].any()) and bool(result.needed[RIGHT].any()), "both spots are in the evidence"
    if either:
        assert [part.needed for part in result.parts] == [False, False]
        assert bool(result.evidence[LEFT].any()) and bool(result.evidence[RIGHT].any())
    else:
        assert int(result.evidence.sum()) <= 36 and [part.needed for part in result.parts] == [True]


@pytest.mark.parametrize("idle", [(slice(44, 50), slice(4, 10)), (slice(4, 10), slice(27, 33))])
def test_a_part_that_need_not_be_removed_is_none_of_the_parts_that_replace_one_another(
    idle: tuple[slice, slice],
) -> None:
    image, spots = spots_image(LEFT, RIGHT, idle)
    result = verify(Spots([LEFT, RIGHT], lambda blueness: blueness.amax(0)), image, spots)
    assert [part.needed for part in result.parts] == [False, False] and not bool(result.evidence[idle].any())
    assert bool(result.evidence[LEFT].any()) and bool(result.evidence[RIGHT].any())


@pytest.mark.parametrize("either", [False, True])
def test_regions_outside_the_box_that_are_needed_as_well(either: bool) -> None:
    """The map shows the object; the cues beside it are only among the regions to remove one by one."""
    image, spots = spots_image(HULL, LEFT, RIGHT)
    spots[LEFT] = spots[RIGHT] = 0.02  # less dense than the object
    network = Spots(
        [HULL, LEFT, RIGHT],
        lambda blueness: torch.minimum(blueness[0], blueness[1:].amax(0) if either else blueness[1]),
    )
    result = verify(network, image, spots, regions=[LEFT, RIGHT, HULL])
    assert result.verdict.grade in ("strong", "weak") and bool(result.evidence[HULL].any())
    assert not bool(result.evidence[LEFT].any() | result.evidence[RIGHT].any())
    needed = result.needed
    assert bool(needed[LEFT].all()) and bool(needed[RIGHT].all()) == either, "one cue, or both together"


def test_the_cause_of_a_wrong_class_is_what_changes_the_class() -> None:
    """Without the hull there is no detection at all; this does not say why it is called a boat."""
    image, spots = spots_image(HULL, LEFT)
    spots[LEFT] = 0.5
    network = Spots([HULL, LEFT], boat_or_barge)
    detection = verify(network, image, spots, regions=[HULL, LEFT])
    assert bool(detection.evidence[HULL].any()) and detection.verdict.grade == "strong", detection.verdict.reason
    confusion = verify(network, image, spots, regions=[HULL, LEFT], is_confusion=True)
    assert bool(confusion.evidence[LEFT].any()) and not bool(confusion.evidence[HULL].any())
    assert confusion.verdict.grade in ("strong", "weak"), confusion.verdict.reason
    assert all(each.outcome == "class flipped" for each in confusion.trials if each.intervention == "without evidence")


def test_without_a_region_that_changes_the_class_the_words_say_so() -> None:
    image, spots = spots_image(HULL)
    result = verify(Spots([HULL], lambda blueness: blueness[0]), image, spots, is_confusion=True)
    assert result.verdict.grade == "weak" and bool(result.evidence[HULL].any())
    assert result.verdict.reason.endswith("weak because no region was found without which the object has another class")

    flipped, vanished = (Trial("without evidence", "ring", 0.1, outcome) for outcome in ("class flipped", "vanished"))
    (said,) = claim_about(spots).without_confusion().limits_of([flipped, vanished])
    assert said == "no region was found without which the object has another class with every fill"


def test_a_region_that_changes_the_class_is_not_said_to_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for a change of the class is limited; the regions that are tried later may change it."""
    image, spots = spots_image(LEFT)
    network = Spots([LEFT], lambda blueness: torch.stack([blueness[0], 1 - blueness[0]]))
    monkeypatch.setattr(verifier, "MAX_CONFUSION_TRIALS", 0)
    result = verify(network, image, spots, is_confusion=True)
    assert result.verdict.reason.startswith("class flipped without the evidence") and result.verdict.grade == "strong"
    assert "another class" not in result.verdict.reason


@pytest.mark.parametrize("everywhere", [False, True])
def test_surroundings_that_linear_imputation_paints_again(everywhere: bool) -> None:
    """A pond reaches into the box, whose rest is continued outside. What any region of that size costs is no cause."""
    pond, north = (slice(20, 40), slice(20, 40)), (slice(22, 25), slice(25, 35))
    image, _ = spots_image(pond)
    image[1] = torch.randint(2, (64, 64), generator=torch.Generator().manual_seed(0)).float()
    hull = torch.zeros(64, 64)
    hull[HULL] = 1

    class Barge(Spots):
        def forward(self, x: Tensor) -> Tensor:
            texture = (x[:, 1].std((1, 2)) > 0.494).float()
            found = super().forward(x)
            return boat_or_barge(torch.stack([found[0], texture if everywhere else found[1]]))

    result = verify(Barge([HULL, north], lambda blueness: blueness), image, hull, is_confusion=True)
    assert result.proposal.name == "surroundings of the box"
    if everywhere:
        assert result.verdict.grade == "not confirmed" and "random region" in result.verdict.reason
    else:
        assert result.verdict.grade == "weak" and "single colors only" in result.verdict.reason
        assert bool(result.evidence[north].any()) and not bool(result.evidence[25:35, 25:35].any())
        without = [each for each in result.trials if each.intervention == "without evidence"]
        assert [(each.fill, each.outcome) for each in without] == [("ring", "class flipped"), ("mean", "class flipped")]
        assert {each.fill for each in result.trials} == {"ring", "mean"}, "of the controls, too"


def test_light_that_fades_slowly_is_evened() -> None:
    """Any fill of the surroundings removes their texture, without which there is no detection."""
    image, hull = spots_image(HULL)
    rows, columns = torch.arange(64)[:, None], torch.arange(64)[None]
    image[2] = image[2].maximum(0.1 + 0.6 * torch.exp(-((rows - 30) ** 2 + (columns - 30) ** 2) / (2 * 12**2)))
    image[1] = 0.1 + 0.02 * torch.randint(2, (64, 64), generator=torch.Generator().manual_seed(0))

    class Barge(Spots):
        def forward(self, x: Tensor) -> Tensor:
            texture = (x[:, 1, 20:25].std((1, 2)) > 0.008).float()
            return boat_or_barge(super().forward(x)) * texture

    around = (slice(20, 25), slice(20, 40))
    network = Barge([HULL, around], lambda blueness: torch.stack([blueness[0], (2.5 * blueness[1] - 0.3).clamp(0, 1)]))
    result = verify(network, image, hull, is_confusion=True)
    assert result.proposal.name == "light around the box" and result.verdict.grade == "weak", result.verdict.reason
    assert "its details were kept" in result.verdict.reason
    assert bool(result.evidence[around].any()) and not bool(result.evidence[HULL].any()), "the hull is a detail"
    assert {each.fill for each in result.trials} == set(LIGHT_FILLS), "of the controls, too"


def test_a_detail_of_an_object_that_is_lost_without_larger_regions() -> None:
    detail = (slice(29, 31), slice(29, 31))
    image, hull = spots_image(HULL)
    image[2][detail] = 0.1
    rim = (slice(27, 28), slice(27, 33))
    network = Spots(
        [rim, detail], lambda blueness: boat_or_barge(torch.stack([blueness[0], (blueness[1] < 0.3) * 1.0]))
    )
    result = verify(network, image, hull, is_confusion=True)
    assert bool(result.evidence[detail].all()) and not bool(result.evidence[rim].any()), result.verdict.reason
    assert result.verdict.grade in ("strong", "weak")
    assert all(each.outcome == "class flipped" for each in result.trials if each.intervention == "without evidence")


def test_evidence_at_the_border_of_the_box_is_reduced_to_the_part_outside() -> None:
    """Only then is it known that the part outside ends the error alone."""
    cue = (slice(18, 24), slice(27, 33))
    image, spots = spots_image(cue)
    spots[24:26, 27:33] = 0.9  # reaches the box, which starts at row 25
    result = verify(Spots([cue], lambda blueness: blueness[0]), image, spots)
    assert result.verdict.grade in ("strong", "weak") and bool(result.evidence[cue].any())
    assert not bool(result.evidence[25:].any())


def test_controls_run_only_if_the_error_ends() -> None:
    image, spots = spots_image(LEFT)
    result = verify(Spots([RIGHT], lambda blueness: blueness[0] + 0.8), image, spots)
    assert not result.ends and result.control is None and "persists" in result.verdict.reason
    assert {trial.intervention for trial in result.trials} == {"without evidence"}


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_costly_control_in_the_box_leaves_out_the_other_controls(is_refused: bool) -> None:
    """They cannot change the verdict, since the costliest control decides."""
    left, right = (slice(25, 35), slice(25, 28)), (slice(25, 35), slice(28, 35))
    image, spots = spots_image(left, right)
    spots[right] = 0
    cost = 0.3 if is_refused else 0.05
    network = Spots([left, right], lambda blueness: 0.9 - 0.46 * (blueness[0] < 0.3) - cost * (blueness[1] < 0.6))
    result = verify(network, image, spots, [Gray(), Gray()])
    counts = Counter(trial.intervention for trial in result.trials)
    if is_refused:
        assert counts == {"without evidence": 2, "box control": 1} and result.verdict.grade == "not confirmed"
        assert "another part of the box of the same size costs nearly as much" in result.verdict.reason
    else:
        assert counts == {"without evidence": 2, "box control": 2, "random control": 2}
        assert result.verdict.grade == "weak", result.verdict.reason


class Gray(UniformFill):
    """Fills with the color around the spots."""

    name = "gray"

    def baseline(self, images: Tensor) -> Tensor:
        return torch.full((1, 3, 1, 1), 0.1)


def test_parts_are_those_of_the_reduced_region() -> None:
    """Only together do the two parts of the map's region cover the causes, and one half of it does so as well."""
    long, short = (slice(4, 10), slice(0, 30)), (slice(4, 10), slice(36, 42))
    causes = [(slice(4, 10), slice(22, 30)), short]
    image, spots = spots_image(long, short)
    result = verify(Spots(causes, lambda blueness: blueness.amax(0)), image, spots)
    assert result.ends and int(result.evidence.sum()) == round(0.064 * 64 * 64) // 2, "half of a tried region"
    assert all(bool(result.evidence[cause].any()) for cause in causes)
    assert [part.needed for part in result.parts] == [False, False] and bool((result.needed == result.evidence).all())
    assert not any(bool((part.region & ~result.evidence).any()) for part in result.parts)


class Blue(UniformFill):
    """Fills with the color of the spots."""

    name = "blue"

    def baseline(self, images: Tensor) -> Tensor:
        return torch.tensor([0.1, 0.1, 0.9]).view(1, 3, 1, 1)


@pytest.mark.parametrize(("second", "grade"), [(RingFill(), "weak"), (Blue(), "not confirmed")])
def test_a_region_with_a_small_effect_is_removed_with_every_fill(second: Fill, grade: str) -> None:
    """The search leaves a region whose effect is too small after the first fill; the verdict needs all of them."""
    image, spots = spots_image(LEFT)
    network = Spots([LEFT], lambda blueness: 0.38 + 0.15 * (blueness[0] - 0.1) / 0.8)  # 0.53, and 0.38 without the spot
    result = verify(network, image, spots, [LinearFill(noise=0), second])
    without = [trial for trial in result.trials if trial.intervention == "without evidence"]
    assert [trial.fill for trial in without] == ["linear", second.name]
    assert result.verdict.grade == grade and result.ends == (grade == "weak"), result.verdict.reason


def test_coarse_to_fine_removal_takes_any_number_of_fills() -> None:
    image, _ = spots_image(LEFT)
    segments = (torch.arange(64)[:, None] // 6 * 20 + torch.arange(64)[None] // 6).long()
    network = Spots([LEFT], lambda blueness: blueness[0])
    result = verify(network, image, torch.zeros(64, 64), [LinearFill()], lambda: segments)
    assert result.proposal.name == "coarse-to-fine removal" and result.ends, result.verdict.reason
    assert float(result.evidence[LEFT].float().mean()) > 0.5


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
