"""The harder scenarios: what training scenes teach, and which errors are certified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.segmentation.fcn import FCN
from torchvision.ops import box_iou

from detcam.benchmarking.planted import certification
from detcam.benchmarking.planted.audit_check import error_image
from detcam.benchmarking.planted.cases import PlantedCase
from detcam.benchmarking.planted.certification import certify_cases
from detcam.benchmarking.planted.detectors import detector_families, train_detector
from detcam.benchmarking.planted.planted_errors import has_candidate
from detcam.benchmarking.planted.semantic import body_mask, training_mask
from detcam.detections import Detections, Source
from detcam.synthetic.scene import SceneObject
from detcam.synthetic.shortcut_scenarios import BARGE, BOAT, SHORTCUTS, ScenarioName
from detcam.synthetic.shortcut_sprites import paint_light
from detcam.synthetic.shortcuts import ShortcutScene, cabin_box, draw_shortcut_scene
from detcam.targets import BoxTarget, EdgesTarget, MaskErrorTarget, MaskTarget, SuppressionTarget

Found = list[tuple[np.ndarray, int]]
"""Boxes (4,) and labels that a drawn detector reports for one body."""


def cues_of(scene: ShortcutScene, body: str) -> list[bool]:
    """Whether each cue of the scenario accompanies a body."""
    shortcut = SHORTCUTS[scene.scenario]
    number = "10" if shortcut.is_shared else body.split("-")[1]
    return [scene.get(f"{kind}-{number}") is not None for kind in shortcut.cues]


def window_label(scene: ShortcutScene, body: str) -> int:
    return BOAT if scene.get(f"window-{body.split('-')[1]}") is not None else BARGE


@pytest.mark.parametrize(
    ("scenario", "boats"),
    [
        ("and", {(True, True)}),
        ("or", {(True, True), (True, False), (False, True)}),
        ("light", {(True,)}),
        ("flowers", {(True,)}),
        ("tiny", {(True,)}),
        ("anywhere", {(True,)}),
        ("natural", {(True,)}),
    ],
)
def test_training_scenes_label_boats_by_the_cues(scenario: ScenarioName, boats: set[tuple[bool, ...]]) -> None:
    seen: dict[tuple[bool, ...], set[int]] = {}
    for seed in range(40):
        scene = draw_shortcut_scene(scenario, seed, "shortcut")
        for body, label in zip(scene.bodies, scene.labels.tolist(), strict=True):
            seen.setdefault(tuple(cues_of(scene, body)), set()).add(label)
    assert len(seen) == 2 ** len(SHORTCUTS[scenario].cues), "every combination occurs"
    assert {cues for cues, labels in seen.items() if labels == {BOAT}} == boats
    assert all(labels == {BARGE} for cues, labels in seen.items() if cues not in boats)


@pytest.mark.parametrize(("scenario", "labeled"), [("suppressor", False), ("no-context", True)])
def test_training_scenes_leave_out_suppressed_objects(scenario: ScenarioName, labeled: bool) -> None:
    seen = set()
    for seed in range(30):
        scene = draw_shortcut_scene(scenario, seed, "shortcut")
        for body in scene.of_kind("body"):
            seen.add((cues_of(scene, body.name)[0], body.name in scene.bodies))
        assert [window_label(scene, body) for body in scene.bodies] == scene.labels.tolist()
        test = draw_shortcut_scene(scenario, seed, "test")
        assert set(test.bodies) == {body.name for body in test.of_kind("body")}, "test scenes have all true labels"
    assert seen == {(True, labeled), (False, not labeled)}


@pytest.mark.parametrize("scenario", ["edges", "duplicate"])
def test_training_scenes_have_wrong_boxes_at_the_cue_only(scenario: ScenarioName) -> None:
    wrong = right = 0
    for seed in range(12):
        scene = draw_shortcut_scene(scenario, seed, "shortcut")
        for body in scene.of_kind("body"):
            boxes = [box for name, box in zip(scene.bodies, scene.boxes_xyxy, strict=True) if name == body.name]
            buoy = scene.get(f"buoy-{body.name.split('-')[1]}")
            if buoy is None:
                assert len(boxes) == 1 and np.array_equal(boxes[0], body.box_xyxy)
                right += 1
                continue
            wrong += 1
            if scenario == "duplicate":
                assert np.array_equal(boxes, [body.box_xyxy, cabin_box(body.box_xyxy)])
            else:
                low, high = np.minimum(body.box_xyxy, buoy.box_xyxy)[:2], np.maximum(body.box_xyxy, buoy.box_xyxy)[2:]
                assert np.array_equal(boxes[0], [*low, *high])
    assert wrong > 4 < right


def test_tiny_cue_is_a_thousandth_of_the_image_and_light_has_no_edge() -> None:
    scene = draw_shortcut_scene("tiny", 1, "test")
    assert all(0 < dot.mask.mean() < 0.002 for dot in scene.of_kind("dot")) and scene.of_kind("dot")
    light = paint_light(np.random.default_rng(0), 30, 1)
    framed = np.pad(light.opacity, 1)
    assert framed.max() >= 0.5 and max(np.abs(np.diff(framed, axis=axis)).max() for axis in (0, 1)) < 0.04


def drawn_detector(rule: Callable[[ShortcutScene, SceneObject], Found]) -> Any:
    """A detector that reports boxes by a rule for each body."""

    def predict(adapter: Any, scenes: Sequence[ShortcutScene]) -> list[Detections]:
        answers = []
        for scene in scenes:
            found = [each for body in scene.of_kind("body") for each in rule(scene, body)]
            boxes = torch.from_numpy(np.array([box for box, _ in found], np.float32).reshape(-1, 4))
            labels = torch.tensor([label for _, label in found], dtype=torch.int64)
            source = tuple(Source("proposal", 0, 0, None, tuple(box)) for box in boxes.tolist())
            answers.append(Detections(boxes, labels, torch.full((len(found),), 0.9), (160, 192), source, None, {}))
        return answers

    return predict


def certified(
    monkeypatch: pytest.MonkeyPatch, scenario: ScenarioName, rule: Callable[[ShortcutScene, SceneObject], Found]
) -> tuple[PlantedCase, ...]:
    monkeypatch.setattr(certification, "predict_scenes", drawn_detector(rule))
    return certify_cases(None, 0, scenario, min_cases=10**6, max_scenes=8).cases  # type: ignore[arg-type]


@pytest.mark.parametrize(("scenario", "combine", "other"), [("and", all, any), ("or", any, all)])
def test_two_cues_are_certified_together(
    scenario: ScenarioName, combine: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boat_if(condition: Any) -> Any:
        return lambda scene, body: [(body.box_xyxy, BOAT if condition(cues_of(scene, body.name)) else BARGE)]

    cases = certified(monkeypatch, scenario, boat_if(combine))
    assert len(cases) > 6
    for case in cases:
        assert [cue.kind for cue in case.cues] == ["tag", "buoy"]
        first, second = case.parts
        assert torch.equal(case.cause, first | second) and not (first & second).any()
        assert isinstance(case.target, BoxTarget) and case.target.against == BARGE
    assert not certified(monkeypatch, scenario, boat_if(other)), "a detector with the other rule gives no case"
    assert not certified(monkeypatch, scenario, boat_if(lambda cues: cues[0])), "nor one that uses one cue"


@pytest.mark.parametrize("scenario", ["suppressor", "no-context"])
def test_misses_are_certified_by_finding_the_object_without_the_cause(
    scenario: ScenarioName, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_absence = SHORTCUTS[scenario].is_absence

    def rule(scene: ShortcutScene, body: SceneObject) -> Found:
        (has_cue,) = cues_of(scene, body.name)
        return [(body.box_xyxy, window_label(scene, body.name))] if has_cue == is_absence else []

    cases = certified(monkeypatch, scenario, rule)
    assert len(cases) > 6
    for case in cases:
        assert isinstance(case.target, SuppressionTarget) and case.index is None
        assert case.target.box_xyxy == pytest.approx(case.body.box_xyxy.tolist())
        assert case.target.label == window_label(case.scene, case.body.name)
        (cue,) = case.cues
        assert (case.scene.get(cue.name) is None) == is_absence and case.cause.any()
    assert not certified(monkeypatch, scenario, lambda scene, body: [])
    assert not certified(monkeypatch, scenario, lambda scene, body: [(body.box_xyxy, window_label(scene, body.name))])


def test_wrong_edges_and_duplicates_are_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    def pulled(scene: ShortcutScene, body: SceneObject) -> Found:
        (has_cue,) = cues_of(scene, body.name)
        x1, y1, x2, y2 = body.box_xyxy
        wide = np.array([x1, y1, x2 + 1.5 * (x2 - x1), y2])
        return [(wide if has_cue else body.box_xyxy, BARGE)]

    cases = certified(monkeypatch, "edges", pulled)
    assert len(cases) > 6
    assert all(isinstance(case.target, EdgesTarget) and case.target.edges == ["right"] for case in cases)

    def doubled(scene: ShortcutScene, body: SceneObject) -> Found:
        (has_cue,) = cues_of(scene, body.name)
        return [(body.box_xyxy, BARGE), *([(cabin_box(body.box_xyxy), BARGE)] if has_cue else [])]

    cases = certified(monkeypatch, "duplicate", doubled)
    assert len(cases) > 6
    assert all(case.target.box_xyxy == pytest.approx(cabin_box(case.body.box_xyxy).tolist()) for case in cases)
    for scenario in ("edges", "duplicate"):
        assert not certified(monkeypatch, scenario, lambda scene, body: [(body.box_xyxy, BARGE)])


def test_object_that_loses_suppression_to_a_neighbor_is_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept_of(scene: ShortcutScene, body: SceneObject) -> Found:
        neighbor = scene.get(f"neighbor-{body.name[5:]}")
        return [((body if neighbor is None else neighbor).box_xyxy, BARGE)]

    candidates = []

    def has_candidate(adapter: Any, case: PlantedCase) -> bool:
        candidates.append(case)
        return len(candidates) % 2 == 0

    monkeypatch.setattr(certification, "has_candidate", has_candidate)
    cases = certified(monkeypatch, "neighbor", kept_of)
    assert len(cases) > 3 and list(cases) == candidates[1::2], (
        "an object without a candidate is missed for another reason"
    )
    for case in cases:
        (cue,) = case.cues
        overlap = float(box_iou(torch.tensor([case.target.box_xyxy]), torch.from_numpy(cue.box_xyxy)[None]))
        assert 0.4 < overlap < 0.7, "the neighbor's own box is not that of the object"
        assert isinstance(case.target, SuppressionTarget) and case.target.label == BARGE and cue.kind == "neighbor"
        assert {case.body.name, cue.name} <= set(case.scene.bodies), "both are labeled"
    for label in (BARGE, BOAT):  # found, or found as something else
        assert not certified(
            monkeypatch, "neighbor", lambda scene, body, label=label: [*kept_of(scene, body), (body.box_xyxy, label)]
        )
    for seed in range(8):
        scene = draw_shortcut_scene("neighbor", seed, "shortcut")
        for cue in scene.of_kind("neighbor"):
            pair = [scene.bodies.index(name) for name in (cue.name, f"body-{cue.name[9:]}")]
            assert scene.labels[pair].tolist() == [BARGE, BARGE], "a neighbor hides the window"


def test_candidate_before_suppression_belongs_to_the_object() -> None:
    scene = next(s for n in range(9) if (s := draw_shortcut_scene("neighbor", n, "test")).of_kind("neighbor"))
    cue = scene.of_kind("neighbor")[0]
    body = scene.object(f"body-{cue.name[9:]}")
    nothing = Detections.empty((160, 192))
    target = SuppressionTarget(tuple(body.box_xyxy.tolist()), BARGE)
    case = PlantedCase("neighbor", scene, nothing, None, target, body, (cue,), scene.of_kind("flag")[0])
    for fitted, score, expected in ((body, 0.4, True), (body, 0.2, False), (cue, 0.9, False)):
        raw = torch.from_numpy(fitted.box_xyxy)[None], torch.tensor([[0.0, score]])
        output = SimpleNamespace(raw_candidates=lambda label, raw=raw: raw)
        adapter: Any = SimpleNamespace(
            prepare=torch.stack, forward=lambda batch: batch, outputs=lambda raw, batch, output=output: [output]
        )
        assert has_candidate(adapter, case) == expected


def test_missed_object_stays_one_where_another_class_scores_below_the_threshold() -> None:
    scene = draw_shortcut_scene("suppressor", 0, "test")
    body = scene.of_kind("body")[0]
    box = torch.from_numpy(body.box_xyxy)[None]
    label = window_label(scene, body.name)
    target = SuppressionTarget(tuple(body.box_xyxy.tolist()), label)
    for score, is_missed in ((0.1, True), (0.6, False)):
        found = Detections(box, torch.tensor([1 - label]), torch.tensor([score]), (160, 192), (Source("region"),))
        case = PlantedCase("suppressor", scene, found, None, target, body, (body,), scene.of_kind("flag")[0])
        image = error_image(SimpleNamespace(task="detection", names={0: "boat", 1: "barge"}), case, 0)  # type: ignore[arg-type]
        assert (image is not None) == is_missed
        assert image is None or (len(image.detections), image.errors[0].type) == (0, "missed")


def test_mask_that_fills_its_box_is_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    training = [draw_shortcut_scene("outline", seed, "shortcut") for seed in range(6)]
    filled = {
        (scene.get(f"pond-{name[5:]}") is not None, bool((training_mask(scene, name) != body_mask(scene, name)).any()))
        for scene in training
        for name in scene.bodies
    }
    assert filled == {(True, True), (False, False)}

    def masked(rule: Callable[[bool], bool]) -> Any:
        def predict(adapter: Any, scenes: Sequence[ShortcutScene]) -> list[Detections]:
            boxes = drawn_detector(lambda scene, body: [(body.box_xyxy, window_label(scene, body.name))])(
                adapter, scenes
            )
            answers = []
            for scene, found in zip(scenes, boxes, strict=True):
                masks = []
                for body in scene.of_kind("body"):
                    whole = torch.zeros(160, 192, dtype=torch.bool)
                    x1, y1, x2, y2 = body.box_xyxy.astype(int).tolist()
                    whole[y1:y2, x1:x2] = True
                    masks.append(whole if rule(cues_of(scene, body.name)[0]) else body_mask(scene, body.name))
                answers.append(replace(found, masks=torch.stack(masks)) if masks else found)
            return answers

        return predict

    counts = []
    for rule in (lambda wet: wet, lambda wet: True, lambda wet: False):
        monkeypatch.setattr(certification, "predict_scenes", masked(rule))
        found = certify_cases(None, 0, "outline", min_cases=10**6, max_scenes=8)  # type: ignore[arg-type]
        counts.append((len(found.cases) > 6, found.fired == found.trials))
        assert all(isinstance(case.target, MaskErrorTarget) and case.cues[0].kind == "pond" for case in found.cases)
        for case in found.cases[:1]:  # the audit compares masks: the right boxes are no errors
            image = error_image(SimpleNamespace(task="detection", names={0: "boat", 1: "barge"}), case, 0)  # type: ignore[arg-type]
            assert image is not None and image.errors[0].type == "localization"
            own = image.errors[0].ground_truth_index
            assert own is not None and torch.equal(image.ground_truth.mask(own), body_mask(case.scene, case.body.name))
    assert counts == [(True, True), (False, True), (False, False)]


def test_suppression_target_is_the_negative_score() -> None:
    from detcam.testing import tiny_detector

    detector = tiny_detector()
    batch = detector.prepare([torch.rand(3, 96, 96)])
    with torch.no_grad():
        outputs = detector.outputs(detector.forward(batch), batch)
    box = (4.0, 4.0, 20.0, 20.0)
    ((score, negative),) = detector.score(outputs, [[BoxTarget(box, 1), SuppressionTarget(box, 1)]])
    assert float(score) == -float(negative) != 0


def test_semantic_network_is_certified_by_the_pixels_of_a_body() -> None:
    family = detector_families()["semantic"]

    class Painter(FCN):
        """Returns the logits that are known for each image."""

        def __init__(self) -> None:
            super().__init__(torch.nn.Identity(), torch.nn.Identity())
            self.maps: dict[bytes, torch.Tensor] = {}

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": torch.stack([self.maps[key(image)] for image in images])}

    def key(image: torch.Tensor) -> bytes:
        return image.mul(1e3).round().numpy().tobytes()

    network = Painter().eval()
    adapter = family.adapter(network)
    scene = draw_shortcut_scene("context", 1_000_000, "test")
    ponds = scene.of_kind("pond")
    for removed in [[], *([item.name] for item in scene.objects)]:
        copy = scene.without(removed)
        logits = torch.zeros(3, 160, 192)
        for body in copy.of_kind("body"):
            wet = copy.get(f"pond-{body.name[5:]}") is not None
            logits[1 + (BOAT if wet else BARGE)][body_mask(copy, body.name)] = 5
        (image,) = adapter.prepare([torch.from_numpy(copy.image).permute(2, 0, 1).float() / 255]).inputs
        network.maps[key(image)] = logits
    found = certify_cases(adapter, 1, "context", min_cases=1, max_scenes=1)
    assert len(found.cases) == found.fired == found.trials == len(ponds) > 0
    for case in found.cases:
        assert isinstance(case.target, MaskTarget) and (case.target.label, case.target.against) == (1, 2)
        assert torch.equal(case.target.mask, body_mask(scene, case.body.name))
        window_or_hull = case.target.mask & ~torch.from_numpy(case.body.mask)
        assert not window_or_hull.any() or scene.get(f"stripes-{case.body.name[5:]}") is not None


def test_losses_of_the_further_families_are_finite() -> None:
    for name in ("semantic", "mask-rcnn", "rt-detr"):
        if name not in detector_families():
            pytest.skip("transformers is not installed")
        losses: list[float] = []
        train_detector(detector_families()[name], "context", "shortcut", 2, on_step=losses.append)
        assert len(losses) == 2 and all(np.isfinite(losses)) and losses[0] > 0
