"""``detcam benchmark --planted``: the planted benchmark with a progress bar and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from detcam.utils.console import make_console
from detcam.utils.files import replace_file

if TYPE_CHECKING:
    from detcam.cli.benchmark import BenchmarkOptions


def planted_command(options: BenchmarkOptions) -> None:
    """Run the planted benchmark, print its tables, and write ``planted.md`` next to ``planted.json``.

    The rows of explainers are printed only; without other methods, nothing but the detectors is written.

    Raises:
        ValueError: a family, scenario, method or explainer does not exist, or the folder holds results of other
            settings.
    """
    from detcam.benchmarking.planted.explainers import load_explainer
    from detcam.benchmarking.planted.run import DEFAULT_PLANTED_METHODS, benchmark_planted
    from detcam.benchmarking.planted.tables import markdown_tables, rich_tables
    from detcam.benchmarking.specs import split_list
    from detcam.synthetic.shortcut_scenarios import FIRST_SCENARIOS, ScenarioName

    explainers = {spec: load_explainer(spec) for spec in options.explainer or []}
    methods: Sequence[str] = () if explainers else DEFAULT_PLANTED_METHODS
    if options.methods is not None:
        methods = split_list(options.methods)
    result = benchmark_planted(
        options.out,
        methods,
        explainers=explainers,
        audit=not explainers,
        family_names=options.family or None,
        scenarios=cast("Sequence[ScenarioName]", options.scenario or FIRST_SCENARIOS),
        cases=options.cases,
        seed=options.seed,
        effort=options.effort,
        progress=True,
    )
    console = make_console()
    for table in rich_tables(result):
        console.print(table)
    if explainers and not methods:
        return
    replace_file(options.out / "planted.md", markdown_tables(result).encode())
    console.print(f"{options.out / 'planted.md'}, planted.json, detectors/")
