"""``detcam benchmark --planted``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detcam.benchmarking.planted.run import METHODS, benchmark_planted
from detcam.benchmarking.planted.tables import markdown, rich_tables
from detcam.benchmarking.specs import split_list
from detcam.synthetic.shortcuts import SCENARIOS, ScenarioName
from detcam.utils.files import replace_file


def run(
    out: Path,
    methods: str | None,
    family_names: Sequence[str] | None,
    scenarios: Sequence[str] | None,
    cases: int,
    seed: int,
    effort: float,
) -> None:
    """Run the planted benchmark, print its tables, and write ``planted.md`` beside ``planted.json``.

    Raises:
        ValueError: a family, scenario or method that there is not, or results of other settings in the folder.
    """
    errors = Console(stderr=True)
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def trained(name: str, step: int, steps: int) -> None:
            bar.update(task, description=f"training {name}", completed=step, total=steps)

        def on_progress(what: str) -> None:
            bar.update(task, description=what, completed=0, total=None)

        found = benchmark_planted(
            out,
            METHODS if methods is None else split_list(methods),
            family_names=family_names or None,
            scenarios=cast(Sequence[ScenarioName], scenarios or SCENARIOS),
            cases=cases,
            seed=seed,
            effort=effort,
            trained=trained,
            on_progress=on_progress,
        )
    replace_file(out / "planted.md", markdown(found).encode())
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for table in rich_tables(found):
        console.print(table)
    console.print(f"{out / 'planted.md'}, planted.json, detectors/", markup=False, highlight=False)
