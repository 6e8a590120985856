"""``detcam methods`` and ``detcam metrics``: tables of the registries, which README and docs/metrics.md quote."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcam.cli.options import CommonOptions
from detcam.utils.console import make_console, make_table
from detcam.utils.markdown import markdown_table

if TYPE_CHECKING:
    from detcam.cam import BaseCAM
    from detcam.metrics import Metric

METHODS_HELP = "List the methods: when to use them, their cost, and their papers."
METRICS_HELP = "List the metrics of 'detcam benchmark': their range, their inputs, and their papers."

METHOD_COLUMNS = ("Method", "Use it for", "Passes an image", "Per target", "Tasks", "Paper")
METRIC_COLUMNS = ("Metric", "Definition", "Range", "Better", "Targets", "Needs", "Paper")
NEEDS = {"model": "passes", "truth": "annotations", "method": "more maps"}
SHOWN_TARGET_KINDS = ("class", "box", "mask", "embedding")
ROWS_FILE = Path(__file__).with_name("rows.json")
"""The rows of the package's own methods and metrics; ``python -m detcam.cli.tables`` writes it."""
NOTE = "Per target: whether two targets in one image get different maps."


@dataclass(frozen=True, kw_only=True)
class TableOptions(CommonOptions):
    """Options of ``detcam methods`` and ``detcam metrics``."""

    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False


def methods_command(options: TableOptions) -> int:
    """Print the methods; return the exit code."""
    rows = _rows("methods")
    facts = [
        f"{cost}; {'one map per target' if per_target == 'yes' else 'one map for all targets'}"
        + ("" if tasks == "all" else f"; {tasks} only")
        for _, _, cost, per_target, tasks, _ in rows
    ]
    _print(METHOD_COLUMNS, rows, facts, NOTE, markdown=options.markdown)
    return 0


def metrics_command(options: TableOptions) -> int:
    """Print the metrics; return the exit code."""
    rows = _rows("metrics")
    facts = [
        f"{span}, {better} is better; needs {needs}" + ("" if targets == "all" else f"; {targets} only")
        for _, _, span, better, targets, needs, _ in rows
    ]
    _print(METRIC_COLUMNS, rows, facts, markdown=options.markdown)
    return 0


def registered_rows() -> dict[str, list[tuple[str, ...]]]:
    """Return the rows of all methods and metrics, which imports every one of them."""
    from detcam.methods import METHODS
    from detcam.metrics import METRICS

    return {
        "methods": [method_row(name, method) for name, method in METHODS.items()],
        "metrics": [metric_row(name, metric) for name, metric in METRICS.items()],
    }


def _rows(kind: str) -> list[tuple[str, ...]]:
    """The rows of ``methods`` or ``metrics``: from a file, without PyTorch, unless others are registered."""
    stored = [tuple(row) for row in json.loads(ROWS_FILE.read_text(encoding="utf-8"))[kind]]
    registry = getattr(sys.modules.get(f"detcam.{kind}"), kind.upper(), None)  # None: nothing has registered any
    is_extended = registry is not None and list(registry) != [name for name, *_ in stored]
    return registered_rows()[kind] if is_extended or entry_points(group=f"detcam.{kind}") else stored


def method_row(name: str, method: type[BaseCAM]) -> tuple[str, ...]:
    """Return a method's cells under `METHOD_COLUMNS`."""
    from detcam.cam import BaseCAM

    tasks = "all" if method.tasks == BaseCAM.tasks else ", ".join(sorted(method.tasks))
    return name, method.use, method.cost, "yes" if method.class_discriminative else "no", tasks, method.paper


def metric_row(name: str, metric: type[Metric]) -> tuple[str, ...]:
    """Return a metric's cells under `METRIC_COLUMNS`."""
    low, high = (f"{end:g}" for end in metric.range)
    targets = (
        "all"
        if set(metric.tasks) == set(SHOWN_TARGET_KINDS)
        else ", ".join(k for k in SHOWN_TARGET_KINDS if k in metric.tasks)
    )
    needs = ", ".join(words for need, words in NEEDS.items() if need in metric.needs) or "nothing"
    better = "higher" if metric.higher_is_better else "lower"
    return name, summary_line(metric), f"{low} to {high}", better, targets, needs, metric.paper


def summary_line(metric: type[Metric]) -> str:
    """Return the first line of a metric's docstring without formula, markup and full stop."""
    line = (metric.__doc__ or metric.name).strip().splitlines()[0]
    line = re.sub(r":? :math:`[^`]*`", "", line)
    line = re.sub(r" \(`\w+`\)", "", line)
    return re.sub(r"[*`]", "", line).rstrip(".")


def _paper_link(paper: str) -> str:
    title, _, link = paper.rpartition(", http")
    return f"[{title}](http{link})" if title else paper


def _print(
    columns: Sequence[str], rows: Sequence[tuple[str, ...]], facts: Sequence[str], note: str = "", *, markdown: bool
) -> None:
    """Print a paragraph per row in a terminal, a line per row elsewhere, or a Markdown table with links to papers."""
    from rich.text import Text

    if markdown:
        print(markdown_table(columns, [(f"`{name}`", *cells, _paper_link(paper)) for name, *cells, paper in rows]))
        return
    console = make_console()
    if not sys.stdout.isatty():
        table = make_table(*columns)
        for row in rows:
            table.add_row(*row)
    else:
        table = make_table(columns[0], columns[1])
        for (name, summary, *_, paper), line in zip(rows, facts, strict=True):
            table.add_row(Text(name, style="bold"), Text.assemble(summary, "\n", (f"{line}\n{paper}", "dim")))
    console.print(table)
    if note:
        console.print(note)


if __name__ == "__main__":
    ROWS_FILE.write_text(json.dumps(registered_rows(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
