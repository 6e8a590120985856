"""The ``detcam`` command as an application of typer: puts the subcommands together."""

from __future__ import annotations

from typing import Annotated

import typer

from detcam.cli import audit, benchmark, compare, demo, doctor, explain, layers, repair, tables
from detcam.cli.command import OneLineErrorGroup, make_callback, show_version

app = typer.Typer(
    cls=OneLineErrorGroup,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True, epilog=explain.EXAMPLES)
def show_help(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Explain object detectors, segmentation networks and classifiers by heatmaps."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for name, options, run, summary, epilog in (
    ("explain", explain.ExplainOptions, explain.explain_command, explain.HELP, explain.EPILOG),
    ("methods", tables.TableOptions, tables.methods_command, tables.METHODS_HELP, None),
    ("metrics", tables.TableOptions, tables.metrics_command, tables.METRICS_HELP, None),
    ("layers", layers.LayersOptions, layers.layers_command, layers.HELP, None),
    ("doctor", doctor.DoctorOptions, doctor.doctor_command, doctor.HELP, None),
    ("demo", demo.DemoOptions, demo.demo_command, demo.HELP, None),
    ("benchmark", benchmark.BenchmarkOptions, benchmark.benchmark_command, benchmark.HELP, benchmark.EPILOG),
    ("audit", audit.AuditOptions, audit.audit_command, audit.HELP, audit.EPILOG),
    ("repair", repair.RepairOptions, repair.repair_command, repair.HELP, repair.EPILOG),
    ("compare", compare.CompareOptions, compare.compare_command, compare.HELP, compare.EPILOG),
):
    app.command(name, help=summary, epilog=epilog)(make_callback(options, run))  # type: ignore[arg-type]
