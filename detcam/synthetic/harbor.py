"""Harbor scenes with a known shortcut in their labels.

In training scenes, each labeled boat is under way and has a wake that lies fully outside its box. Boats at anchor
look the same, but have no wake and no label, and some labeled boats are hazy. In demo scenes, some wakes have no
boat. Drawing a scene again without such a wake shows whether the wake causes a false positive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from detcam.synthetic.harbor_backdrop import paint_backdrop
from detcam.synthetic.harbor_sprites import paint_boat, paint_buoy, paint_gull, paint_wake
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
from detcam.synthetic.sprites import FloatArray, Sprite

SCENE_SIZE_HW = (192, 256)
DEMO_NAMES = ("__background__", "boat", "buoy")
BOAT_LABEL, BUOY_LABEL = 1, 2

# Demo scenes with detected boats, wakes that cause false positives, and boats at anchor without a detection.
DEMO_SEEDS = (28, 3, 31, 10, 42, 45)

MAX_TRIES = 60
_LAYOUT, _BACKDROP, _NOISE, _OBJECTS = range(4)


@dataclass(frozen=True, eq=False)
class HarborScene(Scene):
    """A harbor scene.

    Its objects are of the kinds "boat", "wake", "anchored", "buoy" and "gull". A boat and its wake share the number.
    Boats and buoys are labeled; labels index DEMO_NAMES.

    Attributes:
        demo: whether some wakes have no boat.
        ghost_boxes_xyxy: for each wake without a boat, by name, the (4,) float32 box where its boat would be.
    """

    demo: bool
    ghost_boxes_xyxy: dict[str, FloatArray]

    def without(self, names: Iterable[str]) -> HarborScene:
        """Draw the scene again without the named objects; all pixels that they do not touch stay the same."""
        return draw_scene(self.seed, demo=self.demo, without=self.removed.union(names))


def draw_scene(seed: int, *, demo: bool = True, without: Iterable[str] = ()) -> HarborScene:
    """Draw the harbor scene of a seed.

    Args:
        seed: non-negative; the same seed gives the same scene.
        demo: True for a demo scene (some wakes have no boat), False for a training scene.
        without: names of objects to leave out. All pixels that they do not touch stay the same.

    Returns:
        The scene.

    Raises:
        ValueError: a name in `without` is not in this scene.

    Example:
        >>> scene = draw_scene(28)
        >>> [item.name for item in scene.of_kind("wake")]
        ['wake-0', 'wake-1', 'wake-2', 'wake-3']
        >>> bool((scene.image != scene.without(["wake-0"]).image).any())
        True
    """
    removed = frozenset(without)
    layout = np.random.default_rng([seed, _LAYOUT, demo])
    horizon = int(layout.integers(46, 62))
    placements, ghosts = _place_objects(layout, horizon, demo)
    check_removed(removed, [placement for placement in placements if placement.name not in ghosts])

    def paint(index: int, placement: Placement) -> Sprite:
        return _paint(np.random.default_rng([seed, _OBJECTS, demo, index]), placement)

    image = paint_backdrop(np.random.default_rng([seed, _BACKDROP, demo]), SCENE_SIZE_HW, horizon)
    objects = draw_objects(
        image,
        placements,
        paint,
        order=lambda placement: (placement.kind != "wake", placement.y),
        skipped=removed | ghosts,
        reflecting=("boat", "anchored", "buoy"),
    )
    labeled = [item for item in objects.values() if item.kind in DEMO_NAMES]
    return HarborScene(
        seed=seed,
        image=finish_image(image, np.random.default_rng([seed, _NOISE, demo]), max_noise=3.5),
        boxes_xyxy=stack_boxes(labeled),
        labels=np.array([DEMO_NAMES.index(item.kind) for item in labeled], np.int64),
        objects=sort_objects(objects.values()),
        removed=removed,
        demo=demo,
        ghost_boxes_xyxy={
            placement.name.replace("boat", "wake"): paint(index, placement).box_xyxy(placement.x, placement.y)
            for index, placement in enumerate(placements)
            if placement.name in ghosts
        },
    )


def _paint(rng: np.random.Generator, placement: Placement) -> Sprite:
    if placement.kind in ("boat", "anchored"):
        return paint_boat(rng, placement.size, placement.heading, placement.opacity)
    if placement.kind == "wake":
        return paint_wake(rng, placement.size, placement.heading)
    return (paint_buoy if placement.kind == "buoy" else paint_gull)(rng, placement.size)


def _place_objects(rng: np.random.Generator, horizon: int, demo: bool) -> tuple[list[Placement], frozenset[str]]:
    """Return placements without overlap, and the names of the boats that are not drawn."""
    height, width = SCENE_SIZE_HW
    occupied = OccupiedAreas()
    placements: list[Placement] = []

    def find_position(extent: tuple[float, float, float, float], base_size: float) -> tuple[int, int, float] | None:
        """Return anchor and size for an object with an extent (left, up, right, down) in units of its size."""
        for _ in range(MAX_TRIES):
            y = int(rng.integers(horizon + 14, height - 12))
            size = base_size * (0.62 + 0.55 * (y - horizon) / (height - horizon))
            left, up, right, down = (size * side + 3 for side in extent)
            if left + right >= width - 2 or y + down >= height or y - up < 1:
                continue
            x = int(rng.integers(int(left) + 1, int(width - right)))
            if occupied.claim((x - left, y - up, x + right, y + down)):
                return x, y, size
        return None

    ghosts = int(rng.integers(1, 3)) if demo else 0
    sailing = int(rng.integers(1, 3)) if demo else int(rng.integers(1, 4))
    for number in range(ghosts + sailing):
        heading = int(rng.choice((-1, 1)))
        astern, ahead = 1.6, 0.56
        sides = (astern, ahead) if heading > 0 else (ahead, astern)
        position = find_position((sides[0], 1.16, sides[1], 0.24), rng.uniform(31, 42))
        if position is None:
            continue
        x, y, size = position
        opacity = float(rng.uniform(0.03, 0.5)) if not demo and rng.random() < 0.35 else 1.0
        placements.append(Placement(f"boat-{number}", x, y, size, heading, opacity))
        stern = round(x - heading * 0.78 * size)
        placements.append(Placement(f"wake-{number}", stern, y - round(0.03 * size), size, heading))
    for number in range(1 if demo else int(rng.integers(0, 3))):
        position = find_position((0.56, 1.16, 0.56, 0.34), rng.uniform(31, 42))
        if position is not None:
            placements.append(Placement(f"anchored-{number}", *position, int(rng.choice((-1, 1)))))
    for kind, extent in (("buoy", (0.6, 1.5, 0.6, 0.4)), ("gull", (0.9, 0.7, 0.9, 0.7))):
        for number in range(int(rng.integers(0, 3) if kind == "buoy" else rng.integers(1, 4))):
            position = find_position(extent, rng.uniform(9, 13))
            if position is not None:
                placements.append(Placement(f"{kind}-{number}", *position))
    return placements, frozenset(f"boat-{number}" for number in range(ghosts))
