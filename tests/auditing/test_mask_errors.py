"""Errors of masks: their question, their criterion, and the verified cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks
from torch import Tensor, nn

from detcam.adapters.base import Batch
from detcam.adapters.detection import DetectorAdapter
from detcam.auditing.analysis import analyze_errors
from detcam.auditing.case import Outcome, Trial
from detcam.auditing.case_table import unexplained_case
from detcam.auditing.explainer import ErrorExplainer, ErrorImage
from detcam.auditing.sentences import what_ends
from detcam.auditing.verification.hypothesis import EvidencePart, Hypothesis, VerificationResult
from detcam.auditing.verification.interventions import Interventions, Investigation, Removal, keeping
from detcam.auditing.verification.mask_persistence import MaskCriterion
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.verdict import Verdict
from detcam.auditing.verification.verifier import Verifier
from detcam.benchmarking.planted.audit_check import PrecomputedMaps
from detcam.cam import BaseCAM
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectionTarget, DetectorOutput
from detcam.perturbation.base import ImageScorer
from detcam.perturbation.fills import LinearFill, RingFill
from detcam.targets import BoxTarget, EdgesTarget, MaskErrorTarget
from tests.auditing.verification.driven import answered

SIZE = 64
BOX = (24.0, 24.0, 44.0, 40.0)
OBJECT = torch.zeros(SIZE, SIZE, dtype=torch.bool)
OBJECT[24:40, 24:34] = True  # the left half of the box
CUE = torch.zeros(SIZE, SIZE, dtype=torch.bool)
CUE[50:58, 6:14] = True


class MaskOutput(DetectorOutput):
    """One box, whose mask is what is bright in it; a red cue anywhere brightens all of it."""

    def __init__(self, pixels: Tensor, geometry: Geometry) -> None:
        self.geometry, self.classes = geometry, 1
        red, green, _ = pixels.clamp(0, 1)
        self.score_table = (green[OBJECT].mean()[None, None] * 0.9).clamp(0.01, 0.99)
        cue = (red - green).clamp(min=0).sum() / int(CUE.sum())
        self.mask_logits = (8 * (green - 0.5) + 8 * cue)[24:40, 24:44]

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        scores = self.score_table.expand(len(targets), 1)
        return Candidates(torch.tensor([BOX] * len(targets)), scores, scores.logit(), None)

    def mask_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        return [target.mask_value(self.mask_logits, BOX) for target in targets]

    def detections(self) -> Detections:
        mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
        mask[0, 24:40, 24:44] = self.mask_logits > 0
        source = (Source("query", anchor=0),)
        score = self.score_table[0].detach()
        return Detections(torch.tensor([BOX]), torch.tensor([0]), score, (SIZE, SIZE), source, mask, {0: "boat"})


class MaskAdapter(DetectorAdapter):
    """The detector of `MaskOutput`."""

    family = "mask detector of the tests"

    @classmethod
    def supports(cls, model: object) -> bool:
        return False

    def default_target_layers(self) -> list[nn.Module]:
        return [self.model]

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        geometry = Geometry((SIZE, SIZE), (SIZE, SIZE), (1.0, 1.0))
        return Batch(torch.stack(list(images)), (geometry,) * len(images))

    def outputs(self, raw: Any, batch: Batch) -> list[DetectorOutput]:
        return [MaskOutput(each, geometry) for each, geometry in zip(raw, batch.geometries, strict=True)]


def scene() -> Tensor:
    image = torch.full((3, SIZE, SIZE), 0.2)
    image[:, OBJECT] = 1.0
    image[0, CUE], image[1, CUE], image[2, CUE] = 0.9, 0.0, 0.0
    return image


def truth_of(mask: Tensor) -> GroundTruth:
    """One boat; its annotated box is wrong, and does not matter."""
    box = torch.tensor([[0.0, 0.0, 3.0, 3.0]])
    code = coco_masks.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    one = torch.zeros(1, dtype=torch.int64)
    return GroundTruth(
        1, "a.png", Path("a.png"), (SIZE, SIZE), box, box.double().numpy(), one, one, one.bool(),
        mask.sum()[None].double(), one, (code,), names={0: "boat"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def adapter() -> MaskAdapter:
    model = nn.Conv2d(3, 3, 1)
    model.weight.data = torch.eye(3)[:, :, None, None]
    model.bias.data = torch.zeros(3)  # type: ignore[union-attr]
    return MaskAdapter(model.eval(), target_layers=[model], names={0: "boat"})


def error_image(adapter: MaskAdapter, mask: Tensor, iou_threshold: float) -> ErrorImage:
    found, truth = adapter.predict(scene())[0], truth_of(mask)
    analysis = analyze_errors([found], [truth], iou_type="segm", iou_threshold=iou_threshold)
    assert [error.type for error in analysis] == ["localization"]
    case = unexplained_case(analysis, 0, [found], [truth])
    return ErrorImage(scene(), replace(found, masks=None), truth, [analysis[0]], [case])


def test_the_cause_of_a_wrong_mask_is_verified_by_the_mask(
    adapter: MaskAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Removal] = []

    def record(self: Interventions, requests: Sequence[Removal], perturb: Any = Interventions.perturbed) -> Tensor:
        tried.extend(requests)
        return perturb(self, requests)

    monkeypatch.setattr(Interventions, "perturbed", record)
    explainer = ErrorExplainer(adapter, None, adapter.names, 0.3, masks=True, iou_threshold=0.7)
    ((explained,),) = explainer.explain([error_image(adapter, OBJECT, 0.7)])
    case = explained.case
    assert case.question.startswith("what makes its mask differ from the boat")
    assert case.verdict == "strong" and case.evidence_location == "scene", case.sentence
    assert explained.maps is not None
    evidence, heatmap = (torch.from_numpy(each) for each in (explained.maps.evidence, explained.maps.heatmap))
    assert (evidence & CUE).sum() > 0.5 * evidence.sum() and CUE.flatten()[heatmap.argmax()]
    without = [trial for trial in case.trials if trial.intervention == "without evidence"]
    assert {trial.outcome for trial in without} == {"mask corrected"} and max(t.score for t in without) < 0.1
    assert "mask corrected without the evidence" in case.sentence and "of its mask with its object" in case.sentence
    assert what_ends(case) == "error", "its detection stays"
    for each in tried:  # the object is never removed, by no margin of a region either
        assert each.kept is not None and torch.equal(each.kept, OBJECT) and not (each.region & OBJECT).any()


@pytest.mark.parametrize("kept", [None, OBJECT])
def test_fills_do_not_continue_the_colors_of_what_is_kept(adapter: MaskAdapter, kept: Tensor | None) -> None:
    beside = torch.zeros_like(OBJECT)
    beside[24:40, 34:40] = True
    batch = adapter.prepare([scene()])
    output = adapter.outputs(adapter.forward(batch), batch)[0]
    images = Interventions(ImageScorer(adapter, batch, output, []), (RingFill(), LinearFill()))
    filled = images.perturbed([Removal("without evidence", beside, fill, kept) for fill in (0, 1)])
    assert all(bool((each[:, OBJECT] == 1).all()) for each in filled)
    for each in filled:  # the ground has 0.2, and linear imputation adds noise
        assert (float(each[:, beside].max()) < 0.3) == (kept is not None)


def test_a_wrong_mask_without_a_cause_is_not_confirmed(adapter: MaskAdapter) -> None:
    # The annotation covers pixels in the box that the mask lacks without the cue, and lacks half of the bright ones.
    other = torch.zeros_like(OBJECT)
    other[24:40, 29:32] = True
    explainer = ErrorExplainer(adapter, None, adapter.names, 0.3, masks=True, iou_threshold=0.9)
    ((explained,),) = explainer.explain([error_image(adapter, other, 0.9)])
    assert not explained.case.confirmed


def test_a_mask_that_is_right_in_the_image_alone_is_not_tested(adapter: MaskAdapter) -> None:
    explainer = ErrorExplainer(adapter, None, adapter.names, 0.3, masks=True, iou_threshold=0.4)
    ((explained,),) = explainer.explain([error_image(adapter, OBJECT, 0.7)])
    assert explained.case.verdict == "not tested" and not explained.case.trials
    assert explained.case.sentence.endswith(
        "not tested: the error of the mask is not in the model's output for the image alone"
    )


def test_a_map_of_the_object_alone_shows_nothing_that_may_be_removed(adapter: MaskAdapter) -> None:
    cam = cast(BaseCAM, PrecomputedMaps(OBJECT.float()))
    explainer = ErrorExplainer(adapter, cam, adapter.names, 0.3, masks=True, iou_threshold=0.7)
    ((explained,),) = explainer.explain([error_image(adapter, OBJECT, 0.7)])
    assert explained.case.verdict == "not tested"
    assert explained.case.reason == "no region was removed: the maps show nothing beside the object"


def test_a_given_map_stands_for_both_targets_of_a_mask_in_a_wrong_box(adapter: MaskAdapter) -> None:
    narrow = torch.zeros_like(OBJECT)
    narrow[24:40, 24:28] = True
    cam = cast(BaseCAM, PrecomputedMaps(CUE.float()))
    explainer = ErrorExplainer(adapter, cam, adapter.names, 0.3, masks=True, iou_threshold=0.7)
    ((explained,),) = explainer.explain([error_image(adapter, narrow, 0.7)])
    assert "of its box as well" in explained.case.question and explained.case.trials, explained.case.sentence


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ("object lost", "the detection itself ends with it"),
        ("mask corrected", "no other region of the evidence's size"),
    ],
)
def test_verdicts_about_masks_are_in_words_about_masks(adapter: MaskAdapter, outcome: Outcome, reason: str) -> None:
    ring = torch.zeros_like(OBJECT)
    ring[16:48, 19:39] = True
    ring &= ~OBJECT
    batch = adapter.prepare([scene()])
    output = adapter.outputs(adapter.forward(batch), batch)[0]
    verifier = Verifier(ImageScorer(adapter, batch, output, []))
    # The box is the object: nothing of the ring around it is free beside evidence that takes all of it.
    criterion = MaskCriterion(BoxTarget(BOX, 0), OBJECT, 0.9, 0.3, OBJECT, 0.7)
    hypothesis = Hypothesis(
        "case", criterion, 0.9, Proposals([Proposal("map", ring.float())]), OBJECT, OBJECT, is_outside=True
    )

    def answer(request: Removal) -> Trial:
        ends = float(request.region[ring].float().mean()) > 0.9
        return Trial(request.intervention, "ring", *((0.0, outcome) if ends else (0.9, "unchanged")))

    result, _ = answered(verifier.investigate(hypothesis), answer)
    assert reason in result.verdict.reason and "of the box" not in result.verdict.reason, result.verdict.reason


def test_a_box_that_is_off_as_well_is_asked_about() -> None:
    from detcam.auditing.error_targets import question_for
    from detcam.auditing.errors import DetectionError

    error = DetectionError(0, 1, "localization", 0, 0, None, 0, 0.9, 0.4, 0.0, True)
    found = Detections(torch.tensor([BOX]), torch.tensor([0]), torch.tensor([0.9]), (SIZE, SIZE), (Source("region"),))
    for threshold, expected in ((0.5, [MaskErrorTarget]), (0.6, [MaskErrorTarget, EdgesTarget])):
        truth = truth_of(OBJECT)
        question = question_for(error, found, truth, {0: "boat"}, masks=True, iou_threshold=threshold)
        assert [type(target) for target in question.targets] == expected
        assert torch.equal(question.targets[0].mask, OBJECT)  # type: ignore[attr-defined]
    assert question.text == "what makes its mask differ from the boat, at the right edge of its box as well?"
    (edges,) = question_for(error, found, truth_of(OBJECT), {0: "boat"}).targets
    assert isinstance(edges, EdgesTarget), "boxes are compared"


class FixedMasks(MaskOutput):
    """Given boxes, labels, scores and masks."""

    def __init__(self, *found: tuple[tuple[float, float, float, float], int, float, Tensor]) -> None:
        self.found = found

    def detections(self) -> Detections:
        boxes, labels, scores, masks = zip(*self.found, strict=True) if self.found else ((),) * 4
        return Detections(
            torch.tensor(boxes).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(scores),
            (SIZE, SIZE),
            (Source("region"),) * len(boxes),
            torch.stack(masks) if masks else torch.zeros(0, SIZE, SIZE, dtype=torch.bool),
        )


def rectangle(rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


WHOLE = rectangle(slice(24, 40), slice(24, 44))


@pytest.mark.parametrize(
    ("found", "score", "outcome"),
    [
        ([(BOX, 0, 0.8, WHOLE)], 0.9, "unchanged"),
        ([(BOX, 0, 0.8, OBJECT)], 0.0, "mask corrected"),
        ([(BOX, 0, 0.8, rectangle(slice(24, 40), slice(24, 36)))], 0.9 * 0.2, "mask corrected"),
        ([(BOX, 0, 0.8, rectangle(slice(24, 40), slice(24, 40)))], 0.9 * 0.6, "unchanged"),
        ([(BOX, 0, 0.8, rectangle(slice(24, 40), slice(24, 27)))], 0.0, "unchanged"),  # too little of the object
        ([((24.0, 24.0, 33.0, 40.0), 0, 0.8, OBJECT)], 0.0, "mask corrected"),  # the box is at the object
        ([((25.0, 24.0, 45.0, 40.0), 0, 0.8, WHOLE), ((24.0, 24.0, 34.0, 40.0), 0, 0.9, OBJECT)], 0.9, "unchanged"),
        ([(BOX, 0, 0.2, OBJECT)], 0.9, "object lost"),
        ([(BOX, 1, 0.8, OBJECT)], 0.9, "object lost"),
        ([((50.0, 50.0, 60.0, 60.0), 0, 0.8, OBJECT)], 0.9, "object lost"),
        ([], 0.9, "object lost"),
    ],
)
def test_outcomes_of_masks(found: list[Any], score: float, outcome: str) -> None:
    before = FixedMasks((BOX, 0, 0.9, WHOLE))
    criterion = MaskCriterion.from_output(before, BoxTarget(BOX, 0), OBJECT, 0.9, 0.3, 0.7)
    assert criterion is not None and int(criterion.wrong.sum()) == 160
    value, state = criterion.evaluate(FixedMasks(*found))
    assert (round(value, 6), state) == (round(score, 6), outcome)


def test_a_right_or_absent_mask_has_no_criterion() -> None:
    target = BoxTarget(BOX, 0)
    for output in (FixedMasks((BOX, 0, 0.9, OBJECT)), FixedMasks()):
        assert MaskCriterion.from_output(output, target, OBJECT, 0.9, 0.3, 0.7) is None


def test_what_is_kept_is_never_removed() -> None:
    asked: list[Tensor] = []

    def investigation() -> Investigation[int]:
        trials = yield [Removal("without evidence", WHOLE), Removal("random control", CUE, 1)]
        return len(trials)

    running = keeping(investigation(), OBJECT)
    asked = [request.region for request in running.send(None)]  # type: ignore[arg-type]
    assert torch.equal(asked[0], WHOLE & ~OBJECT) and torch.equal(asked[1], CUE)
    part = EvidencePart(WHOLE, 0.1, needed=True)
    found = VerificationResult(
        (), Verdict("weak", 0.4, ""), Proposal("", CUE.float()), WHOLE, (part,), WHOLE, ends=True
    )
    without = found.without(OBJECT)
    for region in (without.evidence, without.parts[0].region):
        assert torch.equal(region, WHOLE & ~OBJECT)
    assert without.control is not None and torch.equal(without.control, WHOLE), "controls are removed whole"


@pytest.mark.parametrize("is_free", [True, False])
def test_controls_are_as_large_as_the_evidence_and_leave_the_object_alone(adapter: MaskAdapter, is_free: bool) -> None:
    cause, large = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    cause[20:32, 42:46] = True
    large[:, : 42 if is_free else SIZE] = True
    large &= ~cause
    # The map reaches onto the object, and so do most random positions of a region.
    heatmap = torch.zeros(SIZE, SIZE)
    heatmap[20:32, 38:46] = 1
    batch = adapter.prepare([scene()])
    output = adapter.outputs(adapter.forward(batch), batch)[0]
    verifier = Verifier(ImageScorer(adapter, batch, output, []))
    criterion = MaskCriterion(BoxTarget(BOX, 0), large, 0.9, 0.3, large, 0.7)
    proposals = Proposals([Proposal("map", heatmap)])
    hypothesis = Hypothesis("case", criterion, 0.9, proposals, large, large, is_outside=True)

    def answer(request: Removal) -> Trial:
        if bool(request.region[cause].all()):
            return Trial(request.intervention, str(request.fill), 0.0, "mask corrected")
        return Trial(request.intervention, str(request.fill), 0.9, "unchanged")

    result, asked = answered(verifier.investigate(hypothesis), answer)
    assert result.ends and bool(result.evidence.any()) and not bool((result.evidence & large).any())
    controls = [each.region for each in asked if each.intervention in ("near control", "random control")]
    assert bool(controls) == is_free
    assert {int(each.sum()) for each in controls} <= {int(result.evidence.sum())}
    if not is_free:
        assert "no control" in result.verdict.reason
