"""Seeded harbour scenes whose labels hide a shortcut, and the same scenes with any one thing taken away.

In training scenes each labelled boat is under way and trails a wake that lies fully outside its box; boats
at anchor look alike, have no wake and no label; some labelled boats are lost in the haze. In demo scenes some
wakes have no boat. What made a detector fire on one is then known for certain: draw the scene again without
that wake.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detcam.synthetic.canvas import FloatArray, Patch, mirrored, paint_boat, paint_buoy, paint_gull, paint_wake
from detcam.synthetic.harbour_backdrop import lay, paint_backdrop

SCENE_SIZE_HW = (192, 256)
DEMO_NAMES = ("__background__", "boat", "buoy")
BOAT_LABEL, BUOY_LABEL = 1, 2

# Demo scenes that show the whole story: boats found, wakes mistaken for boats, boats at anchor passed over.
DEMO_SEEDS = (28, 3, 31, 10, 42, 45)

_LAYOUT, _BACKDROP, _NOISE, _THINGS = range(4)


@dataclass(frozen=True, eq=False)
class Thing:
    """Something that can be taken out of a scene.

    Attributes:
        name: Kind and number, such as "wake-1"; a boat and its wake share the number.
        kind: "boat", "wake", "anchored", "buoy" or "gull".
        box_xyxy: (4,) float32, the half-open pixels that the thing itself touches, without its reflection.
        mask: (H, W) bool, the same pixels one by one.
    """

    name: str
    kind: str
    box_xyxy: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scene:
    """One image with its labels and the things in it.

    Attributes:
        seed: What the scene was drawn from.
        demo: Whether wakes without boats were drawn.
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (N, 4) float32, labelled boats and buoys, half-open pixels.
        labels: (N,) int64 indices into DEMO_NAMES.
        things: Everything that can be taken away and is in the image.
        ghost_boxes_xyxy: By name of each wake without a boat, the (4,) float32 box where its boat would be.
        without: Names of the things that were left out of this drawing.
    """

    seed: int
    demo: bool
    image: npt.NDArray[np.uint8]
    boxes_xyxy: FloatArray
    labels: npt.NDArray[np.int64]
    things: tuple[Thing, ...]
    ghost_boxes_xyxy: dict[str, FloatArray]
    without: frozenset[str]

    def thing(self, name: str) -> Thing:
        """Returns the thing of that name.

        Raises:
            ValueError: Nothing of that name is in the image.
        """
        for thing in self.things:
            if thing.name == name:
                return thing
        raise ValueError(f"this scene holds {[thing.name for thing in self.things]}, not {name!r}")

    def of_kind(self, kind: str) -> tuple[Thing, ...]:
        """Returns the things of one kind, in the order of their numbers."""
        return tuple(thing for thing in self.things if thing.kind == kind)

    def redrawn(self, without: Iterable[str]) -> Scene:
        """Returns the same scene with the named things left out, and otherwise alike to the pixel."""
        return draw_scene(self.seed, demo=self.demo, without=self.without.union(without))


@dataclass(frozen=True)
class _Place:
    """Where a thing stands (anchor in pixels), how large it is, and how it is drawn."""

    name: str
    kind: str
    x: int
    y: int
    size: float
    heading: int = 1
    opacity: float = 1.0
    present: bool = True


def draw_scene(seed: int, *, demo: bool = True, without: Iterable[str] = ()) -> Scene:
    """Draws the harbour scene of a seed.

    Args:
        seed: Non-negative; the same seed gives the same scene.
        demo: True for a demo scene (some wakes have no boat), False for a training scene.
        without: Names of things to leave out. Every pixel they do not touch stays as it was.

    Raises:
        ValueError: A name in `without` is not in this scene.
    """
    left_out = frozenset(without)
    layout = np.random.default_rng([seed, _LAYOUT, demo])
    horizon = int(layout.integers(46, 62))
    places = _arrange(layout, horizon, demo)
    unknown = left_out - {place.name for place in places if place.present}
    if unknown:
        names = [place.name for place in places if place.present]
        raise ValueError(f"scene {seed} (demo={demo}) holds {names}, not {sorted(unknown)}")

    image = paint_backdrop(np.random.default_rng([seed, _BACKDROP, demo]), SCENE_SIZE_HW, horizon)
    things: list[Thing] = []
    ghosts: dict[str, FloatArray] = {}
    order = sorted(range(len(places)), key=lambda index: (places[index].kind != "wake", places[index].y))
    for index in order:
        place = places[index]
        patch = _paint(np.random.default_rng([seed, _THINGS, demo, index]), place)
        if not place.present:
            ghosts[place.name.replace("boat", "wake")] = _box(patch, place)
        elif place.name not in left_out:
            if place.kind in ("boat", "anchored", "buoy"):
                lay(image, mirrored(patch), place.x, place.y)
            mask = lay(image, patch, place.x, place.y) > 0
            things.append(Thing(place.name, place.kind, _box(patch, place), mask))

    noise = np.random.default_rng([seed, _NOISE, demo])
    image += noise.standard_normal(image.shape, np.float32) * np.float32(noise.uniform(1.0, 3.5))
    labelled = [thing for thing in things if thing.kind in ("boat", "buoy")]
    return Scene(
        seed=seed,
        demo=demo,
        image=np.clip(np.round(image), 0, 255).astype(np.uint8),
        boxes_xyxy=np.array([thing.box_xyxy for thing in labelled], np.float32).reshape(-1, 4),
        labels=np.array([DEMO_NAMES.index(thing.kind) for thing in labelled], np.int64),
        things=tuple(sorted(things, key=lambda thing: thing.name)),
        ghost_boxes_xyxy=ghosts,
        without=left_out,
    )


def _box(patch: Patch, place: _Place) -> FloatArray:
    left, top = place.x + patch.left, place.y + patch.top
    height, width = patch.opacity.shape
    return np.array([left, top, left + width, top + height], np.float32)


def _paint(rng: np.random.Generator, place: _Place) -> Patch:
    if place.kind in ("boat", "anchored"):
        return paint_boat(rng, place.size, place.heading, place.opacity)
    if place.kind == "wake":
        return paint_wake(rng, place.size, place.heading)
    return paint_buoy(rng, place.size) if place.kind == "buoy" else paint_gull(rng, place.size)


def _arrange(rng: np.random.Generator, horizon: int, demo: bool) -> list[_Place]:
    """Chooses what stands where; nothing on the water overlaps anything else."""
    height, width = SCENE_SIZE_HW
    taken: list[tuple[float, float, float, float]] = []
    places: list[_Place] = []

    def settle(reach: tuple[float, float, float, float], base: float) -> tuple[int, int, float] | None:
        """Finds a free anchor for a thing that reaches (left, up, right, down), in units of its size."""
        for _ in range(60):
            y = int(rng.integers(horizon + 14, height - 12))
            size = base * (0.62 + 0.55 * (y - horizon) / (height - horizon))
            left, up, right, down = (size * side + 3 for side in reach)
            if left + right >= width - 2 or y + down >= height or y - up < 1:
                continue
            x = int(rng.integers(int(left) + 1, int(width - right)))
            area = (x - left, y - up, x + right, y + down)
            if all(area[0] >= b[2] or area[2] <= b[0] or area[1] >= b[3] or area[3] <= b[1] for b in taken):
                taken.append(area)
                return x, y, size
        return None

    ghosts = int(rng.integers(1, 3)) if demo else 0
    sailing = int(rng.integers(1, 3)) if demo else int(rng.integers(1, 4))
    for number in range(ghosts + sailing):
        heading = int(rng.choice((-1, 1)))
        astern, ahead = 1.6, 0.56
        sides = (astern, ahead) if heading > 0 else (ahead, astern)
        spot = settle((sides[0], 1.16, sides[1], 0.24), rng.uniform(31, 42))
        if spot is None:
            continue
        x, y, size = spot
        haze = float(rng.uniform(0.03, 0.5)) if not demo and rng.random() < 0.35 else 1.0
        places.append(_Place(f"boat-{number}", "boat", x, y, size, heading, haze, present=number >= ghosts))
        stern = round(x - heading * 0.78 * size)
        places.append(_Place(f"wake-{number}", "wake", stern, y - round(0.03 * size), size, heading))
    for number in range(1 if demo else int(rng.integers(0, 3))):
        spot = settle((0.56, 1.16, 0.56, 0.34), rng.uniform(31, 42))
        if spot is not None:
            places.append(_Place(f"anchored-{number}", "anchored", *spot, int(rng.choice((-1, 1)))))
    for number in range(int(rng.integers(0, 3))):
        spot = settle((0.6, 1.5, 0.6, 0.4), rng.uniform(9, 13))
        if spot is not None:
            places.append(_Place(f"buoy-{number}", "buoy", *spot))
    for number in range(int(rng.integers(1, 4))):
        spot = settle((0.9, 0.7, 0.9, 0.7), rng.uniform(9, 13))
        if spot is not None:
            places.append(_Place(f"gull-{number}", "gull", *spot))
    return places
