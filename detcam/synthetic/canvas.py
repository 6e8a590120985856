"""The brushes of the demo harbour: each paints one thing as a patch of colour and opacity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detcam.utils.opencv import cv2

FloatArray = npt.NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float]

SUPERSAMPLING = 4

SAILS: tuple[Colour, ...] = (
    (250, 248, 240),
    (244, 232, 204),
    (208, 64, 52),
    (42, 86, 150),
    (236, 172, 58),
    (250, 248, 240),
)
HULLS: tuple[Colour, ...] = (
    (246, 244, 238),
    (36, 52, 92),
    (150, 44, 40),
    (40, 100, 92),
    (122, 78, 46),
    (226, 160, 48),
)
BUOYS: tuple[Colour, ...] = ((222, 60, 42), (40, 140, 78), (244, 196, 40), (240, 112, 34))


@dataclass(frozen=True, eq=False)
class Patch:
    """A painted thing, cut to the pixels it touches.

    Attributes:
        colour: (h, w, 3) float32 RGB in [0, 255].
        opacity: (h, w) float32 in [0, 1]; every outer row and column holds a pixel above zero.
        left: Column of the patch's first pixel, relative to the thing's anchor.
        top: Row of the patch's first pixel, relative to the thing's anchor.
    """

    colour: FloatArray
    opacity: FloatArray
    left: int
    top: int


class Canvas:
    """A supersampled sheet of premultiplied colour around an anchor, y pointing down, in image pixels."""

    def __init__(self, left: float, top: float, right: float, bottom: float) -> None:
        self.left, self.top = int(np.floor(left)), int(np.floor(top))
        height = (int(np.ceil(bottom)) - self.top) * SUPERSAMPLING
        width = (int(np.ceil(right)) - self.left) * SUPERSAMPLING
        self.paint: FloatArray = np.zeros((height, width, 4), np.float32)

    def _points(self, points: Sequence[Point]) -> npt.NDArray[np.int32]:
        moved = (np.asarray(points, np.float64) - (self.left, self.top)) * SUPERSAMPLING
        return np.round(moved).astype(np.int32)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon; points in scene pixels."""
        cv2.fillPoly(self.paint, [self._points(points)], (*colour, 1.0))

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """Draw an open line through points; points and width in scene pixels."""
        thickness = max(1, round(width * SUPERSAMPLING))
        cv2.polylines(self.paint, [self._points(points)], False, (*colour, 1.0), thickness)

    def ellipse(self, centre: Point, radii: Point, colour: Colour) -> None:
        """Fill an ellipse; centre and radii in scene pixels."""
        middle = self._points([centre])[0]
        axes = [max(1, round(radius * SUPERSAMPLING)) for radius in radii]
        cv2.ellipse(self.paint, middle.tolist(), axes, 0, 0, 360, (*colour, 1.0), -1)

    def cut(self, opacity: float = 1.0, softness: float = 0.0) -> Patch:
        """Brings the sheet down to image pixels and cuts it to what was painted.

        Args:
            opacity: Factor in (0, 1] on the whole patch.
            softness: Standard deviation of a blur, in image pixels.
        """
        paint = self.paint
        if softness > 0:
            paint = cv2.GaussianBlur(paint, (0, 0), softness * SUPERSAMPLING).astype(np.float32)
        height, width = (side // SUPERSAMPLING for side in paint.shape[:2])
        small = cv2.resize(paint, (width, height), interpolation=cv2.INTER_AREA)
        alpha = np.where(small[..., 3] > 0.03, small[..., 3], 0)
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        # The sheet starts at zero everywhere, so its colours are already weighted by coverage.
        colour = small[..., :3] / np.maximum(small[..., 3:], 1e-6)
        return Patch(
            np.clip(colour[window], 0, 255).astype(np.float32),
            (alpha[window] * opacity).astype(np.float32),
            self.left + int(columns[0]),
            self.top + int(rows[0]),
        )


def shaded(colour: Colour, factor: float) -> Colour:
    """Returns the colour made darker (factor below 1) or lighter (above)."""
    red, green, blue = (min(255.0, channel * factor) for channel in colour)
    return (red, green, blue)


def paint_boat(rng: np.random.Generator, width: float, heading: int, opacity: float = 1.0) -> Patch:
    """Paints a sailing boat or a fishing boat; the anchor is the middle of the hull at the waterline.

    Args:
        rng: Source of the boat's looks.
        width: Length of the hull in pixels.
        heading: +1 when the bow points right, -1 when it points left.
        opacity: Below 1 the boat fades into the haze.
    """
    height = width * rng.uniform(0.98, 1.12)
    canvas = Canvas(-width / 2 - 2, -height - 2, width / 2 + 2, 2)
    hull = HULLS[rng.integers(len(HULLS))]
    deck = -0.17 * width

    def at(x: float, y: float) -> Point:
        return (heading * x * width / 2, y)

    if rng.random() < 0.65:
        _rig_sails(canvas, rng, at, deck, height)
    else:
        _build_cabin(canvas, rng, at, deck, height)
    canvas.polygon([at(-0.96, deck), at(1.0, deck - 0.03 * width), at(0.72, 0), at(-0.84, 0)], hull)
    canvas.polygon([at(-0.89, -0.06 * width), at(0.81, -0.06 * width), at(0.72, 0), at(-0.84, 0)], shaded(hull, 0.62))
    canvas.line([at(-0.96, deck), at(1.0, deck - 0.03 * width)], shaded(hull, 1.25), 0.7)
    return canvas.cut(opacity)


def _rig_sails(
    canvas: Canvas, rng: np.random.Generator, at: Callable[[float, float], Point], deck: float, height: float
) -> None:
    main, jib = (SAILS[index] for index in rng.integers(len(SAILS), size=2))
    foot, top = deck - 0.05 * height, -height
    canvas.line([at(0.08, deck), at(0.08, top)], (92, 66, 44), 0.9)
    canvas.polygon([at(0.02, top * 0.96), at(0.02, foot), at(-0.84, foot)], main)
    canvas.polygon([at(0.02, top * 0.96), at(0.02, foot), at(-0.28, foot)], shaded(main, 0.92))
    canvas.polygon([at(0.15, top * 0.82), at(0.15, foot), at(0.88, foot)], jib)
    if rng.random() < 0.4:
        stripe = SAILS[rng.integers(len(SAILS))]
        canvas.polygon([at(0.02, top * 0.5), at(0.02, top * 0.4), at(-0.48, top * 0.4), at(-0.36, top * 0.5)], stripe)


def _build_cabin(
    canvas: Canvas, rng: np.random.Generator, at: Callable[[float, float], Point], deck: float, height: float
) -> None:
    wall = HULLS[rng.integers(len(HULLS))]
    roof = deck - 0.34 * height
    canvas.line([at(0.1, roof), at(0.1, -height)], (84, 72, 64), 1.0)
    canvas.line([at(0.1, -height * 0.94), at(-0.86, deck)], (84, 72, 64), 0.5)
    canvas.line([at(0.1, -height * 0.94), at(0.9, deck)], (84, 72, 64), 0.5)
    canvas.polygon([at(-0.42, deck), at(-0.42, roof), at(0.42, roof), at(0.56, deck)], shaded(wall, 1.1))
    canvas.polygon(
        [at(-0.5, roof), at(-0.44, roof - 0.06 * height), at(0.46, roof - 0.06 * height), at(0.52, roof)],
        shaded(wall, 0.6),
    )
    sill, head = deck - 0.13 * height, deck - 0.26 * height
    for x in (-0.32, -0.05, 0.22):
        canvas.polygon([at(x, sill), at(x, head), at(x + 0.17, head), at(x + 0.17, sill)], (70, 104, 128))
    flag = SAILS[2 + rng.integers(3)]
    top = -height
    canvas.polygon([at(0.1, top), at(0.1, top * 0.88), at(-0.24, top * 0.94)], flag)


def mirrored(patch: Patch) -> Patch:
    """Returns the thing's faint image in the water, squeezed and fading downwards from the waterline."""
    height = max(2, round(0.32 * patch.opacity.shape[0]))
    size = (patch.opacity.shape[1], height)
    colour = cv2.resize(patch.colour[::-1], size, interpolation=cv2.INTER_AREA)
    fade = np.linspace(0.34, 0.02, height, dtype=np.float32)[:, None]
    opacity = cv2.resize(patch.opacity[::-1], size, interpolation=cv2.INTER_AREA) * fade
    return Patch(colour * 0.8, opacity, patch.left, patch.top + patch.opacity.shape[0])


def paint_wake(rng: np.random.Generator, width: float, heading: int) -> Patch:
    """Paints the foam astern of a boat: narrow and dense near the stern, wide and thin further off.

    Args:
        rng: Source of the foam.
        width: Length in pixels of the hull that the wake belongs to.
        heading: +1 when the boat sails to the right, and its wake lies to its left.
    """
    length, spread = 0.72 * width, 0.17 * width
    canvas = Canvas(-length - 4, -spread - 4, length + 4, spread + 4)
    for _ in range(120):
        along = rng.random() ** 1.25
        half = (0.16 + 0.84 * along) * spread
        on_arm = rng.random() < 0.7
        side = rng.choice((-1.0, 1.0)) if on_arm else rng.uniform(-0.8, 0.8)
        centre = (-heading * along * length, side * half + rng.normal(0, 0.016 * width))
        size = rng.uniform(0.016, 0.036) * width * (1.25 - 0.6 * along)
        tint = rng.uniform(228, 255)
        canvas.ellipse(centre, (size * (2.6 if on_arm else 1.9), size * 0.75), (tint - 6, tint, tint))
    return canvas.cut(0.93, softness=0.3)


def paint_buoy(rng: np.random.Generator, size: float) -> Patch:
    """Paints a buoy with a lamp on top; the anchor is its middle at the waterline."""
    canvas = Canvas(-size, -1.5 * size - 2, size, 2)
    colour = BUOYS[rng.integers(len(BUOYS))]
    half = size / 2
    canvas.polygon(
        [
            (-0.28 * half, -1.1 * size),
            (0.28 * half, -1.1 * size),
            (0.7 * half, -0.35 * size),
            (-0.7 * half, -0.35 * size),
        ],
        colour,
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
        [(-half, -0.38 * size), (half, -0.38 * size), (0.74 * half, 0), (-0.74 * half, 0)],
        shaded(colour, 0.72),
    )
    canvas.ellipse((0, -1.2 * size), (0.14 * size, 0.14 * size), (255, 240, 170))
    return canvas.cut()


def paint_gull(rng: np.random.Generator, size: float) -> Patch:
    """Paints a gull on the wing; the anchor is its body."""
    canvas = Canvas(-size, -size, size, size)
    lift, dip = rng.uniform(0.22, 0.42) * size, rng.uniform(-0.05, 0.16) * size
    tilt = rng.uniform(-0.12, 0.12) * size
    feathers, tips = (252, 252, 250), (66, 70, 78)
    for side in (-1, 1):
        elbow = (side * 0.36 * size, -lift + side * tilt)
        tip = (side * 0.82 * size, dip - 0.1 * size + side * tilt)
        canvas.polygon(
            [
                (0, -0.07 * size),
                elbow,
                tip,
                (side * 0.34 * size, -lift + 0.17 * size + side * tilt),
                (0, 0.1 * size),
            ],
            shaded(feathers, 0.93 if side < 0 else 1.0),
        )
        canvas.line([((elbow[0] + 2 * tip[0]) / 3, (elbow[1] + 2 * tip[1]) / 3), tip], tips, 0.08 * size)
    canvas.ellipse((0, 0.02 * size), (0.2 * size, 0.1 * size), feathers)
    canvas.ellipse((0.23 * size, 0.03 * size), (0.07 * size, 0.04 * size), (238, 168, 50))
    return canvas.cut()
