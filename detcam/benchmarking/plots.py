"""A benchmark's figures: faithfulness against cost, and the maps themselves."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detcam.benchmarking.statistics import Row
from detcam.benchmarking.tables import arrow
from detcam.visualize.convert import ImageArray
from detcam.visualize.overlay import grid, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHOD_COLOR, TIED_COLOR, CONTROL_COLOR = "#7a8fb3", "#1b4fa3", "#b3541e"
LINE, LETTER = 15.0, 7.5  # pixels that a line of names takes, and a letter
NEAR, ASIDE = 70.0, 34.0  # pixels within which points lie together, and from them to their names
PANEL = 240  # pixels: the longer side of a panel of the figure of maps


@dataclass(frozen=True, eq=False)
class Shown:
    """An image of the figure.

    Attributes:
        name: of the image.
        image: (H, W, 3) uint8.
        caption: what is explained in it.
        box_xyxy: its box, or None.
        maps: row name to its heatmap (H, W) in [0, 1]; rows that failed on the image are not there.
    """

    name: str
    image: ImageArray
    caption: str
    box_xyxy: tuple[float, float, float, float] | None
    maps: Mapping[str, np.ndarray]


def scatter(rows: Sequence[Row], metric: str, sign: int) -> Figure:
    """A metric against seconds an image, with intervals; controls, which cost nothing, are lines across."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 5), dpi=120)
    drawn.subplots_adjust(left=0.09, right=0.8, top=0.93, bottom=0.12)
    axes = drawn.add_subplot()
    methods = [row for row in rows if row.kind == "method" and _has(row, metric) and row.seconds > 0]
    for row in methods:
        own = row.scores[metric]
        color = TIED_COLOR if metric in row.tied else METHOD_COLOR
        if math.isfinite(own.low):
            errors = [[max(0.0, own.mean - own.low)], [max(0.0, own.high - own.mean)]]
            axes.errorbar(row.seconds, own.mean, yerr=errors, color=color, alpha=0.4, linewidth=1.2, zorder=2)
        axes.scatter(row.seconds, own.mean, s=36, color=color, zorder=3)
    axes.set_xscale("log")
    axes.set_xlabel("seconds an image (log)")
    axes.set_ylabel(f"{metric} {arrow(sign)}")
    axes.grid(True, color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if methods:
        low, high = min(row.seconds for row in methods), max(row.seconds for row in methods)
        axes.set_xlim(low / 1.8, high * 1.8 * (high / low) ** 0.2)
    controls = [row for row in rows if row.kind == "control" and _has(row, metric)]
    for row in controls:
        axes.axhline(row.scores[metric].mean, color=CONTROL_COLOR, linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
    if sign < 0:
        axes.invert_yaxis()
    drawn.draw_without_rendering()
    _name_controls(axes, controls, metric)
    _name_methods(axes, methods, metric)
    words = "dark: best, or not told apart from it; bars: 95 % intervals; dashed: controls"
    axes.set_title(words, fontsize=9, color="#555555", loc="left")
    return drawn


def _name_controls(axes: Axes, controls: Sequence[Row], metric: str) -> None:
    """Names right of the axes, at their lines or as near as they fit."""
    where = {row.name: float(axes.transData.transform((1, row.scores[metric].mean))[1]) for row in controls}
    right = float(axes.bbox.x1)
    below = float("inf")
    for name, height in sorted(where.items(), key=lambda item: -item[1]):
        below = min(height, below - LINE)
        _write(axes, name, (right, height), (right + 14, below), CONTROL_COLOR)


def _name_methods(axes: Axes, methods: Sequence[Row], metric: str) -> None:
    """Names beside the points; those of points that lie together stand above one another, in the points' order."""
    points = {}
    for row in methods:
        x, y = axes.transData.transform((row.seconds, row.scores[metric].mean))
        points[row.name] = (float(x), float(y))
    taken = [(x - 5, x + 5, y) for x, y in points.values()]
    for names in _together(points):
        names = sorted(names, key=lambda name: (-round(points[name][1] / LINE), -points[name][0]))
        start = max(points[name][0] for name in names) + (9 if len(names) == 1 else ASIDE)
        stop = start + LETTER * max(len(name) for name in names)
        middle = sum(points[name][1] for name in names) / len(names)
        for step in sorted(range(-12, 13), key=lambda step: (abs(step), -step)):
            top = middle + step * LINE * 0.75 + (len(names) - 1) / 2 * LINE
            heights = [top - place * LINE for place in range(len(names))]
            free = [(begin, end, y) for begin, end, y in taken if start <= end and stop >= begin]
            if all(abs(height - y) >= LINE * 0.9 for height in heights for _, _, y in free):
                break
        for name, height in zip(names, heights, strict=True):
            taken.append((start, stop, height))
            _write(axes, name, points[name], (start, height), "black")


def _together(points: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    """Names of points in groups, from left to right; a point whose name would cover another is in its group."""
    groups: list[list[str]] = []
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1]):
        near = [
            group
            for group in groups
            if any(x - points[one][0] < NEAR and abs(y - points[one][1]) < LINE for one in group)
        ]
        groups = [group for group in groups if group not in near]
        groups.append([*(one for group in near for one in group), name])
    return groups


def _write(axes: Axes, text: str, point: tuple[float, float], place: tuple[float, float], color: str) -> None:
    """A name at a place, with a thin line to its point where it had to move; pixels of the figure."""
    moved = abs(place[1] - point[1]) > LINE / 2 or place[0] - point[0] > ASIDE / 2
    line = (
        {"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.8, "shrinkA": 0, "shrinkB": 2}
        if moved
        else None
    )
    axes.annotate(
        text,
        xy=point,
        xytext=place,
        xycoords="figure pixels",
        textcoords="figure pixels",
        annotation_clip=False,
        fontsize=8,
        color=color,
        va="center",
        arrowprops=line,
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
    )


def maps_figure(shown: Sequence[Shown], names: Sequence[str]) -> ImageArray:
    """The maps: a row for each method, a column for each image, the plain images on top."""
    if not shown:
        raise ValueError("there is nothing to draw: no image was explained")
    panels: list[ImageArray] = []
    titles: list[str] = []
    for image in shown:
        blank = np.zeros(image.image.shape[:2])
        panels.append(_panel(image, blank))
        titles.append(f"{image.name}: {image.caption}")
    for name in names:
        for image in shown:
            found = image.maps.get(name)
            failed = np.full((*image.image.shape[:2], 3), 235, np.uint8)
            panels.append(_panel(image, found) if found is not None else _scaled(failed))
            titles.append(name if found is not None else f"{name}: failed")
    return grid(panels, columns=len(shown), titles=titles)


def _panel(image: Shown, heatmap: np.ndarray) -> ImageArray:
    return render(
        _scaled(image.image),
        np.clip(_scaled(heatmap), 0, 1),
        box_xyxy=None if image.box_xyxy is None else _scaled_box(image.box_xyxy, image.image),
        color_bar=False,
    )


def _scaled(values: np.ndarray) -> np.ndarray:
    from detcam.utils.opencv import cv2

    factor = PANEL / max(values.shape[:2])
    size = (max(1, round(values.shape[1] * factor)), max(1, round(values.shape[0] * factor)))
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR))


def _scaled_box(box_xyxy: tuple[float, float, float, float], image: ImageArray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (value * PANEL / max(image.shape[:2]) for value in box_xyxy)
    return x1, y1, x2, y2


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _has(row: Row, metric: str) -> bool:
    return math.isfinite(row.scores[metric].mean)
