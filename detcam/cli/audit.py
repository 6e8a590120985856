"""``detcam audit``: the false-positive audit from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcam.cli.options import Debug, Device, ImageSize, Model, Names, NumClasses, Trust, Weights

if TYPE_CHECKING:
    from detcam.auditing.pipeline import Audit

EPILOG = """
[bold]Results[/bold]

The folder gets index.html, which opens from disk in any browser, audit.json, false_positives.csv, and the false \
positives as COCO annotations for a labelling tool. An interrupted audit goes on with --resume.

An error is 'confirmed' when it vanishes once its evidence is taken out of the image, whatever takes its place, and \
stays when other regions of the same size are taken out.

[bold]Examples[/bold]

detcam audit --model yolo11n.pt --images val2017/ --annotations instances_val2017.json --out report

detcam audit --model fasterrcnn_resnet50_fpn --weights cells.pth --images cells/ --annotations cells.json \
--class-map "red cell=RBC" --score-threshold 0.5

[bold]Exit codes[/bold]

0 done, 1 some images could not be read, 2 wrong input, 130 interrupted.
"""
WHAT, HOW, OUTPUT = "What to look at", "How to look at it", "Output"
MOST_GROUPS = 8


def audit(
    model: Model,
    images: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Folder that the annotations' file names start from.")
    ],
    annotations: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, help="COCO JSON with boxes, polygons or masks.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, rich_help_panel=OUTPUT, help="Folder for the report.")
    ] = Path("report"),
    weights: Weights = None,
    num_classes: NumClasses = None,
    names: Names = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    trust_checkpoint: Trust = False,
    class_map: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CATEGORY=CLASS",
            rich_help_panel=WHAT,
            help="What the model calls a category of the annotations, where names differ; may be repeated.",
        ),
    ] = None,
    score_threshold: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=0.999,
            metavar="0..1",
            rich_help_panel=WHAT,
            help="Least score that matters to you: errors at or above it are explained. Average precision counts all.",
        ),
    ] = 0.3,
    explain: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", rich_help_panel=WHAT, help="So many false positives, the highest scores first."
        ),
    ] = 200,
    explain_missed: Annotated[
        int, typer.Option(min=0, metavar="N", rich_help_panel=WHAT, help="So many missed objects, the largest first.")
    ] = 50,
    iou_threshold: Annotated[
        float, typer.Option(min=0.01, max=1, metavar="0..1", rich_help_panel=WHAT, help="Least overlap of a hit.")
    ] = 0.5,
    background_threshold: Annotated[
        float,
        typer.Option(
            min=0.001, max=1, metavar="0..1", rich_help_panel=WHAT, help="Greatest overlap of a detection of nothing."
        ),
    ] = 0.1,
    iou_type: Annotated[
        str, typer.Option(metavar="bbox|segm", rich_help_panel=WHAT, help="Whether boxes or masks are matched.")
    ] = "bbox",
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=HOW, help="What makes the heatmaps; 'detcam methods' lists the choice."
        ),
    ] = "probecam",
    target_layer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", rich_help_panel=HOW, help="Layer to look at instead of the method's own choice."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", rich_help_panel=HOW, help="Images per forward pass.")
    ] = 4,
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=OUTPUT, help="Go on with an interrupted audit in the folder.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Why did it fire there? Name a detector's errors, find what each rests on, and prove it by taking it away."""
    from detcam.cli.common import load_adapter, one_line_errors

    with one_line_errors(debug):
        from detcam.auditing.pipeline import audit as run
        from detcam.auditing.stages import UNREADABLE

        adapter = load_adapter(
            model, weights, num_classes, names, image_size, device, trust_checkpoint, target_layers=target_layer
        )
        found = run(
            adapter,
            images,
            annotations,
            out=out,
            score_threshold=score_threshold,
            explain=explain,
            explain_missed=explain_missed,
            iou_threshold=iou_threshold,
            background_threshold=background_threshold,
            iou_type=iou_type,  # type: ignore[arg-type]
            class_map=parse_class_map(class_map or []),
            method=method,
            batch_size=batch_size,
            resume=resume,
            progress=True,
            model_name=model if weights is None else f"{model} {Path(weights).name}",
        )
        tell(found)
        raise typer.Exit(1 if found.issues.of(UNREADABLE) else 0)


def parse_class_map(pairs: list[str]) -> dict[str | int, str | int]:
    """Categories and classes from ``CATEGORY=CLASS``.

    Raises:
        ValueError: a pair without an equals sign.
    """
    found: dict[str | int, str | int] = {}
    for pair in pairs:
        category, equals, name = (part.strip() for part in pair.partition("="))
        if not equals or not category or not name:
            raise ValueError(f"expected --class-map as CATEGORY=CLASS; got {pair!r}")
        found[category] = name
    return found


def tell(found: Audit) -> None:
    """Print what an audit came to."""
    from rich.console import Console
    from rich.table import Table

    from detcam.auditing.errors import ERROR_TYPES
    from detcam.cli.common import printable

    console = Console(highlight=False, markup=False)
    analysis, counts = found.analysis, found.analysis.counts()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("error")
    for title in ("cases", "AP lost", "explained", "confirmed"):
        table.add_column(title, justify="right")
    for kind in ERROR_TYPES:
        own = [case for case in found.explained if case.type == kind]
        tested = "-" if kind == "missed" else str(sum(case.verdict == "confirmed" for case in own))
        table.add_row(kind, str(counts[kind]), f"{analysis.delta_ap.by_type[kind]:.3f}", str(len(own)), tested)
    console.print(f"average precision {analysis.average_precision:.3f}\n")
    console.print(table)
    shown = found.groups[:MOST_GROUPS]
    if shown:
        console.print("\nshared causes, the costliest first")
        for group in shown:
            console.print(f"  {printable(group.sentence)}", soft_wrap=True)
        if len(found.groups) > len(shown):
            console.print(f"  and {len(found.groups) - len(shown)} more in the report")
    for line in found.issues.summary().splitlines():
        console.print(f"note: {printable(line)}", soft_wrap=True)
    console.print(f"\n{found.report}  ({found.seconds:.0f} s)", soft_wrap=True)
