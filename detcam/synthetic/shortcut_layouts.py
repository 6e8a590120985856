"""The positions of the objects of a shortcut scene, and the labels of its boats and barges."""

from __future__ import annotations

import numpy as np

from detcam.synthetic.scene import OccupiedAreas, Placement
from detcam.synthetic.shortcut_scenarios import (
    BARGE,
    BOAT,
    FIRST_SCENARIOS,
    SCENE_SIZE_HW,
    SHORTCUTS,
    Scenario,
    ScenarioName,
    Split,
)

MAX_TRIES = 80
BODY_EXTENT = (1.28, 1.0, 1.28, 0.55)
"""Free space around a body to the left, above, to the right and below, as shares of its size."""
BESIDE_SIZES = {"tag": 9.0, "buoy": 9.0, "dot": 6.0}
"""Sizes in pixels of the objects beside a body."""
RISE, FAR_RISE = (0.3, 0.8), (0.62, 0.88)
"""Heights of the objects beside a body above its waterline, as shares of its size; the higher ones double its box."""
NEIGHBOR_SHIFT = (0.23, 0.3)
"""Distance of a neighbor from its body, as shares of its size: their boxes have an IoU of 0.4 to 0.6."""
EXTRAS = ("pond", "tag", "stripes")
"""Objects that accompany bodies by chance."""

Layout = tuple[list[Placement], dict[str, int]]
"""Placements whose groups do not overlap, and the class of every body by name."""


def place_objects(rng: np.random.Generator, scenario: ScenarioName, split: Split) -> Layout:
    """Place the objects of a scene and label its bodies."""
    if scenario in FIRST_SCENARIOS:
        return _place_first(rng, scenario, split)
    return _place_later(rng, SHORTCUTS[scenario], split)


def _place_first(rng: np.random.Generator, scenario: ScenarioName, split: Split) -> Layout:
    occupied = OccupiedAreas()
    (cue,) = SHORTCUTS[scenario].cues
    has_lamp = bool(rng.random() < 0.5) if split != "test" else scenario == "far"
    placements = [_place_lamp(rng, occupied)] if has_lamp else []
    labels: dict[str, int] = {}
    for number in range(int(rng.integers(2, 4))):
        size = float(rng.uniform(26, 33))
        position = _find_position(rng, occupied, scaled(BODY_EXTENT, size))
        if position is None:
            continue
        heading = int(rng.choice((-1, 1)))
        has_cue = has_lamp if cue == "lamp" else bool(rng.random() < (0.75 if split == "test" else 0.5))
        extras = {kind: bool(rng.random() < 0.3) for kind in EXTRAS}
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
            extra_size = BESIDE_SIZES.get(kind, size)
            placements.append(Placement(f"{kind}-{number}", position[0] + dx, position[1] + dy, extra_size, heading))
    carts = int(rng.integers(1, 3)) if scenario == "look-alike" and split in ("twin", "test") else 0
    placements += _place_separate(rng, occupied, carts)
    return placements, labels


