"""A benchmark's rows as a table: in the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detcam.benchmarking.statistics import Estimate, Row
from detcam.utils.files import number

COSTS = ("passes", "backward", "seconds", "MiB")
LEGEND = (
    "bold: the best method, or not told apart from it (paired bootstrap over images, 95 %). "
    "passes: computing work for one image in units of one plain pass; backward: calls of autograd; "
    "seconds: median for one image; MiB: greatest rise of memory."
)


def in_order(rows: Sequence[Row], metric: str, sign: int) -> list[Row]:
    """Methods, best first, then controls, best first; rows without a value last."""

    def key(row: Row) -> tuple[bool, bool, float]:
        mean = row.scores[metric].mean
        return row.kind == "control", math.isnan(mean), 0.0 if math.isnan(mean) else -sign * mean

    return sorted(rows, key=key)


def rich_table(rows: Sequence[Row], signs: Mapping[str, int], title: str) -> Table:
    """The table for a terminal: a mean over its interval in each cell, controls below a line."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for metric, sign in signs.items():
        table.add_column(f"{metric} {arrow(sign)}", justify="right")
    for name in COSTS:
        table.add_column(name, justify="right", no_wrap=True)
    ordered = list(rows)
    for place, row in enumerate(ordered):
        cells = [Text(row.name, style="" if row.kind == "method" else "italic")]
        for metric in signs:
            own = row.scores[metric]
            style = "bold green" if metric in row.tied else ""
            cells.append(Text.assemble((figure(own.mean), style), (f"\n{interval(own)}", "dim")))
        cells += [Text(text) for text in costs(row)]
        ends = place + 1 < len(ordered) and ordered[place + 1].kind != row.kind
        table.add_row(*cells, end_section=ends)
    return table


def terminal_text(rows: Sequence[Row], signs: Mapping[str, int], title: str, width: int | None = None) -> str:
    """The terminal's table as plain text."""
    console = Console(file=io.StringIO(), width=width or 120, color_system=None)
    console.print(rich_table(rows, signs, title))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def markdown(rows: Sequence[Row], signs: Mapping[str, int]) -> str:
    """The table in Markdown."""
    header = ["method", *(f"{metric} {arrow(sign)}" for metric, sign in signs.items()), *COSTS]
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for row in rows:
        cells = [row.name if row.kind == "method" else f"*{row.name}*"]
        for metric in signs:
            own = row.scores[metric]
            mean = f"**{figure(own.mean)}**" if metric in row.tied else figure(own.mean)
            cells.append(f"{mean} {interval(own)}".strip())
        lines.append(_line([*cells, *costs(row)]))
    return "\n".join(lines) + "\n"


def csv_text(rows: Sequence[Row], signs: Mapping[str, int]) -> str:
    """One line a row, with a header; empty cells are values that do not exist."""
    records = [dict(_flat(row, signs)) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]) if records else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in record.items()} for record in records)
    return out.getvalue()


def json_text(rows: Sequence[Row], signs: Mapping[str, int], more: Mapping[str, Any]) -> str:
    """Rows and what else is known, as JSON; null where a value does not exist."""
    content = {**more, "rows": [dict(_flat(row, signs)) for row in rows]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def _flat(row: Row, signs: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    yield "method", row.name
    yield "kind", row.kind
    for metric in signs:
        own = row.scores[metric]
        yield metric, number(own.mean)
        yield f"{metric} low", number(own.low)
        yield f"{metric} high", number(own.high)
        yield f"{metric} images", own.images
        yield f"{metric} targets", own.targets
        yield f"{metric} undefined", own.undefined
        yield f"{metric} best", int(metric in row.tied)
    yield "passes", number(row.passes)
    yield "backward", number(row.backward)
    yield "seconds", number(row.seconds)
    yield "peak_mib", number(row.peak_mib)
    yield "failed", row.failed


def arrow(sign: int) -> str:
    """Which way is better."""
    return "↑" if sign > 0 else "↓"


def figure(value: float) -> str:
    """A number with three figures; a dash where there is none."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def interval(own: Estimate) -> str:
    """The interval, or nothing where there is none."""
    return f"[{figure(own.low)}, {figure(own.high)}]" if math.isfinite(own.low) else ""


def costs(row: Row) -> list[str]:
    """The cells of `COSTS`."""
    if row.kind == "control":
        return ["-"] * len(COSTS)
    return [
        _amount(row.passes, 1, 100),
        _amount(row.backward, 0, 100),
        _amount(row.seconds, 2, 10),
        _amount(row.peak_mib, 0, 100),
    ]


def _amount(value: float, digits: int, large: float) -> str:
    """A number with so many digits after the point, or none where it is large."""
    return "-" if math.isnan(value) else f"{value:.{digits if value < large else 0}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
