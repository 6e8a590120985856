"""The figures of a benchmark: a metric against cost, and heatmaps."""

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
LINE_HEIGHT, LETTER_WIDTH = 15.0, 7.5
"""Size of the labels, in pixels."""
GROUP_DISTANCE, LABEL_OFFSET = 70.0, 34.0
"""Horizontal distance within which points share a column of labels, and from points to labels, in pixels."""
LABEL_STEPS = 12
"""Positions above and below the points that are tried for a column of labels."""
PANEL_SIZE = 240
"""Longer side of a panel of the heatmap grid, in pixels."""


@dataclass(frozen=True, eq=False)
class FigureImage:
    """An image of the heatmap grid.

    Attributes:
        name: name of the image.
        image: (H, W, 3) uint8.
        caption: the explained target.
        box_xyxy: the target's box in pixels, or None.
        heatmaps: mapping from row name to heatmap (H, W) in [0, 1], without rows that failed on the image.
    """

    name: str
    image: ImageArray
    caption: str
    box_xyxy: tuple[float, float, float, float] | None
    heatmaps: Mapping[str, np.ndarray]


def scatter(rows: Sequence[Row], metric: str, sign: int) -> Figure:
    """Plot a metric against seconds per image, with intervals; controls are horizontal lines.

    Args:
        rows: the rows of a benchmark.
        metric: name of the metric.
        sign: 1 if higher is better, else -1, which inverts the axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120)
    figure.subplots_adjust(left=0.09, right=0.8, top=0.93, bottom=0.12)
    axes = figure.add_subplot()
    methods = [row for row in rows if row.kind == "method" and _has_value(row, metric) and row.seconds > 0]
    for row in methods:
        score = row.scores[metric]
        color = TIED_COLOR if metric in row.tied else METHOD_COLOR
        if math.isfinite(score.low):
            errors = [[max(0.0, score.mean - score.low)], [max(0.0, score.high - score.mean)]]
            axes.errorbar(row.seconds, score.mean, yerr=errors, color=color, alpha=0.4, linewidth=1.2, zorder=2)
        axes.scatter(row.seconds, score.mean, s=36, color=color, zorder=3)
    axes.set_xscale("log")
    axes.set_xlabel("seconds per image (log)")
    axes.set_ylabel(f"{metric} {arrow(sign)}")
    axes.grid(True, color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if methods:
        low, high = min(row.seconds for row in methods), max(row.seconds for row in methods)
        axes.set_xlim(low / 1.8, high * 1.8 * (high / low) ** 0.2)
    controls = [row for row in rows if row.kind == "control" and _has_value(row, metric)]
    for row in controls:
        axes.axhline(row.scores[metric].mean, color=CONTROL_COLOR, linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
    if sign < 0:
        axes.invert_yaxis()
    figure.draw_without_rendering()
    _label_controls(axes, controls, metric)
    _label_methods(axes, methods, metric)
    caption = "dark: best, or not significantly different from it; bars: 95 % intervals; dashed: controls"
    axes.set_title(caption, fontsize=9, color="#555555", loc="left")
    return figure


def _label_controls(axes: Axes, controls: Sequence[Row], metric: str) -> None:
    """Write the names of controls right of the axes, each as close to its line as possible."""
    heights = {row.name: float(axes.transData.transform((1, row.scores[metric].mean))[1]) for row in controls}
    right = float(axes.bbox.x1)
    lowest = float("inf")
    for name, height in sorted(heights.items(), key=lambda item: -item[1]):
        lowest = min(height, lowest - LINE_HEIGHT)
        _write_label(axes, name, (right, height), (right + 14, lowest), CONTROL_COLOR)


def _label_methods(axes: Axes, methods: Sequence[Row], metric: str) -> None:
    """Write the names of methods beside their points; close points share a column of labels in their order."""
    points = {}
    for row in methods:
        x, y = axes.transData.transform((row.seconds, row.scores[metric].mean))
        points[row.name] = (float(x), float(y))
    taken = [(x - 5, x + 5, y) for x, y in points.values()]
    for names in _group_points(points):
        names = sorted(names, key=lambda name: (-round(points[name][1] / LINE_HEIGHT), -points[name][0]))
        start = max(points[name][0] for name in names) + (9 if len(names) == 1 else LABEL_OFFSET)
        stop = start + LETTER_WIDTH * max(len(name) for name in names)
        center = sum(points[name][1] for name in names) / len(names)
        for step in sorted(range(-LABEL_STEPS, LABEL_STEPS + 1), key=lambda step: (abs(step), -step)):
            top = center + step * LINE_HEIGHT * 0.75 + (len(names) - 1) / 2 * LINE_HEIGHT
            heights = [top - index * LINE_HEIGHT for index in range(len(names))]
            overlapping = [y for begin, end, y in taken if start <= end and stop >= begin]
            if all(abs(height - y) >= LINE_HEIGHT * 0.9 for height in heights for y in overlapping):
                break
        for name, height in zip(names, heights, strict=True):
            taken.append((start, stop, height))
            _write_label(axes, name, points[name], (start, height), "black")


def _group_points(points: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    """Group the names of points whose labels would overlap, from left to right."""
    groups: list[list[str]] = []
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1]):
        close = [
            group
            for group in groups
            if any(x - points[other][0] < GROUP_DISTANCE and abs(y - points[other][1]) < LINE_HEIGHT for other in group)
        ]
        groups = [group for group in groups if group not in close]
        groups.append([*(other for group in close for other in group), name])
    return groups


def _write_label(axes: Axes, text: str, point: tuple[float, float], position: tuple[float, float], color: str) -> None:
    """Write a label at a position in figure pixels, with a thin line to its point if it is not beside it."""
    moved = abs(position[1] - point[1]) > LINE_HEIGHT / 2 or position[0] - point[0] > LABEL_OFFSET / 2
    line = (
        {"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.8, "shrinkA": 0, "shrinkB": 2}
        if moved
        else None
    )
    axes.annotate(
        text,
        xy=point,
        xytext=position,
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


def heatmap_grid(images: Sequence[FigureImage], names: Sequence[str]) -> ImageArray:
    """Draw heatmaps in a grid: one row per method below a row of plain images, one column per image.

    Args:
        images: the columns.
        names: names of the rows.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: there are no images.
    """
    if not images:
        raise ValueError("there is nothing to draw: no image was explained")
    panels = [_panel(image, np.zeros(image.image.shape[:2])) for image in images]
    titles = [f"{image.name}: {image.caption}" for image in images]
    for name in names:
        for image in images:
            heatmap = image.heatmaps.get(name)
            if heatmap is None:
                panels.append(_scaled(np.full((*image.image.shape[:2], 3), 235, np.uint8)))
                titles.append(f"{name}: failed")
            else:
                panels.append(_panel(image, heatmap))
                titles.append(name)
    return grid(panels, columns=len(images), titles=titles)


def _panel(image: FigureImage, heatmap: np.ndarray) -> ImageArray:
    return render(
        _scaled(image.image),
        np.clip(_scaled(heatmap), 0, 1),
        box_xyxy=None if image.box_xyxy is None else _scaled_box(image.box_xyxy, image.image),
        color_bar=False,
    )


def _scaled(values: np.ndarray) -> np.ndarray:
    from detcam.utils.opencv import cv2

    factor = PANEL_SIZE / max(values.shape[:2])
    size = (max(1, round(values.shape[1] * factor)), max(1, round(values.shape[0] * factor)))
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR))


def _scaled_box(box_xyxy: tuple[float, float, float, float], image: ImageArray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (value * PANEL_SIZE / max(image.shape[:2]) for value in box_xyxy)
    return x1, y1, x2, y2


def png(figure: Figure) -> bytes:
    """Encode a figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _has_value(row: Row, metric: str) -> bool:
    return math.isfinite(row.scores[metric].mean)
