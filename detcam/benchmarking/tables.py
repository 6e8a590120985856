"""The rows of a benchmark as a table in the terminal, in Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detcam.benchmarking.statistics import Estimate, Row
from detcam.utils.console import make_table
from detcam.utils.files import csv_cell, json_number
from detcam.utils.markdown import markdown_table, plain_line

if TYPE_CHECKING:
    from rich.table import Table

COST_COLUMNS = ("passes", "backward", "seconds", "MiB")
DEFAULT_WIDTH = 120
"""Characters per line of a table as text."""
LEGEND = (
    "bold: the best method, or not significantly different from it (paired bootstrap over images, 95 %). "
    "passes: computing work per image in units of one prediction; backward: autograd calls per image; "
    "seconds: median per image; MiB: greatest increase of memory."
)


def sort_rows(rows: Sequence[Row], metric: str, sign: int) -> list[Row]:
    """Sort rows: methods before controls, each from best to worst, rows without a value last."""

    def key(row: Row) -> tuple[bool, bool, float]:
        mean = row.scores[metric].mean
        return row.kind == "control", math.isnan(mean), 0.0 if math.isnan(mean) else -sign * mean

    return sorted(rows, key=key)


def _columns(signs: Mapping[str, int]) -> list[str]:
    return ["method", *(f"{metric} {arrow(sign)}" for metric, sign in signs.items()), *COST_COLUMNS]


def rich_table(rows: Sequence[Row], signs: Mapping[str, int], title: str) -> Table:
    """Make the table for a terminal: each cell is a mean above its interval, a line separates the controls."""
    from rich.text import Text

    columns = _columns(signs)
    table = make_table(*columns, title=title, right=columns[1:])
    for column in (table.columns[0], *table.columns[-len(COST_COLUMNS) :]):
        column.no_wrap = True
    for index, row in enumerate(rows):
        cells = [Text(row.name, style="" if row.kind == "method" else "italic")]
        for metric in signs:
            score = row.scores[metric]
            style = "bold green" if metric in row.tied else ""
            cells.append(Text.assemble((format_number(score.mean), style), (f"\n{format_interval(score)}", "dim")))
        cells += [Text(text) for text in format_costs(row)]
        ends_section = index + 1 < len(rows) and rows[index + 1].kind != row.kind
        table.add_row(*cells, end_section=ends_section)
    return table


def terminal_text(rows: Sequence[Row], signs: Mapping[str, int], title: str, width: int | None = None) -> str:
    """Format the terminal's table as plain text."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=width or DEFAULT_WIDTH, color_system=None)
    console.print(rich_table(rows, signs, title))
    return stream.getvalue()


def markdown_text(rows: Sequence[Row], signs: Mapping[str, int]) -> str:
    """Format the table in Markdown."""
    columns = [plain_line(column) for column in _columns(signs)]
    return markdown_table(columns, [_markdown_cells(row, signs) for row in rows], right=columns[1:]) + "\n"


def _markdown_cells(row: Row, signs: Mapping[str, int]) -> list[str]:
    name = plain_line(row.name)
    cells = [name if row.kind == "method" else f"*{name}*"]
    for metric in signs:
        score = row.scores[metric]
        mean = f"**{format_number(score.mean)}**" if metric in row.tied else format_number(score.mean)
        cells.append(f"{mean} {format_interval(score)}".strip())
    return [*cells, *format_costs(row)]


def csv_text(rows: Sequence[Row], signs: Mapping[str, int]) -> str:
    """Format the rows as CSV with a header; undefined values are empty cells."""
    records = [dict(_fields(row, signs)) for row in rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(records[0]) if records else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in record.items()} for record in records)
    return stream.getvalue()


def json_text(rows: Sequence[Row], signs: Mapping[str, int], header: Mapping[str, Any]) -> str:
    """Format a header and the rows as JSON; undefined values are null."""
    content = {**header, "rows": [dict(_fields(row, signs)) for row in rows]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def _fields(row: Row, signs: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    yield "method", row.name
    yield "kind", row.kind
    for metric in signs:
        score = row.scores[metric]
        yield metric, json_number(score.mean)
        yield f"{metric} low", json_number(score.low)
        yield f"{metric} high", json_number(score.high)
        yield f"{metric} images", score.images
        yield f"{metric} targets", score.targets
        yield f"{metric} undefined", score.undefined
        yield f"{metric} best", int(metric in row.tied)
    yield "passes", json_number(row.passes)
    yield "backward", json_number(row.backward)
    yield "seconds", json_number(row.seconds)
    yield "peak_mib", json_number(row.peak_mib)
    yield "failed", row.failed


def arrow(sign: int) -> str:
    """An arrow up if higher is better, else down."""
    return "↑" if sign > 0 else "↓"


def format_number(value: float) -> str:
    """Format a number with three digits; a dash if it is not finite."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def format_interval(score: Estimate) -> str:
    """Format the interval of a mean; empty if there is none."""
    return f"[{format_number(score.low)}, {format_number(score.high)}]" if math.isfinite(score.low) else ""


def format_costs(row: Row) -> list[str]:
    """Format the cells of `COST_COLUMNS`."""
    if row.kind == "control":
        return ["-"] * len(COST_COLUMNS)
    return [
        _format_cost(row.passes, 1, 100),
        _format_cost(row.backward, 0, 100),
        _format_cost(row.seconds, 2, 10),
        _format_cost(row.peak_mib, 0, 100),
    ]


def _format_cost(value: float, decimals: int, large: float) -> str:
    """Format a cost with some decimals, or none from `large` on."""
    return "-" if math.isnan(value) else f"{value:.{decimals if value < large else 0}f}"
