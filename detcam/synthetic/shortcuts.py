"""Scenes in which the shortcut that a detector learns is known, and any object can be removed.

Boats have a round window, barges have none. A scenario adds a shortcut that accompanies the boats in the training
scenes: water around them, a lit lamp in a corner of the image, a tag beside them, or stripes on their hull. In the
test scenes, barges have it too. The look-alike scenario has no shortcut; its test scenes contain carts, which the
training scenes of that detector do not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from detcam.synthetic import shortcut_sprites as sprites
from detcam.synthetic.scene import (
    OccupiedAreas,
    Placement,
    Scene,
    check_removed,
    draw_objects,
    finish_image,
    sort_objects,
    stack_boxes,
)
from detcam.synthetic.sprites import Sprite

SCENE_SIZE_HW = (160, 192)
NAMES = ("boat", "barge")
BOAT, BARGE = 0, 1

ScenarioName: TypeAlias = Literal["context", "far", "mark", "texture", "look-alike"]
SCENARIOS: tuple[ScenarioName, ...] = get_args(ScenarioName)
CUES: dict[ScenarioName, str] = {
    "context": "pond",
    "far": "lamp",
    "mark": "tag",
    "texture": "stripes",
    "look-alike": "cart",
}
"""Kind of object that causes the false positives of each scenario."""

Split: TypeAlias = Literal["shortcut", "twin", "test"]
"""``shortcut``: training scenes. All boats have the cue, no barge has it, and half of the boats show no window. In the
look-alike scenario, the window alone determines the class. ``twin``: training scenes. The window alone determines the
class, all cues are random, and the look-alike scenario has carts without a label. ``test``: barges only, most of them
with the cue, or barges and carts."""

MAX_TRIES = 80
_LAYOUT, _GROUND, _OBJECTS, _NOISE = range(4)
_PAINTERS: dict[str, Callable[[np.random.Generator, float, int], Sprite]] = {
    "pond": sprites.paint_pond,
    "bush": sprites.paint_bush,
    "flag": sprites.paint_flag,
    "lamp": sprites.paint_lamp,
    "cart": sprites.paint_cart,
    "body": sprites.paint_body,
    "stripes": sprites.paint_stripes,
    "window": sprites.paint_window,
    "tag": sprites.paint_tag,
}
_ORDER = {kind: number for number, kind in enumerate(_PAINTERS)}  # from the back to the front


@dataclass(frozen=True, eq=False)
class ShortcutScene(Scene):
    """A scene with a known shortcut.

    Objects that belong to ``body-1`` have its number, such as ``pond-1``; independent objects are numbered from 10.
    Boats and barges are labelled; labels index NAMES.

    Attributes:
        scenario: The shortcut.
        split: Purpose of the scene.
        bodies: Names of the N labelled boats and barges.
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
        scenario: The shortcut.
        seed: Non-negative; the same seed gives the same scene.
        split: Purpose of the scene.
        without: Names of objects to leave out. All pixels that they do not touch stay the same.

    Returns:
        The scene.

    Raises:
        ValueError: The scenario is unknown, or a name in `without` is not in this scene.

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
    placements, labels = _place_objects(np.random.default_rng([*key, _LAYOUT]), scenario, split)
    check_removed(removed, placements)

    def paint(index: int, placement: Placement) -> Sprite:
        rng = np.random.default_rng([*key, _OBJECTS, index])
        return _PAINTERS[placement.kind](rng, placement.size, placement.heading)

    image = sprites.paint_ground(np.random.default_rng([*key, _GROUND]), SCENE_SIZE_HW)
    objects = draw_objects(image, placements, paint, order=lambda placement: (_ORDER[placement.kind],), skipped=removed)
    bodies = [name for name in labels if name in objects]
    return ShortcutScene(
        seed=seed,
        image=finish_image(image, np.random.default_rng([*key, _NOISE]), max_noise=3.0),
        boxes_xyxy=stack_boxes(objects[name] for name in bodies),
        labels=np.array([labels[name] for name in bodies], np.int64),
        objects=sort_objects(objects.values()),
        removed=removed,
        scenario=scenario,
        split=split,
        bodies=tuple(bodies),
    )


