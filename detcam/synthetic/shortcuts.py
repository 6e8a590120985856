"""Scenes in which the shortcut that a detector learns is known, and any object can be removed.

Boats have a round window, barges have none. A scenario adds a shortcut that accompanies the boats in the training
scenes: water around them, a lit lamp in a corner of the image, a tag beside them, or stripes on their hull. In the
test scenes, barges have it too. The look-alike scenario has no shortcut; its test scenes contain carts, which the
training scenes of that detector do not show. Further scenarios have two cues that act together or replace one another,
cues without an edge, of many colors or very small, and cues with other effects: objects that are missed, boxes and
masks that reach too far, duplicates, and neighbors so close that non-maximum suppression keeps one of two objects.
`SHORTCUTS` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from detcam.synthetic import shortcut_sprites as sprites
from detcam.synthetic.scene import (
    Placement,
    Scene,
    SceneObject,
    check_removed,
    draw_objects,
    finish_image,
    sort_objects,
)
from detcam.synthetic.shortcut_layouts import place_objects
from detcam.synthetic.shortcut_scenarios import SCENARIOS, SCENE_SIZE_HW, SHORTCUTS, ScenarioName, Split
from detcam.synthetic.sprites import FloatArray, Sprite

_LAYOUT, _GROUND, _OBJECTS, _NOISE = range(4)
_PAINTERS: dict[str, Callable[[np.random.Generator, float, int], Sprite]] = {
    "light": sprites.paint_light,
    "pond": sprites.paint_pond,
    "flowers": sprites.paint_flowers,
    "bush": sprites.paint_bush,
    "flag": sprites.paint_flag,
    "lamp": sprites.paint_lamp,
    "cart": sprites.paint_cart,
    "body": sprites.paint_body,
    "stripes": sprites.paint_stripes,
    "window": sprites.paint_window,
    "tag": sprites.paint_tag,
    "buoy": sprites.paint_round_buoy,
    "dot": sprites.paint_tag,
    "neighbor": sprites.paint_body,
}
_ORDER = {kind: number for number, kind in enumerate(_PAINTERS)}  # from the back to the front
CABIN_XYXY = (0.18, 0.0, 0.82, 0.5)
"""Box of a duplicate, as shares of the width and height of the body's box. Their IoU is 0.32, so that non-maximum
suppression keeps both."""


@dataclass(frozen=True, eq=False)
class ShortcutScene(Scene):
    """A scene with a known shortcut.

    Objects that belong to ``body-1`` have its number, such as ``pond-1``; independent objects are numbered from 10.
    Boats and barges are labeled; labels index NAMES. In the training scenes of some scenarios, boxes are wrong or
    missing where the cue is: that is what the detector learns.

    Attributes:
        scenario: the shortcut.
        split: purpose of the scene.
        bodies: names of the boats and barges of the N boxes.
    """

    scenario: ScenarioName
    split: Split
    bodies: tuple[str, ...]

    def without(self, names: Iterable[str]) -> ShortcutScene:
        """Draw the scene again without the named objects; all pixels that they do not touch stay the same."""
        return draw_shortcut_scene(self.scenario, self.seed, self.split, self.removed.union(names))


def draw_shortcut_scene(scenario: ScenarioName, seed: int, split: Split, without: Iterable[str] = ()) -> ShortcutScene:
    """Draw the scene of a seed.

    Args:
        scenario: the shortcut.
        seed: non-negative; the same seed gives the same scene.
        split: purpose of the scene.
        without: names of objects to leave out. All pixels that they do not touch stay the same.

    Returns:
        The scene.

    Raises:
        ValueError: the scenario is unknown, or a name in `without` is not in this scene.

    Example:
        >>> scene = draw_shortcut_scene("context", 0, "test")
        >>> [item.name for item in scene.of_kind("pond")]
        ['pond-0', 'pond-1', 'pond-2']
        >>> scene.without(["pond-1"]).get("pond-1") is None
        True
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"expected scenario to be one of {', '.join(SCENARIOS)}; got {scenario!r}")
    removed = frozenset(without)
    key = [SCENARIOS.index(scenario), get_args(Split).index(split), seed]
    placements, labels = place_objects(np.random.default_rng([*key, _LAYOUT]), scenario, split)
    check_removed(removed, placements)

    def paint(index: int, placement: Placement) -> Sprite:
        rng = np.random.default_rng([*key, _OBJECTS, index])
        return _PAINTERS[placement.kind](rng, placement.size, placement.heading)

    paint_ground = sprites.paint_natural_ground if SHORTCUTS[scenario].natural else sprites.paint_ground
    image = paint_ground(np.random.default_rng([*key, _GROUND]), SCENE_SIZE_HW)
    objects = draw_objects(image, placements, paint, order=lambda placement: (_ORDER[placement.kind],), skipped=removed)
    boxes = [
        (name, box)
        for name in labels
        if name in objects
        for box in (_training_boxes(scenario, objects, name) if split == "shortcut" else [objects[name].box_xyxy])
    ]
    return ShortcutScene(
        seed=seed,
        image=finish_image(image, np.random.default_rng([*key, _NOISE]), max_noise=3.0),
        boxes_xyxy=np.array([box for _, box in boxes], np.float32).reshape(-1, 4),
        labels=np.array([labels[name] for name, _ in boxes], np.int64),
        objects=sort_objects(objects.values()),
        removed=removed,
        scenario=scenario,
        split=split,
        bodies=tuple(name for name, _ in boxes),
    )


def _training_boxes(scenario: ScenarioName, objects: Mapping[str, SceneObject], body: str) -> list[FloatArray]:
    """The boxes of a body in a training scene: enlarged or doubled if its cue has that effect."""
    box = objects[body].box_xyxy
    shortcut = SHORTCUTS[scenario]
    cues = [objects.get(f"{kind}-{body.split('-')[1]}") for kind in shortcut.cues]
    boxes = [cue.box_xyxy for cue in cues if cue is not None]
    if not boxes or shortcut.effect not in ("edges", "duplicate"):
        return [box]
    if shortcut.effect == "edges":
        corners = np.stack([box, *boxes])
        return [np.concatenate([corners[:, :2].min(0), corners[:, 2:].max(0)])]
    return [box, cabin_box(box)]


def cabin_box(box_xyxy: FloatArray) -> FloatArray:
    """The part (4,) of a body's box where a duplicate appears."""
    start, size = np.tile(box_xyxy[:2], 2), np.tile(box_xyxy[2:] - box_xyxy[:2], 2)
    return (start + size * np.array(CABIN_XYXY, np.float32)).astype(np.float32)
