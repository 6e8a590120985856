"""``detcam repair``: a recommended action for each group of an audit, and the files to act on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from detcam.cli.options import OUTPUT, CommonOptions, Out, option
from detcam.utils.console import make_console, make_table, printable

HELP = "Write files to repair the errors of an audit: relabel queues, counterfactual training pairs, hard negatives."
EPILOG = """
[bold]Results[/bold]

README.md and repair.json name the action for each group. relabel/ has possible missing annotations, and boxes/ boxes \
that differ from the annotations, for CVAT, Label Studio and COCO tools, highest gain first. counterfactual/, \
hard-negatives/ and missed/ have training sets in COCO's and YOLO's format. They contain the audited images: audit the \
repaired model on others.

[bold]Examples[/bold]

detcam repair report --out repair --images train2017/

[bold]Exit codes[/bold]

0 done, 2 invalid input, 130 interrupted.
"""

MAX_TABLE_WIDTH = 100
"""Maximum width of the table, whose sentences are wrapped also where the output is a file."""


@dataclass(frozen=True, kw_only=True)
class RepairOptions(CommonOptions):
    """Options of ``detcam repair``."""

    report: Annotated[Path, typer.Argument(metavar="REPORT", help="Folder of an audit's report.", file_okay=False)]
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Folder of the original images. Default: the JPEG images of the report.",
        ),
    ] = None
    transplants: Annotated[
        int, option(OUTPUT, "N", "Images into which the evidence of each error is transplanted.", min=0)
    ] = 3
    seed: Annotated[int, option(OUTPUT, "N", "Seed of the images and positions of transplants.", min=0)] = 0
    out: Out = Path("repair")

    def check_paths(self) -> None:
        """Check that the report exists; the base class has the errors."""
        from detcam.utils.files import check_report

        check_report(self.report)


def repair_command(options: RepairOptions) -> int:
    """Write the remedies of an audit and print them."""
    from detcam.auditing.remedies import repair

    repaired = repair(
        options.report, options.out, images=options.images, transplants=options.transplants, seed=options.seed
    )
    console = make_console()
    table = make_table("group", "action", "cases", "delta AP", "errors", right=("group", "cases", "delta AP"))
    for remedy in repaired.remedies:
        cost = f"{remedy.delta_ap:.3f}" if remedy.delta_ap == remedy.delta_ap else "-"
        number = "-" if remedy.group is None else str(remedy.group)
        table.add_row(number, remedy.action, str(len(remedy.case_ids)), cost, printable(remedy.sentence))
    console.print(table, width=min(console.width, MAX_TABLE_WIDTH))
    console.print(f"\n{options.out / 'README.md'}", soft_wrap=True)
    return 0
