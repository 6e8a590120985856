"""The registries of methods and metrics as tables: for the terminal, and for the documentation, which quotes them."""

from __future__ import annotations

import re
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detcam.cam import TASKS
from detcam.methods import METHODS
from detcam.metrics import METRICS, Metric

METHODS_HEADER = ("method", "use it for", "passes an image", "per finding", "tasks", "paper")
NOTE = "per finding: whether two findings in one image get maps of their own"
PIPED_WIDTH = 400
"""Columns where no terminal sets a limit: every method stays on one line."""


def method_rows() -> list[tuple[str, ...]]:
    """Each method's cells under `METHODS_HEADER`."""
    found: list[tuple[str, ...]] = []
    for name, method in METHODS.items():
        tasks = "all" if method.tasks == TASKS else ", ".join(sorted(method.tasks))
        own = "yes" if method.class_discriminative else "no"
        found.append((name, method.use, method.cost, own, tasks, method.paper))
    return found


def print_methods() -> None:
    """Print the methods: a paragraph each in a terminal, a line each where the output goes on to another program."""
    terminal = sys.stdout.isatty()
    console = Console(markup=False, highlight=False, width=None if terminal else PIPED_WIDTH)
    table = Table(box=None, header_style="bold", pad_edge=False, show_header=not terminal)
    for title in ("", "") if terminal else METHODS_HEADER:
        table.add_column(title, overflow="fold")
    for name, use, cost, own, tasks, paper in method_rows():
        if terminal:
            maps = "a map per finding" if own == "yes" else "one map, whatever is asked"
            facts = f"{cost}; {maps}" + ("" if tasks == "all" else f"; {tasks} only")
            table.add_row(Text(name, style="bold"), Text.assemble(use, "\n", (f"{facts}\n{paper}", "dim")))
        else:
            table.add_row(name, use, cost, own, tasks, paper)
    console.print(table)
    if not terminal:
        console.print(f"\n{NOTE}")


def methods_markdown() -> str:
    """The table in Markdown, papers as links."""
    lines = ["| Method | Use it for | Passes an image | Per finding | Tasks | Paper |", "|---|---|---|---|---|---|"]
    for cells in method_rows():
        title, _, link = cells[-1].rpartition(", http")
        paper = f"[{title}](http{link})" if title else cells[-1]
        lines.append("| " + " | ".join((f"`{cells[0]}`", *cells[1:-1], paper)) + " |")
    return "\n".join(lines)


METRICS_HEADER = ("Metric", "What it is", "Range", "Better", "Targets", "Asks for", "Paper")
NEEDS = {"model": "passes", "truth": "annotations", "method": "more maps"}
KINDS = ("class", "box", "mask", "embedding")


def metric_rows() -> list[tuple[str, ...]]:
    """Each metric's cells under `METRICS_HEADER`."""
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
    for name, what, span, better, targets, asks, paper in metric_rows():
        facts = f"{span}, {better} is better; asks for {asks}" + ("" if targets == "all" else f"; {targets} only")
        table.add_row(Text(name, style="bold"), Text.assemble(what, "\n", (f"{facts}\n{paper}", "dim")))
    console.print(table)


def metrics_markdown() -> str:
    """The table in Markdown, papers as links."""
    lines = ["| " + " | ".join(METRICS_HEADER) + " |", "|" + "---|" * len(METRICS_HEADER)]
    for cells in metric_rows():
        title, _, link = cells[-1].rpartition(", https")
        lines.append("| " + " | ".join((f"`{cells[0]}`", *cells[1:-1], f"[{title}](https{link})")) + " |")
    return "\n".join(lines)
