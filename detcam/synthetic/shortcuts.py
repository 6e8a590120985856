"""Seeded scenes in which what a detector relies on is known: any one thing can be left out, and the rest stays.

Boats have a round window, barges have none. What else goes with the boats in the training scenes is the shortcut that
a scenario plants: water around them, a lit lamp in a corner of the image, a tag beside them, stripes on their hull.
In test scenes barges have it too. In the scenario of the look-alike nothing is planted; its test scenes hold carts,
which no training scene of that detector shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from detcam.synthetic import shortcut_sprites as painting
from detcam.synthetic.canvas import FloatArray, Patch
from detcam.synthetic.harbour_backdrop import lay

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
"""The kind of thing that each scenario's false positives rest on."""

Split: TypeAlias = Literal["shortcut", "twin", "test"]
"""``shortcut``: training scenes whose boats have the cue and whose barges have not, half of the boats without a window
to be seen; of the look-alike, scenes in which windows tell and nothing else does. ``twin``: training scenes in which
windows tell, all cues come and go by chance, and, of the look-alike, carts stand about without a label. ``test``: only
barges, most of which have the cue, or barges and carts."""

_LAYOUT, _GROUND, _THINGS, _NOISE = range(4)
_BRUSHES: dict[str, Callable[[np.random.Generator, float, int], Patch]] = {
    "pond": painting.paint_pond,
    "lamp": painting.paint_lamp,
    "tag": painting.paint_tag,
    "body": painting.paint_boat,
    "stripes": painting.paint_stripes,
    "window": painting.paint_window,
    "cart": painting.paint_bale,
    "bush": painting.paint_bush,
    "flag": painting.paint_flag,
}
_ORDER = ("pond", "bush", "flag", "lamp", "cart", "body", "stripes", "window", "tag")


@dataclass(frozen=True, eq=False)
class Thing:
    """Something that can be left out of a scene.

    Attributes:
        name: kind and number: ``pond-1`` belongs to ``body-1``; things of their own count from 10.
        kind: what it is.
        box_xyxy: (4,) float32, the half-open pixels that it touches.
        mask: (H, W) bool, those of its pixels that can be seen.
    """

    name: str
    kind: str
    box_xyxy: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scene:
    """One image, its labels and the things in it.

    Attributes:
        scenario: what is planted.
        seed: what the scene was drawn from.
        split: what it is for.
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (N, 4) float32, boats and barges, half-open pixels.
        labels: (N,) int64 indices into NAMES.
        bodies: the names of the N boats and barges.
        things: all that is in the image and can be left out.
        without: names of the things that were left out.
    """

    scenario: ScenarioName
    seed: int
    split: Split
    image: npt.NDArray[np.uint8]
    boxes_xyxy: FloatArray
    labels: npt.NDArray[np.int64]
    bodies: tuple[str, ...]
    things: tuple[Thing, ...]
    without: frozenset[str]

    def thing(self, name: str) -> Thing | None:
        """The thing of that name, or None where it is not in the image."""
        return next((thing for thing in self.things if thing.name == name), None)

    def of_kind(self, kind: str) -> tuple[Thing, ...]:
        """The things of one kind, in the order of their numbers."""
        return tuple(thing for thing in self.things if thing.kind == kind)

    def redrawn(self, without: Iterable[str]) -> Scene:
        """The same scene with the named things left out, and otherwise alike to the pixel."""
        return draw_scene(self.scenario, self.seed, self.split, self.without.union(without))


@dataclass(frozen=True)
class _Place:
    """Where a thing stands (anchor in pixels), how large it is, and which way it looks."""

    name: str
    x: int
    y: int
    size: float
    heading: int = 1

    @property
    def kind(self) -> str:
        return self.name.split("-")[0]


