"""The result of a benchmark: its rows, its notes, and the files made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from detcam.benchmarking import plots, tables
from detcam.benchmarking.conclusions import recommend
from detcam.benchmarking.statistics import Row
from detcam.utils.console import plural
from detcam.utils.files import replace_file, utf8_bytes, with_home
from detcam.utils.markdown import plain_line
from detcam.visualize.convert import ImageArray
from detcam.visualize.overlay import to_png_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BENCHMARK_SCHEMA, BENCHMARK_VERSION = "detcam.benchmark", 2


@dataclass(frozen=True)
class Benchmark(Sequence[Row]):
    """The result of `detcam.benchmark`: a sequence of rows, methods before controls, best first by the first metric.

    Attributes:
        rows: one row per method and control.
        signs: mapping from metric to 1 if higher is better, else -1, in the order of the columns.
        notes: conclusions from the numbers, and what was excluded, as sentences.
        model: name of the model.
        reference: the control that methods are compared with.
        images: number of explained images.
        targets: number of explained predictions in them.
        images_without_predictions: names of the images in which the model predicts nothing.
        failed: mapping from image name to error message.
        figure_images: the first images with their heatmaps.
        computed: number of results that were computed in this run; the others were read from the folder.
    """

    rows: tuple[Row, ...]
    signs: Mapping[str, int]
    notes: tuple[str, ...]
    model: str
    reference: str
    images: int
    targets: int
    images_without_predictions: tuple[str, ...]
    failed: Mapping[str, str]
    figure_images: tuple[plots.FigureImage, ...] = ()
    computed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[index]

    def row(self, name: str) -> Row:
        """Return the row of a method or control.

        Raises:
            ValueError: there is no such row.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"expected one of {', '.join(row.name for row in self.rows)}; got {name!r}")

    @property
    def title(self) -> str:
        """The name of the model and the numbers of predictions and images."""
        return f"{self.model}: {plural(self.targets, 'prediction')} in {plural(self.images, 'image')}"

    def recommend(self, metric: str | None = None) -> tuple[Row, str]:
        """Recommend the cheapest of the methods that are as good as the best one.

        Args:
            metric: the metric that decides; None takes the first one.

        Returns:
            The row of the method, and the reason as a sentence.

        Raises:
            ValueError: the metric was not measured, or no method has a value.
        """
        metric = self._check_metric(metric)
        return recommend(self.rows, metric, self.signs[metric], self.reference)

    def to_text(self, width: int | None = None) -> str:
        """Format the table as in the terminal, without colors; `width` is in characters."""
        return tables.terminal_text(self.rows, self.signs, self.title, width)

    def to_markdown(self) -> str:
        """Format the table, its legend and the notes in Markdown."""
        notes = "".join(f"* {plain_line(note)}\n" for note in self.notes)
        return (
            f"**{plain_line(self.title)}**\n\n{tables.markdown_text(self.rows, self.signs)}\n{tables.LEGEND}\n\n{notes}"
        )

    def to_csv(self) -> str:
        """Format the rows as CSV."""
        return tables.csv_text(self.rows, self.signs)

    def to_json(self) -> str:
        """Format rows, notes and counts as JSON (see docs/choosing-a-method.md)."""
        header = {
            "schema": BENCHMARK_SCHEMA,
            "version": BENCHMARK_VERSION,
            "model": self.model,
            "metrics": {metric: "higher" if sign > 0 else "lower" for metric, sign in self.signs.items()},
            "images": self.images,
            "targets": self.targets,
            "images_without_predictions": list(self.images_without_predictions),
            "failed": dict(self.failed),
            "notes": list(self.notes),
        }
        return tables.json_text(self.rows, self.signs, header)

    def scatter(self, metric: str | None = None) -> Figure:
        """Plot a metric (None: the first one) against seconds per image."""
        metric = self._check_metric(metric)
        return plots.scatter(self.rows, metric, self.signs[metric])

    def grid(self) -> ImageArray:
        """Draw the heatmaps of the first images as an (H, W, 3) uint8 array."""
        return plots.heatmap_grid(self.figure_images, [row.name for row in self.rows])

    def save(self, folder: str | Path) -> list[Path]:
        """Write benchmark.csv, .json, .md, scatter.png and maps.png into a folder and return their paths."""
        folder = with_home(folder)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "benchmark.md": utf8_bytes(self.to_markdown()),
            "benchmark.csv": utf8_bytes(self.to_csv()),
            "benchmark.json": utf8_bytes(self.to_json()),
            "scatter.png": plots.png(self.scatter()),
        }
        if self.figure_images:
            contents["maps.png"] = to_png_bytes(self.grid())
        return [replace_file(folder / name, content) for name, content in contents.items()]

    def _check_metric(self, metric: str | None) -> str:
        if metric is not None and metric not in self.signs:
            raise ValueError(f"expected one of the metrics {', '.join(self.signs)}; got {metric!r}")
        return metric or next(iter(self.signs))
