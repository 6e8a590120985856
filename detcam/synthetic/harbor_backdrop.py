"""Backdrop of the harbor scenes: sky, shore and water."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detcam.synthetic.sprites import RGB, FloatArray, SpriteCanvas, paste, shade
from detcam.utils.opencv import cv2


@dataclass(frozen=True)
class Light:
    """Colors of one time of day, RGB in [0, 255]."""

    zenith: RGB
    haze: RGB
    far_water: RGB
    near_water: RGB
    shore: RGB


LIGHTS: tuple[Light, ...] = (
    Light((96, 158, 216), (206, 228, 238), (112, 168, 190), (32, 92, 128), (92, 128, 104)),
    Light((128, 176, 210), (236, 226, 206), (134, 170, 178), (44, 98, 116), (110, 124, 96)),
    Light((122, 116, 168), (250, 196, 150), (190, 152, 142), (66, 80, 116), (92, 84, 110)),
    Light((146, 162, 176), (214, 218, 218), (146, 164, 168), (62, 92, 100), (102, 116, 112)),
    Light((84, 170, 206), (214, 238, 226), (96, 186, 186), (18, 112, 126), (84, 132, 92)),
)


def paint_backdrop(rng: np.random.Generator, size_hw: tuple[int, int], horizon: int) -> FloatArray:
    """Paint sky, clouds, hills, houses and water.

    Args:
        rng: random generator of the backdrop.
        size_hw: height and width in pixels.
        horizon: first row of the water.

    Returns:
        (H, W, 3) float32 RGB in [0, 255].
    """
    light = LIGHTS[rng.integers(len(LIGHTS))]
    image = np.empty((*size_hw, 3), np.float32)
    image[:horizon] = _gradient(light.zenith, light.haze, horizon, 0.8)
    image[horizon:] = _gradient(light.far_water, light.near_water, size_hw[0] - horizon, 0.6)
    _clouds(image, rng, horizon)
    _shore(image, rng, horizon, light)
    image[horizon:] += _waves(rng, size_hw[0] - horizon, size_hw[1])
    _ripples(image, rng, horizon)
    return image * np.float32(rng.uniform(0.88, 1.08))


def _gradient(top: RGB, bottom: RGB, rows: int, power: float) -> FloatArray:
    ramp = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None] ** power
    upper, lower = np.asarray(top, np.float32), np.asarray(bottom, np.float32)
    return (upper * (1 - ramp) + lower * ramp).astype(np.float32)


def _clouds(image: FloatArray, rng: np.random.Generator, horizon: int) -> None:
    width = image.shape[1]
    for _ in range(rng.integers(2, 6)):
        canvas = SpriteCanvas(-64, -18, 64, 18)
        for _ in range(rng.integers(4, 9)):
            center = (float(np.clip(rng.normal(0, 13), -36, 36)), rng.normal(0, 1.6))
            canvas.ellipse(center, (rng.uniform(7, 15), rng.uniform(2.5, 5)), (253, 252, 250))
        sprite = canvas.to_sprite(rng.uniform(0.35, 0.75), softness=1.8)
        paste(image[:horizon], sprite, int(rng.integers(0, width)), int(rng.integers(4, max(5, horizon - 18))))


def _shore(image: FloatArray, rng: np.random.Generator, horizon: int, light: Light) -> None:
    width = image.shape[1]
    columns = np.arange(0, width + 4, 4)
    for layer, (low, high) in enumerate(((6, 17), (2, 8))):
        waves = sum(rng.uniform(0.3, 1) * np.sin(columns / rng.uniform(18, 70) + rng.uniform(0, 7)) for _ in range(3))
        ridge = np.clip((low + high) / 2 + waves * (high - low) / 4, 1, None)
        canvas = SpriteCanvas(0, -30, width, 1)
        color = shade(light.shore, 1.35 - 0.35 * layer)
        canvas.polygon([(0, 1), *zip(columns.tolist(), (-ridge).tolist(), strict=True), (width, 1)], color)
        paste(image, canvas.to_sprite(0.8 + 0.2 * layer), 0, horizon)
    _village(image, rng, horizon)


def _village(image: FloatArray, rng: np.random.Generator, horizon: int) -> None:
    left = rng.uniform(10, image.shape[1] - 70)
    for _ in range(rng.integers(3, 8)):
        wide, high = rng.uniform(5, 9), rng.uniform(3.5, 6)
        canvas = SpriteCanvas(-1, -high - 5, wide + 1, 1)
        wall = shade((236, 222, 200), rng.uniform(0.85, 1))
        canvas.polygon([(0, 0), (0, -high), (wide, -high), (wide, 0)], wall)
        canvas.polygon([(-0.6, -high), (wide / 2, -high - 3), (wide + 0.6, -high)], (172, 84, 62))
        canvas.polygon(
            [(wide / 2 - 0.7, 0), (wide / 2 - 0.7, -2), (wide / 2 + 0.7, -2), (wide / 2 + 0.7, 0)], (92, 72, 62)
        )
        paste(image, canvas.to_sprite(), int(left), horizon)
        left += wide + rng.uniform(0.5, 6)
    if rng.random() < 0.5:
        canvas = SpriteCanvas(-4, -27, 4, 1)
        canvas.polygon([(-2.6, 0), (-1.7, -19), (1.7, -19), (2.6, 0)], (244, 242, 238))
        canvas.polygon([(-2.2, -7), (-1.95, -12), (1.95, -12), (2.2, -7)], (196, 62, 50))
        canvas.polygon([(-1.5, -19), (-1.5, -22), (1.5, -22), (1.5, -19)], (250, 226, 140))
        canvas.polygon([(-2.1, -22), (0, -25), (2.1, -22)], (150, 50, 44))
        paste(image, canvas.to_sprite(), int(rng.integers(8, image.shape[1] - 8)), horizon)


def _waves(rng: np.random.Generator, rows: int, width: int) -> FloatArray:
    """Return the brightness of the swell, (rows, W, 1): stretched noise, coarser toward the bottom."""
    swell = np.zeros((rows, width), np.float32)
    nearness = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    for scale, weight in ((1.0, 1 - nearness), (2.2, np.ones_like(nearness)), (4.0, nearness)):
        noise = rng.standard_normal((rows, width), np.float32)
        blurred = cv2.GaussianBlur(noise, (0, 0), sigmaX=4.5 * scale, sigmaY=0.55 * scale)
        swell += blurred / blurred.std() * weight * rng.uniform(2.5, 4.5)
    return swell[..., None]


def _ripples(image: FloatArray, rng: np.random.Generator, horizon: int) -> None:
    """Draw thin glints and small whitecaps, so that pale strokes alone do not indicate a wake."""
    height, width = image.shape[:2]
    canvas = SpriteCanvas(0, horizon, width, height)
    for _ in range(rng.integers(25, 60)):
        y = horizon + 2 + (height - horizon - 4) * rng.random()
        near = (y - horizon) / (height - horizon)
        x, length = rng.uniform(0, width), (1.5 + 7 * near) * rng.uniform(0.6, 1.4)
        tint = rng.uniform(200, 250)
        bend = rng.uniform(-0.6, 0.6)
        canvas.line([(x, y), (x + length / 2, y + bend), (x + length, y)], (tint, tint, tint), 0.35 + 0.4 * near)
    paste(image, canvas.to_sprite(rng.uniform(0.3, 0.6)), 0, 0)