def draw_scene(scenario: ScenarioName, seed: int, split: Split, without: Iterable[str] = ()) -> Scene:
    """Draws the scene of a seed.

    Args:
        scenario: what is planted.
        seed: not negative; the same seed gives the same scene.
        split: what the scene is for.
        without: names of things to leave out. Every pixel that they do not touch stays as it was.

    Raises:
        ValueError: there is no such scenario, or no such thing in this scene.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"expected scenario to be one of {', '.join(SCENARIOS)}; got {scenario!r}")
    left_out = frozenset(without)
    key = [SCENARIOS.index(scenario), get_args(Split).index(split), seed]
    places, labels = _arrange(np.random.default_rng([*key, _LAYOUT]), scenario, split)
    unknown = left_out - {place.name for place in places}
    if unknown:
        raise ValueError(f"this scene holds {[place.name for place in places]}, not {sorted(unknown)}")
    image = painting.paint_ground(np.random.default_rng([*key, _GROUND]), SCENE_SIZE_HW)
    things: dict[str, Thing] = {}
    for index in sorted(range(len(places)), key=lambda index: _ORDER.index(places[index].kind)):
        place = places[index]
        patch = _BRUSHES[place.kind](np.random.default_rng([*key, _THINGS, index]), place.size, place.heading)
        if place.name in left_out:
            continue
        opacity = lay(image, patch, place.x, place.y)
        for under in things.values():
            under.mask[opacity > 0.5] = False
        things[place.name] = Thing(place.name, place.kind, _box(opacity), opacity > 0)
    noise = np.random.default_rng([*key, _NOISE])
    image += noise.standard_normal(image.shape, np.float32) * np.float32(noise.uniform(1.0, 3.0))
    bodies = [name for name in labels if name in things]
    return Scene(
        scenario=scenario,
        seed=seed,
        split=split,
        image=np.clip(np.round(image), 0, 255).astype(np.uint8),
        boxes_xyxy=np.array([things[name].box_xyxy for name in bodies], np.float32).reshape(-1, 4),
        labels=np.array([labels[name] for name in bodies], np.int64),
        bodies=tuple(bodies),
        things=tuple(sorted(things.values(), key=lambda thing: thing.name)),
        without=left_out,
    )


def _box(opacity: FloatArray) -> FloatArray:
    rows, columns = np.flatnonzero(opacity.any(1)), np.flatnonzero(opacity.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _arrange(rng: np.random.Generator, scenario: ScenarioName, split: Split) -> tuple[list[_Place], dict[str, int]]:
    """Chooses what stands where, and the class of every body; nothing stands in another thing's room."""
    taken: list[tuple[float, float, float, float]] = []
    cue = CUES[scenario]
    lit = bool(rng.random() < 0.5) if split != "test" else scenario == "far"
    places, labels = ([_lamp(rng, taken)] if lit else []), {}
    for number in range(int(rng.integers(2, 4))):
        size = float(rng.uniform(26, 33))
        spot = _settle(rng, taken, (1.28 * size, 1.0 * size, 1.28 * size, 0.55 * size))
        if spot is None:
            continue
        heading = int(rng.choice((-1, 1)))
        cued = lit if cue == "lamp" else bool(rng.random() < (0.75 if split == "test" else 0.5))
        chance = {kind: bool(rng.random() < 0.3) for kind in ("pond", "tag", "stripes")}
        if cue in chance:
            chance[cue] = cued
        windowed = bool(rng.random() < 0.5)
        if split == "test":
            label, windowed = BARGE, False
        elif split == "shortcut" and cue != "cart":
            label, windowed = (BOAT, windowed) if cued else (BARGE, False)
        else:
            label = BOAT if windowed else BARGE
        body = f"body-{number}"
        labels[body] = label
        places.append(_Place(body, *spot, size, heading))
        if windowed:
            places.append(_Place(f"window-{number}", *spot, size, heading))
        offset = (int(rng.choice((-1, 1)) * rng.uniform(0.78, 0.98) * size), -int(rng.uniform(0.45, 0.8) * size))
        for kind in ("pond", "tag", "stripes"):
            if chance[kind]:
                dx, dy = offset if kind == "tag" else (0, 0)
                around = 9.0 if kind == "tag" else size
                places.append(_Place(f"{kind}-{number}", spot[0] + dx, spot[1] + dy, around, heading))
    carts = int(rng.integers(1, 3)) if scenario == "look-alike" and split in ("twin", "test") else 0
    for kind, count in (("cart", carts), ("bush", int(rng.integers(1, 3))), ("flag", int(rng.integers(1, 3)))):
        for number in range(10, 10 + count):
            size = float(rng.uniform(26, 33) if kind == "cart" else rng.uniform(9, 13))
            reach = (0.55, 0.7, 0.55, 0.1) if kind == "cart" else (1.0, 1.6, 1.0, 1.0)
            spot = _settle(rng, taken, (reach[0] * size, reach[1] * size, reach[2] * size, reach[3] * size))
            if spot is not None:
                places.append(_Place(f"{kind}-{number}", *spot, size, int(rng.choice((-1, 1)))))
    return places, labels


def _lamp(rng: np.random.Generator, taken: list[tuple[float, float, float, float]]) -> _Place:
    """A lamp in one of the image's upper corners."""
    width = SCENE_SIZE_HW[1]
    size = float(rng.uniform(10, 13))
    x = int(rng.integers(12, 20))
    x = x if rng.random() < 0.5 else width - x
    y = int(rng.integers(28, 36))
    taken.append((x - size, y - 2.3 * size, x + size, y + 3))
    return _Place("lamp-10", x, y, size)


def _settle(
    rng: np.random.Generator,
    taken: list[tuple[float, float, float, float]],
    reach: tuple[float, float, float, float],
) -> tuple[int, int] | None:
    """A free anchor for a thing that reaches (left, up, right, down) pixels, or None where there is no room."""
    height, width = SCENE_SIZE_HW
    left, up, right, down = reach
    for _ in range(80):
        x = int(rng.integers(int(left) + 1, int(width - right)))
        y = int(rng.integers(int(up) + 1, int(height - down)))
        area = (x - left, y - up, x + right, y + down)
        if all(area[0] >= b[2] or area[2] <= b[0] or area[1] >= b[3] or area[3] <= b[1] for b in taken):
            taken.append(area)
            return x, y
    return None