def _place_later(rng: np.random.Generator, shortcut: Scenario, split: Split) -> Layout:
    """Place objects whose cues act together, replace one another, or have another effect than a class."""
    occupied = OccupiedAreas()
    placements: list[Placement] = []
    labels: dict[str, int] = {}
    shared: tuple[str, ...] = ()
    if shortcut.is_shared and (split == "test" or rng.random() < 0.5):
        (kind,) = shared = shortcut.cues
        size = float(rng.uniform(10, 13))
        position = _find_position(rng, occupied, scaled((1.0, 2.3, 1.0, 0.3), size))
        if position is None:
            shared = ()
        else:
            placements.append(Placement(f"{kind}-10", *position, size))
    for number in range(int(rng.integers(2, 4))):
        size = float(rng.uniform(26, 33))
        position = _find_position(rng, occupied, scaled(BODY_EXTENT, size))
        if position is None:
            continue
        heading = int(rng.choice((-1, 1)))
        cues = shared if shortcut.is_shared else _choose_cues(rng, shortcut, split)
        has_window = bool(rng.random() < 0.5)
        is_active = _is_active(shortcut, cues)
        if shortcut.effect == "class" and split == "shortcut":
            label, has_window = (BOAT, has_window) if is_active else (BARGE, False)
        elif (shortcut.effect == "class" and split == "test") or "neighbor" in cues:  # it would hide the window
            label, has_window = BARGE, False
        else:
            label = BOAT if has_window else BARGE
        body = f"body-{number}"
        if not (shortcut.effect == "miss" and split == "shortcut" and is_active):
            labels[body] = label
        if "neighbor" in cues:
            labels[f"neighbor-{number}"] = BARGE
        kinds = ["body", *(["window"] if has_window else []), *(() if shortcut.is_shared else cues)]
        kinds += [kind for kind in EXTRAS if kind not in shortcut.cues and rng.random() < 0.15]
        side = int(rng.choice((-1, 1)))
        for kind in kinds:
            dx = dy = 0
            if kind in BESIDE_SIZES:
                rise = FAR_RISE if shortcut.effect == "edges" else RISE
                dx, dy = int(side * rng.uniform(0.78, 0.98) * size), -int(rng.uniform(*rise) * size)
                side = -side  # the next one goes to the other side
            if kind == "neighbor":
                dx, dy = round(side * rng.uniform(*NEIGHBOR_SHIFT) * size), round(rng.uniform(0.04, 0.1) * size)
            extra_size = BESIDE_SIZES.get(kind, size)
            placements.append(Placement(f"{kind}-{number}", position[0] + dx, position[1] + dy, extra_size, heading))
    return placements + _place_separate(rng, occupied, 0), labels


def _choose_cues(rng: np.random.Generator, shortcut: Scenario, split: Split) -> tuple[str, ...]:
    """Choose the cues of a body: half of the training bodies, and most of the test bodies, are affected."""
    cues = shortcut.cues
    if shortcut.is_absence:  # a test scene shows the cue; the case is the scene without it
        return cues if rng.random() < (0.75 if split == "test" else 0.5) else ()
    if split == "test":
        return cues if rng.random() < 0.75 else ()
    if len(cues) == 1:
        return cues if rng.random() < 0.5 else ()
    usual, other = (cues, ()) if shortcut.needs_all else ((), cues)
    if rng.random() < 0.5:
        return usual
    return (other, cues[:1], cues[1:])[int(rng.integers(3))]


def _is_active(shortcut: Scenario, cues: tuple[str, ...]) -> bool:
    """Whether the cues that are present have their effect."""
    present = [kind in cues for kind in shortcut.cues]
    return (all(present) if shortcut.needs_all else any(present)) != shortcut.is_absence


def _place_separate(rng: np.random.Generator, occupied: OccupiedAreas, carts: int) -> list[Placement]:
    """Place carts, bushes and flags."""
    placements = []
    for kind, count in (("cart", carts), ("bush", int(rng.integers(1, 3))), ("flag", int(rng.integers(1, 3)))):
        for number in range(10, 10 + count):
            size = float(rng.uniform(26, 33) if kind == "cart" else rng.uniform(9, 13))
            extent = (0.55, 0.7, 0.55, 0.1) if kind == "cart" else (1.0, 1.6, 1.0, 1.0)
            position = _find_position(rng, occupied, scaled(extent, size))
            if position is not None:
                placements.append(Placement(f"{kind}-{number}", *position, size, int(rng.choice((-1, 1)))))
    return placements


def _place_lamp(rng: np.random.Generator, occupied: OccupiedAreas) -> Placement:
    """Place a lamp in one of the upper corners of the image."""
    size = float(rng.uniform(10, 13))
    x = int(rng.integers(12, 20))
    x = x if rng.random() < 0.5 else SCENE_SIZE_HW[1] - x
    y = int(rng.integers(28, 36))
    occupied.add((x - size, y - 2.3 * size, x + size, y + 3))
    return Placement("lamp-10", x, y, size)


def scaled(extent: tuple[float, ...], size: float) -> tuple[float, ...]:
    """Multiply the sides of an extent by a size."""
    return tuple(side * size for side in extent)


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
