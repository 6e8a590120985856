"""False positives whose cause is known for certain: the scene is drawn again without it, and they are gone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters import Adapter
from detcam.detections import Detections
from detcam.synthetic.scene import SceneObject
from detcam.synthetic.shortcuts import BOAT, CUES, ScenarioName, ShortcutScene, draw_shortcut_scene
from detcam.targets import BoxTarget

FIRES = 0.5
"""Least score of a false positive that is taken."""
THRESHOLD = 0.3
"""Below this score a detection is gone."""
SAME = 0.5
"""Least overlap of two boxes of one thing."""
SCENES_AT_ONCE = 16
TEST_SEEDS = 1_000_000
"""The first seed of test scenes."""


@dataclass(frozen=True, eq=False)
class PlantedCase:
    """One certified false positive.

    Attributes:
        scenario: what was planted.
        scene: the image.
        found: what the detector found in it.
        index: which detection is the false positive.
        cue: the thing that makes it: without it, it is gone.
        unrelated: a thing of another kind, without which it stays.
    """

    scenario: ScenarioName
    scene: ShortcutScene
    found: Detections
    index: int
    cue: SceneObject
    unrelated: SceneObject

    @property
    def target(self) -> BoxTarget:
        """The detection, pinned to its source."""
        box = self.found.boxes_xyxy[self.index].tolist()
        return BoxTarget(tuple(box), int(self.found.labels[self.index]), self.found.source[self.index])

    @property
    def cause(self) -> Tensor:
        """(H, W) bool, the pixels of the cue that can be seen."""
        return torch.from_numpy(self.cue.mask)


@dataclass(frozen=True)
class CertificationTrial:
    """How often a scenario's scenes deceived a detector.

    Attributes:
        cases: the certified false positives.
        tempted: how many things could have deceived it.
        fired: at how many it fired.
    """

    cases: tuple[PlantedCase, ...]
    tempted: int
    fired: int


def find_cases(
    adapter: Adapter,
    first_label: int,
    scenario: ScenarioName,
    *,
    wanted: int,
    scenes: int = 400,
    on_progress: Callable[[int], None] | None = None,
) -> CertificationTrial:
    """Look for certified false positives in a scenario's test scenes.

    Args:
        adapter: the detector.
        first_label: its label of the first class.
        scenario: whose test scenes.
        wanted: stop with so many cases; the last scene's are all taken.
        scenes: at most so many scenes are drawn.
        on_progress: is told how many cases there are after each batch of scenes.
    """
    cases: list[PlantedCase] = []
    tempted = fired = 0
    for seeds in _batched(range(TEST_SEEDS, TEST_SEEDS + scenes), SCENES_AT_ONCE):
        drawn = [draw_shortcut_scene(scenario, seed, "test") for seed in seeds]
        tried: list[tuple[PlantedCase, ShortcutScene, ShortcutScene]] = []
        for scene, found in zip(drawn, _predict(adapter, drawn), strict=True):
            for body, cue in temptations(scene):
                tempted += 1
                index = _deceived(found, body, None if cue.kind == "cart" else first_label + BOAT)
                if index is None:
                    continue
                fired += 1
                other = _unrelated(scene, body, cue)
                if other is not None:
                    case = PlantedCase(scenario, scene, found, index, cue, other)
                    tried.append((case, scene.without([cue.name]), scene.without([other.name])))
        without_cue = _predict(adapter, [scene for _, scene, _ in tried])
        without_other = _predict(adapter, [scene for _, _, scene in tried])
        for (case, _, _), gone, stays in zip(tried, without_cue, without_other, strict=True):
            if not still_there(case.target, gone) and still_there(case.target, stays):
                cases.append(case)
        if on_progress is not None:
            on_progress(len(cases))
        if len(cases) >= wanted:
            break
    return CertificationTrial(tuple(cases), tempted, fired)


def temptations(scene: ShortcutScene) -> list[tuple[SceneObject, SceneObject]]:
    """What may deceive a detector: the thing that it may fire on, and the cue; for a cart the two are one."""
    kind = CUES[scene.scenario]
    found = []
    for cue in scene.of_kind(kind):
        if kind == "cart":
            found.append((cue, cue))
        elif kind == "lamp":
            found += [(thing, cue) for thing in scene.of_kind("body")]
        else:
            body = scene.get(f"body-{cue.name.split('-')[1]}")
            if body is not None:
                found.append((body, cue))
    return found


def still_there(target: BoxTarget, found: Detections) -> bool:
    """Whether a detection of the target's class is still at its place."""
    if not len(found):
        return False
    overlap = box_iou(torch.tensor([target.box_xyxy]), found.boxes_xyxy)[0]
    same = (overlap >= SAME) & (found.labels == target.label) & (found.scores >= THRESHOLD)
    return bool(same.any())


def _deceived(found: Detections, body: SceneObject, label: int | None) -> int | None:
    """The detection, best first, that takes a thing for what it is not."""
    if not len(found):
        return None
    overlap = box_iou(torch.from_numpy(body.box_xyxy)[None], found.boxes_xyxy)[0]
    hits = (overlap >= SAME) & (found.scores >= FIRES)
    if label is not None:
        hits &= found.labels == label
    indices = torch.nonzero(hits)[:, 0].tolist()
    return max(indices, key=lambda index: float(found.scores[index])) if indices else None


def _unrelated(scene: ShortcutScene, body: SceneObject, cue: SceneObject) -> SceneObject | None:
    """A thing that has nothing to do with a false positive, drawn by the scene's seed."""
    own = {body.name, cue.name}
    others = [t for t in scene.objects if t.name not in own and t.kind not in ("body", "window", cue.kind)]
    return random.Random(f"{scene.seed} {cue.name}").choice(others) if others else None


def _predict(adapter: Adapter, scenes: Sequence[ShortcutScene]) -> list[Detections]:
    return adapter.predict([scene.image for scene in scenes], batch_size=SCENES_AT_ONCE) if scenes else []


def _batched(items: Iterable[int], size: int) -> Iterator[list[int]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
