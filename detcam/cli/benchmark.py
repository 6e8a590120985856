"""``detcam benchmark``: options, and the table in the terminal."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcam.cli.options import (
    METHOD,
    TARGETS,
    BatchSize,
    BoxFormat,
    ClassMap,
    EngineOptions,
    Model,
    Out,
    SelectionOptions,
    TargetLayer,
    option,
    parse_class_map,
)
from detcam.utils.console import make_console, printable

if TYPE_CHECKING:
    from detcam.benchmarking import Benchmark

PLANTED = "Planted causes"

HELP = "Compare methods on your images: how faithful their heatmaps are and what they cost, next to controls."
EPILOG = """
[bold]Results[/bold]

A table in the terminal; in the folder benchmark.md, .csv and .json, scatter.png (the first metric against seconds) \
and maps.png. An interrupted run continues where it stopped. Methods and images can be added to a folder, \
whose table keeps the rows of earlier runs; other settings need another folder.

Every table has rows of controls, which do not use the network: random maps, the edges of the image, the filled box. \
A method that does not beat the filled box shows no more than the detection itself; the notes name it.

[bold]Examples[/bold]

detcam benchmark --model yolo11n.pt --images street/ --methods odam,gradcam,drise:passes=1000

detcam benchmark --model fasterrcnn_resnet50_fpn_v2 --images val/ --annotations val.json --metrics \
insertion,deletion --top-k 2 --limit 50

[bold]Planted causes[/bold]

detcam benchmark --planted --out planted

trains detectors with one shortcut each, certifies their false positives by rendering the scene without the shortcut, \
and reports how often each method and the audit find it. Training takes less than two hours on one core. Detectors \
and results stay in the folder, and an interrupted run continues. --explainer measures a function of your own.

[bold]Exit codes[/bold]

0 all images compared, 1 some failed, 2 invalid input or nothing to compare, 130 interrupted.
"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(SelectionOptions, EngineOptions):
    """Options of ``detcam benchmark``."""

    model: Model = ""
    images: Annotated[
        list[str] | None, typer.Option("--images", metavar="DIR", help="Folder, file or pattern; repeatable.")
    ] = None
    methods: Annotated[
        str | None,
        option(
            METHOD,
            "A,B,...",
            "Methods with settings, e.g. odam,drise:passes=1000,gradcam:eigen_smooth=true; 'detcam methods' lists "
            "them. Default: a few that suit the model.",
        ),
    ] = None
    metrics: Annotated[
        str,
        option(
            METHOD,
            "A,B,...",
            "Metrics with settings, e.g. insertion:steps=10,deletion; 'detcam metrics' lists them. The first one "
            "sorts the table.",
        ),
    ] = "insertion,deletion"
    target_layer: TargetLayer = None
    batch_size: BatchSize = None
    annotations: Annotated[
        Path | None,
        option(
            TARGETS, "FILE", "COCO JSON with the ground truth, for localization metrics. Other images are left out."
        ),
    ] = None
    class_map: ClassMap = None
    box_format: BoxFormat = None
    limit: Annotated[int | None, option(TARGETS, "N", "Use the first N images only.", min=1)] = None
    controls: Annotated[bool, option(METHOD, None, "Add rows of controls.", "--controls/--no-controls")] = True
    seed: Annotated[int, option(METHOD, "N", "Seed of the controls and the bootstrap.")] = 0
    out: Out = Path("benchmark")
    planted: Annotated[
        bool,
        option(
            PLANTED,
            None,
            "Compare methods on detectors that are trained with planted shortcuts, instead of on your model.",
            "--planted",
        ),
    ] = False
    family: Annotated[
        list[str] | None,
        option(
            PLANTED,
            "NAME",
            "two-stage, fcos, yolo (the default); semantic, rt-detr, two-stage-resnet50, yolo11s; repeatable.",
        ),
    ] = None
    scenario: Annotated[
        list[str] | None,
        option(
            PLANTED,
            "NAME",
            "context, far, mark, texture, look-alike (the default); and, or, light, flowers, tiny, anywhere, natural, "
            "suppressor, no-context, edges, duplicate; repeatable.",
        ),
    ] = None
    explainer: Annotated[
        list[str] | None,
        option(
            PLANTED,
            "MODULE:FUNCTION",
            "A function explain(model, image, target) that returns a heatmap (H, W), measured on the same cases; "
            "repeatable. Without --methods, nothing else is measured.",
        ),
    ] = None
    cases: Annotated[
        int, option(PLANTED, "N", "Certified errors per family, scenario and set of test scenes.", min=1)
    ] = 24
    effort: Annotated[
        float, option(PLANTED, "X", "Factor on the number of training steps; below 1 for trials.", min=0.001)
    ] = 1.0

    def check_paths(self) -> None:
        """Check that images exist too; the base class has the errors."""
        from detcam.utils.files import is_file, is_folder, with_home

        super().check_paths()
        for text in self.images or []:
            path = with_home(text)
            if not glob.has_magic(text) and not is_file(path) and not is_folder(path):
                raise ValueError(f"no file or folder at {text}; check the path")


def benchmark_command(options: BenchmarkOptions) -> int:
    """Run a benchmark and print its table; return the exit code, 1 if an image or a method failed."""
    if options.planted:
        from detcam.cli import planted

        if options.model or options.images:
            raise typer.BadParameter("it trains its own detectors and renders their images", param_hint="--planted")
        planted.planted_command(options)
        return 0
    if not options.model or not options.images:
        raise typer.BadParameter("a model and its images are required", param_hint="--model, --images")
    from detcam.benchmarking.compare import benchmark
    from detcam.benchmarking.specs import split_list

    result = benchmark(
        options.load(target_layers=options.target_layer),
        options.images[0] if len(options.images) == 1 else options.images,
        None if options.methods is None else split_list(options.methods),
        split_list(options.metrics),
        options.annotations,
        options.out,
        controls=options.controls,
        top_k=options.top_k,
        score_threshold=options.score_threshold,
        labels=options.labels,
        quantity=options.quantity,
        batch_size=options.batch_size,
        class_map=parse_class_map(options.class_map or []) or None,
        box_format=options.box_format,
        limit=options.limit,
        seed=options.seed,
        model_name=options.model_name,
        engine=options.engine_object(),
        progress=True,
    )
    print_result(result, options.out)
    return 1 if result.failed or any(row.failed for row in result) else 0


def print_result(result: Benchmark, out: Path) -> None:
    """Print a benchmark's table, legend and notes."""
    from detcam.benchmarking.tables import LEGEND, rich_table

    console = make_console()
    console.print(rich_table(result.rows, result.signs, printable(result.title)))
    console.print(LEGEND, style="dim")
    for note in result.notes:
        console.print(f"* {printable(note)}")
    console.print(f"\n{out / 'benchmark.md'}, .csv, .json, scatter.png, maps.png")
