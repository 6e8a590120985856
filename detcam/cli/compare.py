"""``detcam compare``: what changed between two audits, with exit codes for continuous integration."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcam.cli.options import OUTPUT, CommonOptions, Out, option
from detcam.utils.console import make_console, make_table, printable

if TYPE_CHECKING:
    from detcam.auditing.comparison import AuditComparison

HELP = "Compare two audits of the same images: errors and causes that are new, fixed or unchanged."
EPILOG = """
[bold]Results[/bold]

The folder gets index.html, which shows the heatmaps of both audits side by side, and comparison.json. A cause is \
new, gone, grown or shrunk if an exact test over images finds its number of errors changed, with at most 5 % \
probability that any cause is called changed by chance.

[bold]Examples[/bold]

detcam compare report-v1 report-v2 --out comparison

detcam compare report-v1 report-v2 --fail-on new-cause --fail-on ap:0.01

[bold]Exit codes[/bold]

0 done, 2 invalid input, 3 a condition of --fail-on holds, 130 interrupted.
"""
FAILURE = 3
"""Exit code if a condition of ``--fail-on`` holds."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(CommonOptions):
    """Options of ``detcam compare``."""

    old: Annotated[Path, typer.Argument(metavar="OLD", help="Folder of the old audit's report.", file_okay=False)]
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the new audit's report.", file_okay=False)]
    out: Out = Path("comparison")
    fail_on: Annotated[
        list[str] | None,
        option(
            OUTPUT,
            "CONDITION",
            "Exit with 3 if it holds: 'new-cause', or 'ap:0.01', average precision falls by more than 0.01; "
            "repeatable.",
        ),
    ] = None

    def check_paths(self) -> None:
        """Check that both reports exist; the base class has the errors."""
        from detcam.utils.files import check_report

        for folder in (self.old, self.new):
            check_report(folder)


def compare_command(options: CompareOptions) -> int:
    """Compare two audits and print a summary; return the exit code."""
    conditions = [parse_condition(text) for text in options.fail_on or []]
    from detcam.auditing.comparison import compare_audits

    comparison = compare_audits(options.old, options.new, out=options.out)
    print_comparison(comparison)
    failures = [reason for max_drop in conditions if (reason := failure(comparison, max_drop))]
    for reason in failures:
        make_console().print(f"--fail-on: {reason}", soft_wrap=True)
    return FAILURE if failures else 0


def parse_condition(text: str) -> float | None:
    """Parse a condition: the maximum fall of average precision, or None for ``new-cause``.

    Raises:
        ValueError: the text is no condition.
    """
    if text == "new-cause":
        return None
    kind, _, value = text.partition(":")
    try:
        drop = float(value)
    except ValueError:
        drop = -1.0
    if kind != "ap" or not 0 <= drop < 1:
        raise ValueError(f"expected --fail-on new-cause, or ap: and a number from 0 to 1 such as ap:0.01; got {text!r}")
    return drop


def failure(comparison: AuditComparison, max_drop: float | None) -> str:
    """Return why a condition holds, or an empty text."""
    if max_drop is None:
        names = [change.cause.name for change in comparison.causes_with("new")]
        return f"new cause: {printable('; '.join(names))}" if names else ""
    if -comparison.delta_average_precision > max_drop:
        return f"average precision fell by {-comparison.delta_average_precision:.3f}, more than {max_drop:g}"
    return ""


def print_comparison(comparison: AuditComparison) -> None:
    """Print the summary of a comparison, its causes and types."""
    console = make_console()
    for line in comparison.headline():
        console.print(printable(line), soft_wrap=True)
    columns = ("old", "new", "difference", "delta AP")
    table = make_table("cause", "status", *columns, right=columns)
    for change in comparison.causes:
        low, high = change.difference_interval
        cost = f"{change.old_delta_ap:.3f} to {change.new_delta_ap:.3f}" if isfinite(change.new_delta_ap) else "-"
        counts = str(change.old_count), str(change.new_count), f"{low:+.0f} to {high:+.0f}"
        table.add_row(printable(change.cause.name), change.status, *counts, cost)
    if comparison.causes:
        console.print()
        console.print(table)
        console.print(
            "difference: 95 % interval of this cause alone; status: a test corrected for the number of causes",
            soft_wrap=True,
        )
    types = make_table("error", *columns[:2], "delta AP", "change", right=columns)
    for kind in comparison.types:
        low, high = kind.delta_ap_interval
        costs = (f"{kind.old_delta_ap:.3f} to {kind.new_delta_ap:.3f}", f"{low:+.3f} to {high:+.3f}")
        types.add_row(kind.type, str(kind.old_count), str(kind.new_count), *(costs if isfinite(low) else ("-", "-")))
    console.print()
    console.print(types)
    console.print(f"\n{comparison.report}", soft_wrap=True)
