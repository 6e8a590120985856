"""``detcam audit``: options, and a summary of the audit in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcam.cli.options import (
    OUTPUT,
    TARGETS,
    BatchSize,
    BoxFormat,
    ClassMap,
    FilterOptions,
    Method,
    Out,
    TargetLayer,
    option,
    parse_class_map,
)
from detcam.utils.console import make_console, make_table, printable

if TYPE_CHECKING:
    from detcam.auditing.pipeline import Audit

HELP = "Explain a detector's errors on annotated images, and verify each explanation by removing its evidence."
EPILOG = """
[bold]Results[/bold]

The folder gets index.html, which opens in any browser, audit.json, false_positives.csv, and the false positives as \
COCO annotations for a labeling tool. --resume continues an interrupted audit.

An error is 'confirmed' if it vanishes when its evidence is removed from the image, whatever the fill, and stays when \
control regions of the same size are removed.

[bold]Examples[/bold]

detcam audit --model yolo11n.pt --images val2017/ --annotations instances_val2017.json --out report

detcam audit --model fasterrcnn_resnet50_fpn --weights cells.pth --images cells/ --annotations cells.json \
--class-map "red cell=RBC" --score-threshold 0.5

[bold]Exit codes[/bold]

0 done, 1 some images could not be read, 2 invalid input, 130 interrupted.
"""
MAX_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class AuditOptions(FilterOptions):
    """Options of ``detcam audit``."""

    images: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Folder that contains the annotations' files.")
    ]
    annotations: Annotated[
        Path,
        typer.Option(metavar="FILE", dir_okay=False, help="COCO JSON with boxes, polygons or masks, or a data.yaml."),
    ]
    class_map: ClassMap = None
    box_format: BoxFormat = None
    explain: Annotated[
        int, option(TARGETS, "N", "Number of false positives to explain, highest scores first.", min=0)
    ] = 200
    explain_missed: Annotated[
        int, option(TARGETS, "N", "Number of missed objects to explain, largest first.", min=0)
    ] = 50
    iou_threshold: Annotated[float, option(TARGETS, "0..1", "Minimum IoU of a true positive.", min=0.01, max=1)] = 0.5
    background_threshold: Annotated[
        float, option(TARGETS, "0..1", "Maximum IoU of a background error.", min=0.001, max=1)
    ] = 0.1
    iou_type: Annotated[str, option(TARGETS, "bbox|segm", "Match boxes (bbox) or masks (segm).")] = "bbox"
    method: Method = "portfolio"
    target_layer: TargetLayer = None
    batch_size: BatchSize = None
    out: Out = Path("report")
    resume: Annotated[bool, option(OUTPUT, None, "Continue an interrupted audit in the folder.", "--resume")] = False


# Options that `detcam.audit` takes under the same name.
SHARED = (
    "out",
    "labels",
    "score_threshold",
    "explain",
    "explain_missed",
    "iou_threshold",
    "background_threshold",
    "iou_type",
    "quantity",
    "method",
    "batch_size",
    "resume",
)


def audit_command(options: AuditOptions) -> int:
    """Run an audit and print its summary; return the exit code, 1 if some images could not be read."""
    from detcam.auditing.pipeline import audit
    from detcam.auditing.stages import UNREADABLE

    result = audit(
        options.load(target_layers=options.target_layer),
        options.images,
        options.annotations,
        class_map=parse_class_map(options.class_map or []),
        box_format=options.box_format,
        progress=True,
        model_name=options.model_name,
        **{name: getattr(options, name) for name in SHARED},
    )
    print_summary(result)
    return 1 if result.issues.of(UNREADABLE) else 0


def print_summary(audit: Audit) -> None:
    """Print an audit's error types, groups and data issues."""
    from detcam.auditing.errors import ERROR_TYPES

    console = make_console()
    analysis, counts = audit.analysis, audit.analysis.counts()
    columns = ("cases", "delta AP", "explained", "confirmed")
    table = make_table("error", *columns, right=columns)
    for error_type in ERROR_TYPES:
        cases = [case for case in audit.explained if case.type == error_type]
        confirmed = "-" if error_type == "missed" else str(sum(case.confirmed for case in cases))
        delta_ap = f"{analysis.delta_ap.by_type[error_type]:.3f}"
        table.add_row(error_type, str(counts[error_type]), delta_ap, str(len(cases)), confirmed)
    console.print(f"average precision {analysis.average_precision:.3f}\n")
    console.print(table)
    for title, is_single in (("groups of similar errors", False), ("single cases", True)):
        sentences = [group.sentence for group in audit.groups if (len(group) == 1) == is_single]
        _print_lines(f"{title}, largest delta AP first", sentences)
    for line in audit.issues.summary().splitlines():
        console.print(f"note: {printable(line)}", soft_wrap=True)
    console.print(f"\n{audit.report}  ({audit.seconds:.0f} s)", soft_wrap=True)


def _print_lines(title: str, lines: Sequence[str]) -> None:
    console = make_console()
    if lines:
        console.print(title)
    for line in lines[:MAX_GROUPS]:
        console.print(f"  {printable(line)}", soft_wrap=True)
    if len(lines) > MAX_GROUPS:
        console.print(f"  and {len(lines) - MAX_GROUPS} more in the report")
