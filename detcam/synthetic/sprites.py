"""Sprites, the canvas that paints them, and compositing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detcam.utils.opencv import cv2

FloatArray = npt.NDArray[np.float32]
RGB = tuple[float, float, float]
Point = tuple[float, float]

SUPERSAMPLING = 4

SAILS: tuple[RGB, ...] = (
    (250, 248, 240),
    (244, 232, 204),
    (208, 64, 52),
    (42, 86, 150),
    (236, 172, 58),
    (250, 248, 240),
)
HULLS: tuple[RGB, ...] = ((246, 244, 238), (36, 52, 92), (150, 44, 40), (40, 100, 92), (122, 78, 46), (226, 160, 48))


@dataclass(frozen=True, eq=False)
class Sprite:
    """RGB and opacity of a painted object, cropped to the pixels that it touches.

    Attributes:
        color: (h, w, 3) float32 RGB in [0, 255].
        opacity: (h, w) float32 in [0, 1]; every outer row and column has a nonzero pixel.
        left: column of the first pixel, relative to the anchor of the object.
        top: row of the first pixel, relative to the anchor of the object.
    """

    color: FloatArray
    opacity: FloatArray
    left: int
    top: int

    def box_xyxy(self, x: int, y: int) -> FloatArray:
        """Return the (4,) float32 half-open box of the sprite with its anchor at pixel (x, y)."""
        left, top = x + self.left, y + self.top
        height, width = self.opacity.shape
        return np.array([left, top, left + width, top + height], np.float32)


class SpriteCanvas:
    """A supersampled canvas of premultiplied color around an anchor at (0, 0).

    Coordinates are image pixels with y pointing down.

    Args:
        left: smallest x of the canvas.
        top: smallest y.
        right: largest x.
        bottom: largest y.
    """

    def __init__(self, left: float, top: float, right: float, bottom: float) -> None:
        self.left, self.top = int(np.floor(left)), int(np.floor(top))
        height = (int(np.ceil(bottom)) - self.top) * SUPERSAMPLING
        width = (int(np.ceil(right)) - self.left) * SUPERSAMPLING
        self.pixels: FloatArray = np.zeros((height, width, 4), np.float32)

    def _to_canvas(self, points: Sequence[Point]) -> npt.NDArray[np.int32]:
        scaled = (np.asarray(points, np.float64) - (self.left, self.top)) * SUPERSAMPLING
        return np.round(scaled).astype(np.int32)

    def polygon(self, points: Sequence[Point], color: RGB) -> None:
        """Fill a polygon; points in image pixels."""
        cv2.fillPoly(self.pixels, [self._to_canvas(points)], (*color, 1.0))

    def line(self, points: Sequence[Point], color: RGB, width: float) -> None:
        """Draw an open line through points; points and width in image pixels."""
        thickness = max(1, round(width * SUPERSAMPLING))
        cv2.polylines(self.pixels, [self._to_canvas(points)], False, (*color, 1.0), thickness)

    def ellipse(self, center: Point, radii: Point, color: RGB) -> None:
        """Fill an ellipse; center and radii in image pixels."""
        middle = self._to_canvas([center])[0]
        axes = [max(1, round(radius * SUPERSAMPLING)) for radius in radii]
        cv2.ellipse(self.pixels, middle.tolist(), axes, 0, 0, 360, (*color, 1.0), -1)

    def to_sprite(self, opacity: float = 1.0, softness: float = 0.0) -> Sprite:
        """Downsample to image pixels and crop to the painted area.

        Args:
            opacity: factor in (0, 1] on the opacity of the sprite.
            softness: standard deviation of a blur, in image pixels.
        """
        pixels = self.pixels
        if softness > 0:
            pixels = cv2.GaussianBlur(pixels, (0, 0), softness * SUPERSAMPLING).astype(np.float32)
        height, width = (side // SUPERSAMPLING for side in pixels.shape[:2])
        small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        alpha = np.where(small[..., 3] > 0.03, small[..., 3], 0)
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        # The canvas starts at zero everywhere, so its colors are already weighted by coverage.
        color = small[..., :3] / np.maximum(small[..., 3:], 1e-6)
        return Sprite(
            np.clip(color[window], 0, 255).astype(np.float32),
            (alpha[window] * opacity).astype(np.float32),
            self.left + int(columns[0]),
            self.top + int(rows[0]),
        )


def shade(color: RGB, factor: float) -> RGB:
    """Return a darker (factor below 1) or lighter (above 1) color."""
    red, green, blue = (min(255.0, channel * factor) for channel in color)
    return (red, green, blue)


def paste(image: FloatArray, sprite: Sprite, x: int, y: int) -> FloatArray:
    """Blend a sprite into an image, in place, with its anchor at pixel (x, y).

    Returns:
        (H, W) float32 in [0, 1], opacity of the sprite over the whole image.
    """
    height, width = image.shape[:2]
    opacity = np.zeros((height, width), np.float32)
    left, top = x + sprite.left, y + sprite.top
    rows = slice(max(top, 0), min(top + sprite.opacity.shape[0], height))
    columns = slice(max(left, 0), min(left + sprite.opacity.shape[1], width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return opacity
    inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    opacity[rows, columns] = sprite.opacity[inner]
    alpha = sprite.opacity[inner][..., None]
    image[rows, columns] = image[rows, columns] * (1 - alpha) + sprite.color[inner] * alpha
    return opacity


def reflection(sprite: Sprite) -> Sprite:
    """Return the reflection of a sprite in the water: compressed, and fading from the waterline downwards."""
    height = max(2, round(0.32 * sprite.opacity.shape[0]))
    size = (sprite.opacity.shape[1], height)
    color = cv2.resize(sprite.color[::-1], size, interpolation=cv2.INTER_AREA)
    fade = np.linspace(0.34, 0.02, height, dtype=np.float32)[:, None]
    opacity = cv2.resize(sprite.opacity[::-1], size, interpolation=cv2.INTER_AREA) * fade
    return Sprite(color * 0.8, opacity, sprite.left, sprite.top + sprite.opacity.shape[0])
