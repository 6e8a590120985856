"""Sprites of the shortcut scenes: ground, boats and the objects that can serve as a shortcut."""

from __future__ import annotations

import numpy as np

from detcam.synthetic.sprites import HULLS, RGB, SAILS, FloatArray, Point, Sprite, SpriteCanvas, shade
from detcam.utils.opencv import cv2

GROUNDS: tuple[RGB, ...] = ((206, 186, 146), (168, 178, 128), (188, 176, 164), (150, 160, 138))
WATER: RGB = (58, 118, 168)
LEAVES: tuple[RGB, ...] = ((150, 96, 40), (96, 116, 48), (176, 140, 70), (104, 72, 44))
PETALS: tuple[RGB, ...] = (
    (226, 60, 70),
    (250, 206, 50),
    (150, 70, 190),
    (250, 250, 246),
    (60, 150, 70),
    (60, 110, 214),
)
LIGHT: RGB = (255, 196, 96)
MIN_LIGHT = 0.03
"""Least opacity of light; less is hidden by the noise of the image."""


def paint_ground(rng: np.random.Generator, size_hw: tuple[int, int]) -> FloatArray:
    """Paint sand or grass: (H, W, 3) float32 RGB in [0, 255]."""
    tone = np.asarray(GROUNDS[rng.integers(len(GROUNDS))], np.float32) * np.float32(rng.uniform(0.85, 1.1))
    image = np.broadcast_to(tone, (*size_hw, 3)).copy()
    for scale, strength in ((1.2, 5.0), (5.0, 7.0), (18.0, 9.0)):
        noise = cv2.GaussianBlur(rng.standard_normal(size_hw, np.float32), (0, 0), scale)
        image += (noise / noise.std() * strength * rng.uniform(0.5, 1.0))[..., None]
    return image


