"""Certification: an error counts as a case if it vanishes in a copy of its scene without the cause."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torchvision.ops import box_iou

from detcam.adapters import Adapter
from detcam.auditing.error_targets import detection_target
from detcam.benchmarking.planted.cases import FIRST_SEEDS, CaseTarget, PlantedCase, SeedSet
from detcam.benchmarking.planted.semantic import body_mask, classify_bodies
from detcam.detections import Detections
from detcam.synthetic.scene import SceneObject
from detcam.synthetic.shortcut_scenarios import BARGE, BOAT, SHORTCUTS, ScenarioName
from detcam.synthetic.shortcuts import ShortcutScene, cabin_box, draw_shortcut_scene
from detcam.targets import EdgesTarget, MaskTarget, SuppressionTarget
from detcam.utils.batching import batches

MIN_FALSE_POSITIVE_SCORE = 0.5
MIN_SCORE = 0.3
"""Smallest score of a detection; below it, the detection has vanished."""
MIN_IOU = 0.5
"""Smallest IoU of two boxes of the same object."""
MAX_WRONG_IOU, MIN_RIGHT_IOU = 0.5, 0.75
"""Largest IoU of a box with wrong edges, and smallest IoU of a right box, with the object."""
MAX_SCENES = 400
BATCH_SIZE = 16

Pair = tuple[SceneObject, tuple[SceneObject, ...]]
"""An object that a detector may confuse, and the cues that accompany it."""


@dataclass(frozen=True)
class Certification:
    """The errors of a detector in the test scenes of a scenario.

    Attributes:
        cases: certified errors.
        trials: number of objects in the scenes that the cues accompany.
        fired: number of those objects at which the detector makes the error.
    """

    cases: tuple[PlantedCase, ...]
    trials: int
    fired: int


def certify_cases(
    adapter: Adapter,
    first_label: int,
    scenario: ScenarioName,
    *,
    min_cases: int,
    max_scenes: int = MAX_SCENES,
    seeds: SeedSet = "development",
) -> Certification:
    """Certify errors in the test scenes of a scenario.

    Each error is predicted again in copies of its scene. Without the cue, it has to vanish; if the scenario has two
    cues, without each of them, or, if each of them suffices, without both, and persist without one. It also has to
    persist without an unrelated object. An error that an absence causes has to vanish with the cue.

    Args:
        adapter: adapter of the detector.
        first_label: the detector's label of the first class.
        scenario: scenario of the scenes.
        min_cases: number of cases at which to stop; all cases of the last batch of scenes are returned.
        max_scenes: maximum number of scenes.
        seeds: the test scenes.
    """
    cases: list[PlantedCase] = []
    trials = fired = 0
    for numbers in batches(range(FIRST_SEEDS[seeds], FIRST_SEEDS[seeds] + max_scenes), BATCH_SIZE):
        trial_scenes, pairs = _trials([draw_shortcut_scene(scenario, seed, "test") for seed in numbers])
        trials += len(pairs)
        candidates: list[PlantedCase] = []
        for scene, (body, cues), detections in zip(
            trial_scenes, pairs, predict_scenes(adapter, trial_scenes), strict=True
        ):
            found = _find_error(adapter, scene, body, detections, first_label)
            if found is None:
                continue
            fired += 1
            unrelated = _choose_unrelated(scene, body, cues)
            if unrelated is not None:
                index, target = found
                candidates.append(PlantedCase(scenario, scene, detections, index, target, body, cues, unrelated))
        cases += _certified(adapter, candidates)
        if len(cases) >= min_cases:
            break
    return Certification(tuple(cases), trials, fired)


def cue_pairs(scene: ShortcutScene) -> list[Pair]:
    """Pair each object that a detector may confuse with its cues; a cart is both."""
    shortcut = SHORTCUTS[scene.scenario]
    if shortcut.cues == ("cart",):
        return [(cart, (cart,)) for cart in scene.of_kind("cart")]
    pairs: list[Pair] = []
    for body in scene.of_kind("body"):
        number = "10" if shortcut.is_shared else body.name.split("-")[1]
        cues = [scene.get(f"{kind}-{number}") for kind in shortcut.cues]
        if all(cue is not None for cue in cues):
            pairs.append((body, tuple(cue for cue in cues if cue is not None)))
    return pairs


def persists(target: CaseTarget, detections: Detections) -> bool:
    """Whether a detection of the target's class still overlaps its box."""
    if not len(detections):
        return False
    overlap = box_iou(torch.tensor([target.box_xyxy]), detections.boxes_xyxy)[0]
    same = (overlap >= MIN_IOU) & (detections.labels == target.label) & (detections.scores >= MIN_SCORE)
    return bool(same.any())


def error_persists(case: PlantedCase, detections: Detections) -> bool:
    """Whether the error of a case is in the predictions for a copy of its scene."""
    effect = SHORTCUTS[case.scenario].effect
    if effect == "miss":
        return not persists(case.target, detections)
    if effect == "edges":
        iou = _best_iou(case.body.box_xyxy, detections)
        return iou is None or iou < MIN_RIGHT_IOU
    if effect == "duplicate":
        return _find_duplicate(case.body.box_xyxy, detections, MIN_SCORE) is not None
    return persists(case.target, detections)


def _trials(scenes: Sequence[ShortcutScene]) -> tuple[list[ShortcutScene], list[Pair]]:
    """The scenes in which an error is expected, and its object and cues; a scene without the cue for an absence."""
    trial_scenes, pairs = [], []
    for scene in scenes:
        for body, cues in cue_pairs(scene):
            is_absence = SHORTCUTS[scene.scenario].is_absence
            trial_scenes.append(scene.without([cue.name for cue in cues]) if is_absence else scene)
            pairs.append((body, cues))
    return trial_scenes, pairs