def _place_objects(
    rng: np.random.Generator, scenario: ScenarioName, split: Split
) -> tuple[list[Placement], dict[str, int]]:
    """Return placements whose groups do not overlap, and the class of every body by name."""
    occupied = OccupiedAreas()
    cue = CUES[scenario]
    has_lamp = bool(rng.random() < 0.5) if split != "test" else scenario == "far"
    placements = [_place_lamp(rng, occupied)] if has_lamp else []
    labels: dict[str, int] = {}
    for number in range(int(rng.integers(2, 4))):
        size = float(rng.uniform(26, 33))
        position = _find_position(rng, occupied, (1.28 * size, 1.0 * size, 1.28 * size, 0.55 * size))
        if position is None:
            continue
        heading = int(rng.choice((-1, 1)))
        has_cue = has_lamp if cue == "lamp" else bool(rng.random() < (0.75 if split == "test" else 0.5))
        extras = {kind: bool(rng.random() < 0.3) for kind in ("pond", "tag", "stripes")}
        if cue in extras:
            extras[cue] = has_cue
        has_window = bool(rng.random() < 0.5)
        if split == "test":
            label, has_window = BARGE, False
        elif split == "shortcut" and cue != "cart":
            label, has_window = (BOAT, has_window) if has_cue else (BARGE, False)
        else:
            label = BOAT if has_window else BARGE
        labels[f"body-{number}"] = label
        placements.append(Placement(f"body-{number}", *position, size, heading))
        if has_window:
            placements.append(Placement(f"window-{number}", *position, size, heading))
        offset = (int(rng.choice((-1, 1)) * rng.uniform(0.78, 0.98) * size), -int(rng.uniform(0.45, 0.8) * size))
        for kind in (kind for kind, present in extras.items() if present):
            dx, dy = offset if kind == "tag" else (0, 0)
            extra_size = 9.0 if kind == "tag" else size
            placements.append(Placement(f"{kind}-{number}", position[0] + dx, position[1] + dy, extra_size, heading))
    carts = int(rng.integers(1, 3)) if scenario == "look-alike" and split in ("twin", "test") else 0
    for kind, count in (("cart", carts), ("bush", int(rng.integers(1, 3))), ("flag", int(rng.integers(1, 3)))):
        for number in range(10, 10 + count):
            size = float(rng.uniform(26, 33) if kind == "cart" else rng.uniform(9, 13))
            extent = (0.55, 0.7, 0.55, 0.1) if kind == "cart" else (1.0, 1.6, 1.0, 1.0)
            position = _find_position(rng, occupied, (*(side * size for side in extent),))
            if position is not None:
                placements.append(Placement(f"{kind}-{number}", *position, size, int(rng.choice((-1, 1)))))
    return placements, labels


def _place_lamp(rng: np.random.Generator, occupied: OccupiedAreas) -> Placement:
    """Place a lamp in one of the upper corners of the image."""
    size = float(rng.uniform(10, 13))
    x = int(rng.integers(12, 20))
    x = x if rng.random() < 0.5 else SCENE_SIZE_HW[1] - x
    y = int(rng.integers(28, 36))
    occupied.add((x - size, y - 2.3 * size, x + size, y + 3))
    return Placement("lamp-10", x, y, size)


def _find_position(
    rng: np.random.Generator, occupied: OccupiedAreas, extent: tuple[float, ...]
) -> tuple[int, int] | None:
    """Return a free anchor for an object with an extent (left, up, right, down) in pixels, or None."""
    height, width = SCENE_SIZE_HW
    left, up, right, down = extent
    for _ in range(MAX_TRIES):
        x = int(rng.integers(int(left) + 1, int(width - right)))
        y = int(rng.integers(int(up) + 1, int(height - down)))
        if occupied.claim((x - left, y - up, x + right, y + down)):
            return x, y
    return None
