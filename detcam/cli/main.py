"""The ``detcam`` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from detcam.cli import audit as audit_command
from detcam.cli import benchmark as benchmark_command
from detcam.cli.common import _one_line, load_adapter, one_line_errors
from detcam.cli.options import Debug, Device, ImageSize, Model, Names, NumClasses, Trust, Weights
from detcam.utils.version import __version__

UsageError: Any = typer.BadParameter.__mro__[1]

EXAMPLES = """
[bold]Examples[/bold]

detcam explain street.jpg --model fasterrcnn_resnet50_fpn

detcam explain photos/ --model yolo11n.pt --method odam --class person --out why

detcam explain cat.jpg --model timm:tf_efficientnet_lite0 --top-k 3

detcam explain cells/ --model retinanet_resnet50_fpn --weights cells.pth --names RBC,WBC

detcam explain pets.jpg --model fasterrcnn_resnet50_fpn --class dog --against cat

detcam explain lawn.jpg --model fcos_resnet50_fpn --box 40,60,210,330 --label dog
"""
# Lines end here only where the terminal's are to end.
RESULTS = f"""
[bold]Results[/bold]

For every finding the folder gets an overlay, PHOTO.METHOD.1.NAME.png, and the heatmap as a 16-bit grey PNG \
(value / 65535 is in 0..1). explanations.json lists them with boxes, scores and reach.

'reach' is the part of the image from which evidence could show on the map at all. Where it is small, a dark \
background proves nothing; an earlier --target-layer with hirescam or layercam sees further.

[bold]Exit codes[/bold]

0 all explained, 1 some images could not be, 2 wrong input or nothing explained, 130 interrupted.
{EXAMPLES}"""


class OneLineErrors(TyperGroup):
    """Tells what is wrong with the command line in one line, and exits with 2."""

    def main(self, *args: Any, **options: Any) -> Any:
        """As the base, but errors in the command line take one line."""
        if not options.pop("standalone_mode", True):
            return super().main(*args, **{**options, "standalone_mode": False})
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except UsageError as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "detcam"
            print(f"{command}: {_one_line(error.format_message())} (see {command} --help)", file=sys.stderr)
            sys.exit(2)
        except typer.Abort:
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=OneLineErrors,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


WHAT, HOW, OUTPUT = "What to explain", "How to explain it", "Output"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"detcam {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True, epilog=EXAMPLES)
def top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Explain detectors, segmentation networks and classifiers: which pixels made the model say that?"""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(epilog=RESULTS)
def explain(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="ImageArray files, folders, or patterns such as 'in/*.jpg'.")
    ],
    model: Model,
    weights: Weights = None,
    num_classes: NumClasses = None,
    names: Names = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    trust_checkpoint: Trust = False,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME",
            rich_help_panel=WHAT,
            help="Only findings of this class, by name or index; may be repeated. A classifier is asked for it even "
            "where another class came first.",
        ),
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="0..1",
            rich_help_panel=WHAT,
            help="Least score of a finding. Default: 0.3 for boxes, none for classes and regions.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=WHAT,
            help="At most so many findings per image, best first. Default: 10 boxes, 1 class, all regions.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X1,Y1,X2,Y2",
            rich_help_panel=WHAT,
            help="Instead of what the model found: a box drawn by hand, in pixels of the image, e.g. a missed "
            "object. Needs --label; may be repeated.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", rich_help_panel=WHAT, help="Class of the --box, by name or index; one for all, or one each."
        ),
    ] = None,
    quantity: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=WHAT,
            help="What of a box to explain: score, logit, objectness, x1, y1, x2, y2, width, height, or mask.",
        ),
    ] = "score",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=WHAT,
            help="Explain the difference to this class: why a dog rather than a cat?",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=HOW,
            help="A method's name, as 'detcam methods' lists them; 'auto' is odam for boxes and gradcam for masks and "
            "classes. Settings follow a colon: occlusion:grid=32,window=4.",
        ),
    ] = "auto",
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            rich_help_panel=HOW,
            help="For methods that sample (rise, drise): how many changed versions of the image are looked at; "
            "'auto', their default, stops once the maps of two halves of them agree. The same as "
            "--method drise:passes=N.",
        ),
    ] = None,
    target_layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=HOW,
            help="Layer to look at; may be repeated, maps are averaged. 'detcam layers' lists them. Default: what was "
            "measured to be best for the model's family.",
        ),
    ] = None,
    aug_smooth: Annotated[
        bool,
        typer.Option("--aug-smooth", rich_help_panel=HOW, help="Mean over six views of the image; six times slower."),
    ] = False,
    eigen_smooth: Annotated[
        bool, typer.Option("--eigen-smooth", rich_help_panel=HOW, help="Keep the map's first principal component only.")
    ] = False,
    batch_size: Annotated[
        int,
        typer.Option(min=1, metavar="N", rich_help_panel=HOW, help="Images per forward pass; less takes less memory."),
    ] = 4,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", file_okay=False, rich_help_panel=OUTPUT, help="Folder for the results; it may exist."
        ),
    ] = Path("explanations"),
    colormap: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=OUTPUT, help="Colours of the overlay: inferno, viridis, cividis, jet, ..."
        ),
    ] = "inferno",
    debug: Debug = False,
) -> None:
    """Explain what a model finds in images, and write overlays, heatmaps and explanations.json."""
    with one_line_errors(debug):
        from detcam.cli.explain import Job, run
        from detcam.methods.spec import with_setting

        job = Job(
            photos=photos,
            out=out,
            colormap=colormap,
            method=with_setting(method, "passes", passes),
            boxes=box or [],
            box_labels=label or [],
            classes=classes,
            score_threshold=score_threshold,
            top_k=top_k,
            quantity=quantity,
            against=against,
            aug_smooth=aug_smooth,
            eigen_smooth=eigen_smooth,
            batch_size=batch_size,
        )
        code = run(
            job,
            lambda: load_adapter(
                model, weights, num_classes, names, image_size, device, trust_checkpoint, target_layers=target_layer
            ),
            model_name=model if weights is None else f"{model} {Path(weights).name}",
        )
    raise typer.Exit(code)


