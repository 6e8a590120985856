"""Certification: an error counts as a case if it vanishes in a copy of its scene without the cause."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from detcam.adapters import Adapter
from detcam.benchmarking.planted.cases import FIRST_SEEDS, PlantedCase, SeedSet
from detcam.benchmarking.planted.planted_errors import error_persists, find_error, has_candidate, is_semantic
from detcam.benchmarking.planted.semantic import classify_bodies
from detcam.detections import Detections
from detcam.synthetic.scene import SceneObject
from detcam.synthetic.shortcut_scenarios import SHORTCUTS, ScenarioName
from detcam.synthetic.shortcuts import ShortcutScene, draw_shortcut_scene
from detcam.utils.batching import batches

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
    persist without an unrelated object. An error that an absence causes has to vanish with the cue. An object that
    non-maximum suppression removes needs a candidate before it.

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
            found = find_error(adapter, scene, body, cues, detections, first_label)
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
    certified = [
        case
        for case, group in zip(candidates, copies, strict=True)
        if [error_persists(case, scene, next(predictions)) for scene, _ in group] == [expected for _, expected in group]
    ]
    return [
        case for case in certified if SHORTCUTS[case.scenario].effect != "suppressed" or has_candidate(adapter, case)
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


def _choose_unrelated(scene: ShortcutScene, confused: SceneObject, cues: Sequence[SceneObject]) -> SceneObject | None:
    """Choose an object of another kind at random, seeded by the scene."""
    excluded_names = {confused.name, *(cue.name for cue in cues)}
    excluded_kinds = {"body", "window", *(cue.kind for cue in cues)}
    others = [item for item in scene.objects if item.name not in excluded_names and item.kind not in excluded_kinds]
    return random.Random(f"{scene.seed} {cues[0].name}").choice(others) if others else None


def predict_scenes(adapter: Adapter, scenes: Sequence[ShortcutScene]) -> list[Detections]:
    """Predict each scene; one that occurs several times is predicted once."""
    unique = {id(scene): scene for scene in scenes}
    if not unique:
        return []
    if is_semantic(adapter):
        predictions = classify_bodies(adapter, list(unique.values()), BATCH_SIZE)
    else:
        predictions = adapter.predict([scene.image for scene in unique.values()], batch_size=BATCH_SIZE)
    by_scene = dict(zip(unique, predictions, strict=True))
    return [by_scene[id(scene)] for scene in scenes]
