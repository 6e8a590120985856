"""Sprites of the harbor scenes: boats, wakes, buoys and gulls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detcam.synthetic.sprites import HULLS, RGB, SAILS, Point, Sprite, SpriteCanvas, shade

BUOYS: tuple[RGB, ...] = ((222, 60, 42), (40, 140, 78), (244, 196, 40), (240, 112, 34))


def paint_boat(rng: np.random.Generator, width: float, heading: int, opacity: float = 1.0) -> Sprite:
    """Paint a sailing boat or a fishing boat; the anchor is the middle of the hull at the waterline.

    Args:
        rng: random generator of type, colors and proportions.
        width: length of the hull in pixels.
        heading: +1 if the bow points right, -1 if it points left.
        opacity: opacity in (0, 1]; below 1, the boat is hazy.
    """
    height = width * rng.uniform(0.98, 1.12)
    canvas = SpriteCanvas(-width / 2 - 2, -height - 2, width / 2 + 2, 2)
    hull = HULLS[rng.integers(len(HULLS))]
    deck = -0.17 * width

    def xy(x: float, y: float) -> Point:  # x in half hull lengths toward the bow, y in pixels
        return (heading * x * width / 2, y)

    if rng.random() < 0.65:
        _rig_sails(canvas, rng, xy, deck, height)
    else:
        _build_cabin(canvas, rng, xy, deck, height)
    canvas.polygon([xy(-0.96, deck), xy(1.0, deck - 0.03 * width), xy(0.72, 0), xy(-0.84, 0)], hull)
    canvas.polygon([xy(-0.89, -0.06 * width), xy(0.81, -0.06 * width), xy(0.72, 0), xy(-0.84, 0)], shade(hull, 0.62))
    canvas.line([xy(-0.96, deck), xy(1.0, deck - 0.03 * width)], shade(hull, 1.25), 0.7)
    return canvas.to_sprite(opacity)


def _rig_sails(
    canvas: SpriteCanvas, rng: np.random.Generator, xy: Callable[[float, float], Point], deck: float, height: float
) -> None:
    main, jib = (SAILS[index] for index in rng.integers(len(SAILS), size=2))
    foot, top = deck - 0.05 * height, -height
    canvas.line([xy(0.08, deck), xy(0.08, top)], (92, 66, 44), 0.9)
    canvas.polygon([xy(0.02, top * 0.96), xy(0.02, foot), xy(-0.84, foot)], main)
    canvas.polygon([xy(0.02, top * 0.96), xy(0.02, foot), xy(-0.28, foot)], shade(main, 0.92))
    canvas.polygon([xy(0.15, top * 0.82), xy(0.15, foot), xy(0.88, foot)], jib)
    if rng.random() < 0.4:
        stripe = SAILS[rng.integers(len(SAILS))]
        canvas.polygon([xy(0.02, top * 0.5), xy(0.02, top * 0.4), xy(-0.48, top * 0.4), xy(-0.36, top * 0.5)], stripe)


def _build_cabin(
    canvas: SpriteCanvas, rng: np.random.Generator, xy: Callable[[float, float], Point], deck: float, height: float
) -> None:
    wall = HULLS[rng.integers(len(HULLS))]
    roof = deck - 0.34 * height
    canvas.line([xy(0.1, roof), xy(0.1, -height)], (84, 72, 64), 1.0)
    canvas.line([xy(0.1, -height * 0.94), xy(-0.86, deck)], (84, 72, 64), 0.5)
    canvas.line([xy(0.1, -height * 0.94), xy(0.9, deck)], (84, 72, 64), 0.5)
    canvas.polygon([xy(-0.42, deck), xy(-0.42, roof), xy(0.42, roof), xy(0.56, deck)], shade(wall, 1.1))
    canvas.polygon(
        [xy(-0.5, roof), xy(-0.44, roof - 0.06 * height), xy(0.46, roof - 0.06 * height), xy(0.52, roof)],
        shade(wall, 0.6),
    )
    sill, head = deck - 0.13 * height, deck - 0.26 * height
    for x in (-0.32, -0.05, 0.22):
        canvas.polygon([xy(x, sill), xy(x, head), xy(x + 0.17, head), xy(x + 0.17, sill)], (70, 104, 128))
    flag = SAILS[2 + rng.integers(3)]
    top = -height
    canvas.polygon([xy(0.1, top), xy(0.1, top * 0.88), xy(-0.24, top * 0.94)], flag)


def paint_wake(rng: np.random.Generator, width: float, heading: int) -> Sprite:
    """Paint the foam behind a boat: narrow and dense near the stern, wide and thin further away.

    Args:
        rng: random generator of the foam.
        width: length of the boat's hull in pixels.
        heading: +1 if the boat moves to the right, so that the wake extends to the left.
    """
    length, spread = 0.72 * width, 0.17 * width
    canvas = SpriteCanvas(-length - 4, -spread - 4, length + 4, spread + 4)
    for _ in range(120):
        along = rng.random() ** 1.25
        half = (0.16 + 0.84 * along) * spread
        on_arm = rng.random() < 0.7
        side = rng.choice((-1.0, 1.0)) if on_arm else rng.uniform(-0.8, 0.8)
        center = (-heading * along * length, side * half + rng.normal(0, 0.016 * width))
        size = rng.uniform(0.016, 0.036) * width * (1.25 - 0.6 * along)
        tint = rng.uniform(228, 255)
        canvas.ellipse(center, (size * (2.6 if on_arm else 1.9), size * 0.75), (tint - 6, tint, tint))
    return canvas.to_sprite(0.93, softness=0.3)


def paint_buoy(rng: np.random.Generator, size: float) -> Sprite:
    """Paint a buoy with a lamp on top; the anchor is its middle at the waterline."""
    canvas = SpriteCanvas(-size, -1.5 * size - 2, size, 2)
    color = BUOYS[rng.integers(len(BUOYS))]
    half = size / 2
    canvas.polygon(
        [
            (-0.28 * half, -1.1 * size),
            (0.28 * half, -1.1 * size),
            (0.7 * half, -0.35 * size),
            (-0.7 * half, -0.35 * size),
        ],
        color,
    )
    canvas.polygon(
        [
            (-0.44 * half, -0.82 * size),
            (0.44 * half, -0.82 * size),
            (0.56 * half, -0.6 * size),
            (-0.56 * half, -0.6 * size),
        ],
        (248, 246, 240),
    )
    canvas.polygon(
        [(-half, -0.38 * size), (half, -0.38 * size), (0.74 * half, 0), (-0.74 * half, 0)], shade(color, 0.72)
    )
    canvas.ellipse((0, -1.2 * size), (0.14 * size, 0.14 * size), (255, 240, 170))
    return canvas.to_sprite()


def paint_gull(rng: np.random.Generator, size: float) -> Sprite:
    """Paint a flying gull; the anchor is its body."""
    canvas = SpriteCanvas(-size, -size, size, size)
    lift, dip = rng.uniform(0.22, 0.42) * size, rng.uniform(-0.05, 0.16) * size
    tilt = rng.uniform(-0.12, 0.12) * size
    feathers, tips = (252, 252, 250), (66, 70, 78)
    for side in (-1, 1):
        elbow = (side * 0.36 * size, -lift + side * tilt)
        tip = (side * 0.82 * size, dip - 0.1 * size + side * tilt)
        canvas.polygon(
            [(0, -0.07 * size), elbow, tip, (side * 0.34 * size, -lift + 0.17 * size + side * tilt), (0, 0.1 * size)],
            shade(feathers, 0.93 if side < 0 else 1.0),
        )
        canvas.line([((elbow[0] + 2 * tip[0]) / 3, (elbow[1] + 2 * tip[1]) / 3), tip], tips, 0.08 * size)
    canvas.ellipse((0, 0.02 * size), (0.2 * size, 0.1 * size), feathers)
    canvas.ellipse((0.23 * size, 0.03 * size), (0.07 * size, 0.04 * size), (238, 168, 50))
    return canvas.to_sprite()