def _certified(adapter: Adapter, candidates: Sequence[PlantedCase]) -> list[PlantedCase]:
    """The candidates whose error vanishes and persists as it has to."""
    copies = [_copies(case) for case in candidates]
    predictions = iter(predict_scenes(adapter, [scene for group in copies for scene, _ in group]))
    return [
        case
        for case, group in zip(candidates, copies, strict=True)
        if [error_persists(case, next(predictions)) for _ in group] == [expected for _, expected in group]
    ]


def _copies(case: PlantedCase) -> list[tuple[ShortcutScene, bool]]:
    """Copies of the scene of a case, and whether its error has to be in them."""
    scene, names = case.scene, [cue.name for cue in case.cues]
    copies = [(scene.without([case.unrelated.name]), True)]
    if SHORTCUTS[case.scenario].is_absence:
        restored = draw_shortcut_scene(scene.scenario, scene.seed, scene.split, scene.removed.difference(names))
        return [*copies, (restored, False)]
    if len(names) > 1:
        copies += [(scene.without([name]), not case.needs_all_cues) for name in names]
    return [*copies, (scene.without(names), False)]


def _find_error(
    adapter: Adapter, scene: ShortcutScene, body: SceneObject, detections: Detections, first_label: int
) -> tuple[int | None, CaseTarget] | None:
    """The index of the wrong detection, None for a missed object, and the target that explains it; None if right."""
    effect = SHORTCUTS[scene.scenario].effect
    if effect == "miss":
        label = first_label + (BOAT if scene.get(f"window-{body.name.split('-')[1]}") is not None else BARGE)
        missed = SuppressionTarget(_corners(body), label)
        return None if persists(missed, detections) else (None, missed)
    if effect == "class":
        is_cart = body.kind == "cart"
        index = _find_false_positive(detections, body, None if is_cart else first_label + BOAT)
        if index is None:
            return None
        against = None if is_cart else first_label + BARGE
        if _is_semantic(adapter):
            return index, MaskTarget(int(detections.labels[index]), body_mask(scene, body.name), against)
        return index, replace(detection_target(detections, index), against=against)
    if effect == "duplicate":
        index = _find_duplicate(body.box_xyxy, detections, MIN_FALSE_POSITIVE_SCORE)
        return None if index is None else (index, detection_target(detections, index))
    iou = _best_iou(body.box_xyxy, detections)
    if iou is None or iou > MAX_WRONG_IOU:
        return None
    index = int(box_iou(torch.from_numpy(body.box_xyxy)[None], detections.boxes_xyxy)[0].argmax())
    return index, EdgesTarget.displaced(detection_target(detections, index), _corners(body))


def _corners(body: SceneObject) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = body.box_xyxy.tolist()
    return x1, y1, x2, y2


def _find_false_positive(detections: Detections, confused: SceneObject, label: int | None) -> int | None:
    """Index of the best detection of a label (None: any) at an object, or None."""
    if not len(detections):
        return None
    overlap = box_iou(torch.from_numpy(confused.box_xyxy)[None], detections.boxes_xyxy)[0]
    hits = (overlap >= MIN_IOU) & (detections.scores >= MIN_FALSE_POSITIVE_SCORE)
    if label is not None:
        hits &= detections.labels == label
    return _highest(detections, hits)


def _find_duplicate(body_xyxy: np.ndarray, detections: Detections, min_score: float) -> int | None:
    """Index of the best detection that fits the cabin of a body better than the body, or None."""
    if not len(detections):
        return None
    boxes = torch.from_numpy(np.stack([cabin_box(body_xyxy), body_xyxy]))
    cabin, whole = box_iou(boxes, detections.boxes_xyxy)
    return _highest(detections, (cabin >= MIN_IOU) & (cabin > whole) & (detections.scores >= min_score))


def _best_iou(body_xyxy: np.ndarray, detections: Detections) -> float | None:
    """The largest IoU of a detection with a body, None if none overlaps it."""
    kept = detections.boxes_xyxy[detections.scores >= MIN_SCORE]
    iou = float(box_iou(torch.from_numpy(body_xyxy)[None], kept).max()) if len(kept) else 0.0
    return iou or None


def _highest(detections: Detections, hits: torch.Tensor) -> int | None:
    indices = torch.nonzero(hits)[:, 0].tolist()
    return max(indices, key=lambda index: float(detections.scores[index])) if indices else None


def _choose_unrelated(scene: ShortcutScene, confused: SceneObject, cues: Sequence[SceneObject]) -> SceneObject | None:
    """Choose an object of another kind at random, seeded by the scene."""
    excluded_names = {confused.name, *(cue.name for cue in cues)}
    excluded_kinds = {"body", "window", *(cue.kind for cue in cues)}
    others = [item for item in scene.objects if item.name not in excluded_names and item.kind not in excluded_kinds]
    return random.Random(f"{scene.seed} {cues[0].name}").choice(others) if others else None


def _is_semantic(adapter: Adapter | None) -> bool:
    return adapter is not None and adapter.task == "segmentation"


def predict_scenes(adapter: Adapter, scenes: Sequence[ShortcutScene]) -> list[Detections]:
    """Predict each scene; one that occurs several times is predicted once."""
    unique = {id(scene): scene for scene in scenes}
    if not unique:
        return []
    if _is_semantic(adapter):
        predictions = classify_bodies(adapter, list(unique.values()), BATCH_SIZE)
    else:
        predictions = adapter.predict([scene.image for scene in unique.values()], batch_size=BATCH_SIZE)
    by_scene = dict(zip(unique, predictions, strict=True))
    return [by_scene[id(scene)] for scene in scenes]
