"""False positives with a certified cause: they vanish in a copy of the scene without it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters import Adapter
from detcam.detections import Detections
from detcam.synthetic.scene import SceneObject
from detcam.synthetic.shortcuts import BOAT, CUES, ScenarioName, ShortcutScene, draw_shortcut_scene
from detcam.targets import BoxTarget
from detcam.utils.batching import batches

MIN_FALSE_POSITIVE_SCORE = 0.5
DETECTION_THRESHOLD = 0.3
"""Smallest score of a detection; below it, the detection has vanished."""
MIN_IOU = 0.5
"""Smallest IoU of two boxes of the same object."""
MAX_SCENES = 400
BATCH_SIZE = 16
FIRST_TEST_SEED = 1_000_000
"""Seed of the first test scene."""


@dataclass(frozen=True, eq=False)
class PlantedCase:
    """A certified false positive.

    Attributes:
        scenario: scenario of the scene.
        scene: the image and its objects.
        detections: the detector's predictions in the scene.
        index: index of the false positive in `detections`.
        cue: the cause: without this object, the false positive vanishes.
        unrelated: an object of another kind: without it, the false positive persists.
    """

    scenario: ScenarioName
    scene: ShortcutScene
    detections: Detections
    index: int
    cue: SceneObject
    unrelated: SceneObject

    @property
    def target(self) -> BoxTarget:
        """The false positive as a target, pinned to its source."""
        box = self.detections.boxes_xyxy[self.index].tolist()
        return BoxTarget(tuple(box), int(self.detections.labels[self.index]), self.detections.source[self.index])

    @property
    def cause(self) -> Tensor:
        """Mask (H, W) bool of the visible pixels of the cue."""
        return torch.from_numpy(self.cue.mask)


@dataclass(frozen=True)
class Certification:
    """The false positives of a detector in the test scenes of a scenario.

    Attributes:
        cases: certified false positives.
        trials: number of objects in the scenes that a cue accompanies.
        fired: number of those objects at which the detector predicts a false positive.
    """

    cases: tuple[PlantedCase, ...]
    trials: int
    fired: int


def certify_cases(
    adapter: Adapter, first_label: int, scenario: ScenarioName, *, min_cases: int, max_scenes: int = MAX_SCENES
) -> Certification:
    """Certify false positives in the test scenes of a scenario.

    Each false positive is predicted again in two copies of its scene: without the cue, where it has to vanish, and
    without an unrelated object, where it has to persist.

    Args:
        adapter: adapter of the detector.
        first_label: the detector's label of the first class.
        scenario: scenario of the scenes.
        min_cases: number of cases at which to stop; all cases of the last batch of scenes are returned.
        max_scenes: maximum number of scenes.
    """
    cases: list[PlantedCase] = []
    trials = fired = 0
    for seeds in batches(range(FIRST_TEST_SEED, FIRST_TEST_SEED + max_scenes), BATCH_SIZE):
        scenes = [draw_shortcut_scene(scenario, seed, "test") for seed in seeds]
        candidates: list[PlantedCase] = []
        for scene, detections in zip(scenes, _predict(adapter, scenes), strict=True):
            for confused, cue in cue_pairs(scene):
                trials += 1
                index = _find_false_positive(detections, confused, None if cue.kind == "cart" else first_label + BOAT)
                if index is None:
                    continue
                fired += 1
                unrelated = _choose_unrelated(scene, confused, cue)
                if unrelated is not None:
                    candidates.append(PlantedCase(scenario, scene, detections, index, cue, unrelated))
        without_cue = _predict(adapter, [case.scene.without([case.cue.name]) for case in candidates])
        without_unrelated = _predict(adapter, [case.scene.without([case.unrelated.name]) for case in candidates])
        for case, no_cue, no_unrelated in zip(candidates, without_cue, without_unrelated, strict=True):
            if not persists(case.target, no_cue) and persists(case.target, no_unrelated):
                cases.append(case)
        if len(cases) >= min_cases:
            break
    return Certification(tuple(cases), trials, fired)


def cue_pairs(scene: ShortcutScene) -> list[tuple[SceneObject, SceneObject]]:
    """Pair each object that a detector may confuse with the cue beside it; a cart is both."""
    kind = CUES[scene.scenario]
    pairs = []
    for cue in scene.of_kind(kind):
        if kind == "cart":
            pairs.append((cue, cue))
        elif kind == "lamp":
            pairs += [(body, cue) for body in scene.of_kind("body")]
        else:
            body = scene.get(f"body-{cue.name.split('-')[1]}")
            if body is not None:
                pairs.append((body, cue))
    return pairs


def persists(target: BoxTarget, detections: Detections) -> bool:
    """Whether a detection of the target's class still overlaps its box."""
    if not len(detections):
        return False
    overlap = box_iou(torch.tensor([target.box_xyxy]), detections.boxes_xyxy)[0]
    same = (overlap >= MIN_IOU) & (detections.labels == target.label) & (detections.scores >= DETECTION_THRESHOLD)
    return bool(same.any())


def _find_false_positive(detections: Detections, confused: SceneObject, label: int | None) -> int | None:
    """Index of the best detection of a label (None: any) at an object, or None."""
    if not len(detections):
        return None
    overlap = box_iou(torch.from_numpy(confused.box_xyxy)[None], detections.boxes_xyxy)[0]
    hits = (overlap >= MIN_IOU) & (detections.scores >= MIN_FALSE_POSITIVE_SCORE)
    if label is not None:
        hits &= detections.labels == label
    indices = torch.nonzero(hits)[:, 0].tolist()
    return max(indices, key=lambda index: float(detections.scores[index])) if indices else None


def _choose_unrelated(scene: ShortcutScene, confused: SceneObject, cue: SceneObject) -> SceneObject | None:
    """Choose an object of another kind at random, seeded by the scene."""
    excluded_names, excluded_kinds = {confused.name, cue.name}, {"body", "window", cue.kind}
    others = [item for item in scene.objects if item.name not in excluded_names and item.kind not in excluded_kinds]
    return random.Random(f"{scene.seed} {cue.name}").choice(others) if others else None


def _predict(adapter: Adapter, scenes: Sequence[ShortcutScene]) -> list[Detections]:
    return adapter.predict([scene.image for scene in scenes], batch_size=BATCH_SIZE) if scenes else []
