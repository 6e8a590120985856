"""``detcam benchmark``: methods compared from the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcam.cli.options import Debug, Device, ImageSize, Names, NumClasses, OptionalModel, Trust, Weights

if TYPE_CHECKING:
    from detcam.benchmarking import Benchmark

EPILOG = """
[bold]Results[/bold]

A table on the terminal; in the folder benchmark.md, .csv and .json, scatter.png (the first metric against seconds) \
and maps.png. A run that was interrupted goes on where it stopped; methods and images may be added to a folder, \
other settings need a folder of their own.

Controls that know nothing of the network are rows of every table: random maps, the image's edges, the filled box. \
A method that does not beat the filled box says no more than the detection itself; the notes name it.

[bold]Examples[/bold]

detcam benchmark --model yolo11n.pt --images street/ --methods odam,gradcam,drise:passes=1000

detcam benchmark --model fasterrcnn_resnet50_fpn_v2 --images val/ --annotations val.json --metrics \
insertion,deletion --top-k 2 --limit 50

[bold]Planted causes[/bold]

detcam benchmark --planted --out planted

trains detectors with one shortcut each, certifies their false positives by drawing the scene again without the \
shortcut, and tells how often each method and the audit find it. Training took under two hours of one core; detectors \
and results stay in the folder, and an interrupted run goes on.

[bold]Exit codes[/bold]

0 all images compared, 1 some failed, 2 wrong input or nothing to compare, 130 interrupted.
"""
WHAT, OUTPUT, PLANTED = "What to compare", "Output", "Planted causes"


def benchmark(
    model: OptionalModel = None,
    images: Annotated[
        list[str] | None, typer.Option("--images", metavar="DIR", help="Folder, file or pattern; may be repeated.")
    ] = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    names: Names = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    trust_checkpoint: Trust = False,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            rich_help_panel=WHAT,
            help="Methods with settings, e.g. odam,drise:passes=1000,gradcam:eigen_smooth=true; 'detcam methods' lists "
            "them. Default: a few that suit the model.",
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            rich_help_panel=WHAT,
            help="Metrics with settings, e.g. insertion:steps=10,deletion; 'detcam metrics' lists them. The first one "
            "orders the table.",
        ),
    ] = "insertion,deletion",
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=WHAT,
            help="COCO JSON with what is truly in the images, for metrics of place; only its images are taken.",
        ),
    ] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THEIRS=MODELS",
            rich_help_panel=WHAT,
            help="A category of the annotations and the model's class, where names differ; may be repeated.",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="NAME", rich_help_panel=WHAT, help="Only findings of this class; may be repeated."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=WHAT,
            help="Findings per image, best first. Default: 3 boxes or regions, 1 class.",
        ),
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="0..1", rich_help_panel=WHAT, help="Least score of a finding. Default: 0.3 for boxes."
        ),
    ] = None,
    target_layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", rich_help_panel=WHAT, help="Layer to look at; may be repeated. Default: the methods' own."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", rich_help_panel=WHAT, help="Only the first N images.")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", rich_help_panel=WHAT, help="Rows that know nothing.")
    ] = True,
    seed: Annotated[int, typer.Option(metavar="N", rich_help_panel=WHAT, help="Of controls and bootstrap.")] = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, rich_help_panel=OUTPUT, help="Folder for the results.")
    ] = Path("benchmark"),
    planted: Annotated[
        bool,
        typer.Option(
            "--planted",
            rich_help_panel=PLANTED,
            help="Compare methods on detectors of the package's own instead, which are trained with planted shortcuts.",
        ),
    ] = False,
    family: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=PLANTED,
            help="two-stage, fcos, yolo (the default), two-stage-resnet50, yolo11s; may be repeated.",
        ),
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=PLANTED,
            help="context, far, mark, texture, look-alike; may be repeated. Default: all.",
        ),
    ] = None,
    cases: Annotated[
        int, typer.Option(min=1, metavar="N", rich_help_panel=PLANTED, help="False positives of each, certified.")
    ] = 24,
    effort: Annotated[
        float,
        typer.Option(
            min=0.001, metavar="X", rich_help_panel=PLANTED, help="Factor on the steps of training; below 1 for trials."
        ),
    ] = 1.0,
    debug: Debug = False,
) -> None:
    """Compare methods on images of yours: how faithful their maps are, at what cost, against controls."""
    from detcam.cli.common import load_adapter, one_line_errors

    code = 0
    if planted:
        from detcam.cli.planted import run

        if model is not None or images:
            raise typer.BadParameter("it trains detectors of its own and draws their images", param_hint="--planted")
        with one_line_errors(debug):
            run(out, methods, family, scenario, cases, seed, effort)
        raise typer.Exit(0)
    if model is None or not images:
        raise typer.BadParameter("a model and its images are needed", param_hint="--model, --images")
    with one_line_errors(debug):
        from detcam.benchmarking.compare import benchmark as compare
        from detcam.benchmarking.specs import split_list

        adapter = load_adapter(
            model, weights, num_classes, names, image_size, device, trust_checkpoint, target_layers=target_layer
        )
        found = compare(
            adapter,
            images[0] if len(images) == 1 else images,
            None if methods is None else split_list(methods),
            split_list(metrics),
            annotations,
            out,
            controls=controls,
            top_k=top_k,
            score_threshold=score_threshold,
            labels=classes,
            class_map=read_class_map(class_map or []),
            limit=limit,
            seed=seed,
            title=Path(model).name if weights is None else f"{model} {Path(weights).name}",
            progress=True,
        )
        tell(found, out)
        code = 1 if found.failed or any(row.failed for row in found) else 0
    raise typer.Exit(code)


def read_class_map(pairs: Sequence[str]) -> dict[str | int, str | int] | None:
    """Categories and classes from ``category=class``, by name or number; None where there are none.

    Raises:
        ValueError: no pair.
    """
    found: dict[str | int, str | int] = {}
    for pair in pairs:
        theirs, equals, ours = (part.strip() for part in pair.partition("="))
        if not equals or not theirs or not ours:
            raise ValueError(f"expected --class-map as category=class; got {pair!r}")
        found[theirs] = int(ours) if ours.isdecimal() else ours
    return found or None


def tell(found: Benchmark, out: Path) -> None:
    """Print the table, its legend and the notes."""
    from rich.console import Console

    from detcam.benchmarking.tables import LEGEND, rich_table
    from detcam.cli.common import printable

    # A file or a pipe takes the table as wide as it is; a terminal wraps it.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(rich_table(found.rows, found.signs, printable(found.title)))
    console.print(LEGEND, style="dim", markup=False, highlight=False)
    for note in found.notes:
        console.print(f"* {printable(note)}", markup=False, highlight=False)
    console.print(f"\n{out / 'benchmark.md'}, .csv, .json, scatter.png, maps.png", markup=False, highlight=False)