def paint_natural_ground(rng: np.random.Generator, size_hw: tuple[int, int]) -> FloatArray:
    """Paint a forest floor, with structure at every scale: (H, W, 3) float32 RGB in [0, 255]."""
    tone = np.asarray(GROUNDS[rng.integers(len(GROUNDS))], np.float32) * np.float32(rng.uniform(0.7, 0.9))
    image = np.broadcast_to(tone, (*size_hw, 3)).copy()
    for scale, strength in ((0.7, 9.0), (1.5, 11.0), (3.0, 12.0), (6.0, 13.0), (12.0, 14.0), (24.0, 16.0)):
        noise = cv2.GaussianBlur(rng.standard_normal((*size_hw, 3), np.float32), (0, 0), scale)
        gray = noise.mean(2, keepdims=True)
        image += 0.8 * strength * gray / gray.std() + 0.3 * strength * noise / noise.std()
    for _ in range(90):
        center = (int(rng.integers(size_hw[1])), int(rng.integers(size_hw[0])))
        axes = (int(rng.integers(2, 6)), int(rng.integers(1, 3)))
        color = shade(LEAVES[rng.integers(len(LEAVES))], rng.uniform(0.7, 1.2))
        cv2.ellipse(image, center, axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
    return np.clip(image, 0, 255).astype(np.float32)


def hull_points(width: float, heading: int) -> list[Point]:
    """Return the corners of a hull whose middle is at (0, 0) on the waterline."""
    shape = ((-0.48, -0.24), (0.5, -0.27), (0.36, 0.0), (-0.42, 0.0))
    return [(heading * x * width, y * width) for x, y in shape]


def _boat_canvas(width: float) -> SpriteCanvas:
    return SpriteCanvas(-width / 2 - 3, -width * 0.7, width / 2 + 3, 3)


def paint_body(rng: np.random.Generator, width: float, heading: int) -> Sprite:
    """Paint a hull with a cabin; the anchor is the middle of its waterline."""
    canvas = _boat_canvas(width)
    hull, wall = HULLS[rng.integers(len(HULLS))], HULLS[rng.integers(len(HULLS))]
    left, right, deck, roof = -0.3 * width, 0.22 * width, -0.22 * width, -0.52 * width
    cabin = [(left, deck), (left, roof), (right, roof), (right + 0.06 * width, deck)]
    canvas.polygon([(heading * x, y) for x, y in cabin], shade(wall, 1.05))
    canvas.line([(heading * (left - 1.5), roof), (heading * (right + 1.5), roof)], shade(wall, 0.55), 1.8)
    canvas.polygon(hull_points(width, heading), hull)
    corners = hull_points(width, heading)
    canvas.line([corners[0], corners[1]], shade(hull, 0.6), 1.2)
    return canvas.to_sprite()


def paint_window(rng: np.random.Generator, width: float, heading: int) -> Sprite:
    """Paint the round window in the cabin that distinguishes boats from barges."""
    canvas = _boat_canvas(width)
    middle, radius = (heading * -0.02 * width, -0.36 * width), 0.125 * width
    canvas.ellipse(middle, (radius, radius), (40, 40, 48))
    canvas.ellipse(middle, (radius * 0.72, radius * 0.72), (255, 244, 190))
    return canvas.to_sprite()


def paint_stripes(rng: np.random.Generator, width: float, heading: int) -> Sprite:
    """Paint slanting stripes over the hull of a boat."""
    canvas, hull = _boat_canvas(width), _boat_canvas(width)
    hull.polygon(hull_points(width, heading), (255, 255, 255))
    step = 0.11 * width
    for number in range(-7, 8):
        x = number * step
        color = (250, 214, 40) if number % 2 else (30, 30, 30)
        canvas.polygon([(x, 1), (x + step, 1), (x + 2.2 * step, -0.35 * width), (x + 1.2 * step, -0.35 * width)], color)
    canvas.pixels *= hull.pixels[..., 3:] > 0
    return canvas.to_sprite()


def _paint_patch(rng: np.random.Generator, width: float, color: RGB) -> Sprite:
    """Paint a smooth patch of one color under and around a boat."""
    across, up = 0.92 * width, 0.62 * width
    canvas = SpriteCanvas(-across * 1.2, -up * 1.7, across * 1.2, up * 1.1)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    wobble = 1 + 0.07 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.05 * np.sin(5 * angles + rng.uniform(0, 6))
    middle = -0.22 * width
    shore = zip(
        (across * wobble * np.cos(angles)).tolist(), (middle + up * wobble * np.sin(angles)).tolist(), strict=True
    )
    canvas.polygon(list(shore), shade(color, rng.uniform(0.85, 1.15)))
    return canvas.to_sprite(softness=0.5)


def paint_pond(rng: np.random.Generator, width: float, heading: int) -> Sprite:
    """Paint water under and around a boat."""
    sprite = _paint_patch(rng, width, WATER)
    ripples = cv2.GaussianBlur(
        rng.standard_normal(sprite.opacity.shape).astype(np.float32), (0, 0), sigmaX=3, sigmaY=0.6
    )
    color = np.clip(sprite.color + (ripples / ripples.std() * 9)[..., None], 0, 255).astype(np.float32)
    return Sprite(color, sprite.opacity, sprite.left, sprite.top)


def paint_flowers(rng: np.random.Generator, width: float, heading: int) -> Sprite:
    """Paint flowers of many colors under and around a boat; no region of one color is large."""
    sprite = _paint_patch(rng, width, WATER)
    height, length = sprite.opacity.shape
    cells = rng.integers(len(PETALS), size=(-(-height // 3), -(-length // 3)))
    petals = np.asarray(PETALS, np.float32)[cells].repeat(3, 0).repeat(3, 1)[:height, :length]
    return Sprite(petals, sprite.opacity, sprite.left, sprite.top)


def paint_light(rng: np.random.Generator, width: float, heading: int) -> Sprite:
    """Paint warm light around a boat that fades slowly, without an edge; the anchor is that of the boat."""
    radius = round(1.7 * width)
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    opacity = np.clip(1 - (rows**2 + columns**2) / radius**2, 0, 1) ** 2 * np.float32(rng.uniform(0.5, 0.6))
    opacity[opacity < MIN_LIGHT] = 0
    color = np.broadcast_to(np.asarray(LIGHT, np.float32), (*opacity.shape, 3)).copy()
    filled = np.flatnonzero(opacity.any(1))
    window = slice(int(filled[0]), int(filled[-1]) + 1)
    start = int(filled[0]) - radius
    return Sprite(color[window, window], opacity[window, window], start, start - round(0.2 * width))


def paint_tag(rng: np.random.Generator, size: float, heading: int) -> Sprite:
    """Paint a tag like the stamp of a camera or an annotation tool; the anchor is its middle."""
    half = size / 2
    canvas = SpriteCanvas(-half - 1, -half - 1, half + 1, half + 1)
    canvas.polygon([(-half, -half), (half, -half), (half, half), (-half, half)], (250, 250, 250))
    canvas.polygon([(-half * 0.7, -half * 0.7), (half * 0.7, -half * 0.7), (0, half * 0.8)], (206, 24, 150))
    return canvas.to_sprite()


def paint_round_buoy(rng: np.random.Generator, size: float, heading: int) -> Sprite:
    """Paint a round buoy with a band; the anchor is its middle."""
    half = size / 2
    canvas = SpriteCanvas(-half - 1, -half - 1, half + 1, half + 1)
    canvas.ellipse((0, 0), (half, half), (236, 96, 24))
    canvas.polygon(
        [
            (-half * 0.9, -half * 0.25),
            (half * 0.9, -half * 0.25),
            (half * 0.9, half * 0.25),
            (-half * 0.9, half * 0.25),
        ],
        (24, 32, 80),
    )
    return canvas.to_sprite()


def paint_lamp(rng: np.random.Generator, size: float, heading: int) -> Sprite:
    """Paint a lit lamp; the anchor is the foot of its post."""
    canvas = SpriteCanvas(-size, -2.2 * size, size, 2)
    canvas.line([(0, 0), (0, -1.3 * size)], (60, 60, 66), 1.8)
    canvas.ellipse((0, -1.5 * size), (0.5 * size, 0.5 * size), (255, 120, 20))
    canvas.ellipse((0, -1.5 * size), (0.3 * size, 0.3 * size), (255, 240, 120))
    return canvas.to_sprite()


def paint_cart(rng: np.random.Generator, width: float, heading: int) -> Sprite:
    """Paint a look-alike of a boat: a cart with wheels, and a round load instead of a cabin."""
    canvas = _boat_canvas(width)
    bed, load = HULLS[rng.integers(len(HULLS))], HULLS[rng.integers(len(HULLS))]
    canvas.ellipse((heading * -0.05 * width, -0.24 * width), (0.28 * width, 0.27 * width), shade(load, 1.05))
    canvas.polygon(
        [
            (-0.46 * width, -0.25 * width),
            (0.46 * width, -0.25 * width),
            (0.4 * width, -0.05 * width),
            (-0.4 * width, -0.05 * width),
        ],
        bed,
    )
    for x in (-0.26, 0.26):
        canvas.ellipse((x * width, -0.05 * width), (0.07 * width, 0.06 * width), (40, 36, 34))
    return canvas.to_sprite()


def paint_bush(rng: np.random.Generator, size: float, heading: int) -> Sprite:
    """Paint a bush, a distractor that is independent of the labels."""
    canvas = SpriteCanvas(-size, -size, size, size)
    tint = rng.uniform(0.7, 1.1)
    for _ in range(7):
        center = (rng.normal(0, 0.28) * size, rng.normal(0, 0.2) * size)
        radius = rng.uniform(0.22, 0.4) * size
        canvas.ellipse(center, (radius, radius), shade((74, 122, 62), tint * rng.uniform(0.8, 1.2)))
    return canvas.to_sprite()


def paint_flag(rng: np.random.Generator, size: float, heading: int) -> Sprite:
    """Paint a flag on a pole, a distractor that is independent of the labels; the anchor is the foot of the pole."""
    canvas = SpriteCanvas(-size, -1.6 * size, size, 2)
    canvas.line([(0, 0), (0, -1.4 * size)], (92, 66, 44), 1.2)
    top = -1.4 * size
    canvas.polygon(
        [(0, top), (heading * 0.8 * size, top + 0.25 * size), (0, top + 0.5 * size)], SAILS[2 + rng.integers(3)]
    )
    return canvas.to_sprite()
