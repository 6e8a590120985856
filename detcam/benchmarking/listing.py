"""The registry of metrics as a table: for the terminal, and for the documentation, which quotes it."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detcam.metrics import METRICS, Metric

HEADER = ("Metric", "What it is", "Range", "Better", "Targets", "Asks for", "Paper")
NEEDS = {"model": "passes", "truth": "annotations", "method": "more maps"}
KINDS = ("class", "box", "mask", "embedding")


def rows() -> list[tuple[str, ...]]:
    """Each metric's cells under `HEADER`."""
    found: list[tuple[str, ...]] = []
    for name, metric in METRICS.items():
        low, high = (f"{end:g}" for end in metric.range)
        targets = "all" if set(metric.tasks) == set(KINDS) else ", ".join(k for k in KINDS if k in metric.tasks)
        asks = ", ".join(words for need, words in NEEDS.items() if need in metric.needs) or "nothing"
        better = "higher" if metric.higher_is_better else "lower"
        found.append((name, first_sentence(metric), f"{low} to {high}", better, targets, asks, metric.paper))
    return found


def first_sentence(metric: type[Metric]) -> str:
    """The first line of a metric's docstring, without formula and markup, and without its full stop."""
    line = (metric.__doc__ or "").strip().splitlines()[0]
    line = re.sub(r":? :math:`[^`]*`", "", line)
    line = re.sub(r" \(`\w+`\)", "", line)
    return re.sub(r"[*`]", "", line).rstrip(".")


def print_metrics() -> None:
    """Print the metrics, a paragraph each."""
    console = Console(markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, what, span, better, targets, asks, paper in rows():
        facts = f"{span}, {better} is better; asks for {asks}" + ("" if targets == "all" else f"; {targets} only")
        table.add_row(Text(name, style="bold"), Text.assemble(what, "\n", (f"{facts}\n{paper}", "dim")))
    console.print(table)


def metrics_markdown() -> str:
    """The table in Markdown, papers as links."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for cells in rows():
        title, _, link = cells[-1].rpartition(", https")
        lines.append("| " + " | ".join((f"`{cells[0]}`", *cells[1:-1], f"[{title}](https{link})")) + " |")
    return "\n".join(lines)