@app.command()
def methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
    debug: Debug = False,
) -> None:
    """List the methods: when to use them, what they cost, what they can tell apart, and their papers."""
    with one_line_errors(debug):
        from detcam.cli.tables import methods_markdown, print_methods

        if markdown:
            print(methods_markdown())
        else:
            print_methods()


@app.command()
def metrics(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
    debug: Debug = False,
) -> None:
    """List the metrics of 'detcam benchmark': what they are, their range, what they ask for, and their papers."""
    with one_line_errors(debug):
        from detcam.cli.tables import metrics_markdown, print_metrics

        if markdown:
            print(metrics_markdown())
        else:
            print_metrics()


@app.command()
def layers(
    model: Model,
    weights: Weights = None,
    num_classes: NumClasses = None,
    image_size: ImageSize = None,
    trust_checkpoint: Trust = False,
    depth: Annotated[int, typer.Option(min=1, metavar="N", help="How many dots deep to look into the model.")] = 3,
    debug: Debug = False,
) -> None:
    """List the layers that --target-layer can name, with the shapes of their maps; an asterisk marks the default.

    The weights do not matter here, so none are downloaded.
    """
    with one_line_errors(debug):
        from detcam.cli.explain import layers_table

        chosen = weights or (None if Path(model).is_file() else "none")
        adapter = load_adapter(model, chosen, num_classes, None, image_size, "cpu", trust_checkpoint)
        print(layers_table(adapter, depth))


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Folder for the results; it may exist.")
    ] = Path("detcam-demo"),
    debug: Debug = False,
) -> None:
    """Find out why a small detector sees boats that are not there; needs no network and no images of yours."""
    with one_line_errors(debug):
        from detcam.demo.run import run as run_demo

        run_demo(out)


app.command("benchmark", epilog=benchmark_command.EPILOG)(benchmark_command.benchmark)
app.command("audit", epilog=audit_command.EPILOG)(audit_command.audit)


def main() -> None:
    """The entry point of the ``detcam`` command."""
    app(prog_name="detcam")


if __name__ == "__main__":
    main()
