"""The registry of methods as a table: for the terminal, and for the README, which quotes it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detcam.cam import TASKS
from detcam.methods import METHODS

HEADER = ("method", "use it for", "passes a picture", "per finding", "tasks", "paper")
NOTE = "per finding: whether two findings in one picture get maps of their own"
PIPED_WIDTH = 400
"""Columns where no terminal sets a limit: every method stays on one line."""


def rows() -> list[tuple[str, ...]]:
    """Each method's cells under `HEADER`."""
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
    for title in ("", "") if terminal else HEADER:
        table.add_column(title, overflow="fold")
    for name, use, cost, own, tasks, paper in rows():
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
    lines = ["| Method | Use it for | Passes a picture | Per finding | Tasks | Paper |", "|---|---|---|---|---|---|"]
    for cells in rows():
        title, _, link = cells[-1].rpartition(", http")
        paper = f"[{title}](http{link})" if title else cells[-1]
        lines.append("| " + " | ".join((f"`{cells[0]}`", *cells[1:-1], paper)) + " |")
    return "\n".join(lines)
