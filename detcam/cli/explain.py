"""``detcam explain``: options, checks, and a row of output per target."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcam.cli.options import (
    METHOD,
    OUTPUT,
    TARGETS,
    BatchSize,
    EngineOptions,
    Method,
    Out,
    Resume,
    SelectionOptions,
    TargetLayer,
    option,
)
from detcam.utils.console import ProgressBar, make_console, make_table, plural, printable, shorten

if TYPE_CHECKING:
    from rich.table import Table

    from detcam.adapters import Adapter

MAX_NAME_WIDTH = 32
MAX_TARGET_WIDTH, MIN_TARGET_WIDTH = 34, 12
OVERLAY_WIDTH = 24
"""Columns of a narrow terminal that are left for the names of overlays, which wrap."""
VALUE_WIDTH, REACH_WIDTH, GAP_WIDTH = 7, 5, 3
RESULT_COLUMNS = ("image", "target", "value", "reach", "overlay")

HELP = "Explain what a model detects in images; write overlays, heatmaps and explanations.json."
EXAMPLES = """
[bold]Examples[/bold]

detcam explain street.jpg --model fasterrcnn_resnet50_fpn

detcam explain photos/ --model yolo11n.pt --method odam --labels person --out why

detcam explain cat.jpg --model timm:tf_efficientnet_lite0 --top-k 3

detcam explain cells/ --model retinanet_resnet50_fpn --weights cells.pth --names RBC,WBC

detcam explain pets.jpg --model fasterrcnn_resnet50_fpn --labels dog --against cat

detcam explain lawn.jpg --model fcos_resnet50_fpn --box 40,60,210,330 --labels dog
"""
# A line ends here only where a line of the help page ends.
EPILOG = f"""
[bold]Results[/bold]

For every target the folder gets an overlay, PHOTO.METHOD.1.NAME.png, and the heatmap as a 16-bit gray PNG \
(value / 65535 is in 0..1). explanations.json lists them with boxes, scores and reach.

'reach' is the fraction of the image from which evidence can appear on the map at all. If it is small, a dark \
background proves nothing; use --method reachcam.

[bold]Exit codes[/bold]

0 all images explained, 1 some images failed, 2 invalid input or nothing explained, 130 interrupted.
{EXAMPLES}"""


# Options that a run which continues must share with the interrupted one.
RECORDED = ("method", "passes", "box", "labels", "against", "score_threshold", "top_k", "quantity", "colormap")


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(SelectionOptions, EngineOptions):
    """Options of ``detcam explain``."""

    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="Image files, folders, or patterns such as 'in/*.jpg'.")
    ]
    box: Annotated[
        list[str] | None,
        option(
            TARGETS,
            "X1,Y1,X2,Y2",
            "Explain this box, in pixels of the image, instead of the model's predictions; for example a missed "
            "object. Needs --labels, one for all boxes or one each; repeatable.",
        ),
    ] = None
    against: Annotated[
        str | None, option(TARGETS, "NAME", "Explain the difference to this class: why a dog rather than a cat?")
    ] = None
    method: Method = "auto"
    passes: Annotated[
        str | None,
        option(
            METHOD,
            "N|auto",
            "Number of perturbed images for methods that sample (rise, drise). 'auto', their default, stops when "
            "the maps of two halves of the samples agree. The same as --method drise:passes=N.",
        ),
    ] = None
    target_layer: TargetLayer = None
    aug_smooth: Annotated[
        bool, option(METHOD, None, "Average over six views of the image; six times slower.", "--aug-smooth")
    ] = False
    eigen_smooth: Annotated[
        bool, option(METHOD, None, "Keep the map's first principal component only.", "--eigen-smooth")
    ] = False
    batch_size: BatchSize = None
    out: Out = Path("explanations")
    resume: Resume = False
    colormap: Annotated[str, option(OUTPUT, "NAME", "Colors of the overlay: inferno, viridis, cividis, jet, ...")] = (
        "inferno"
    )

    @property
    def boxes(self) -> list[tuple[float, float, float, float]]:
        """The boxes, xyxy in pixels of the image."""
        return [parse_box(text) for text in self.box or []]

    def check(self) -> None:
        """Check what can be checked without the model.

        Raises:
            ValueError: an option does not exist or contradicts another one.
        """
        from detcam.targets import TARGETS
        from detcam.visualize.convert import colormap_code

        colormap_code(self.colormap)
        TARGETS.find(self.quantity)
        boxes, labels = self.boxes, self.labels or []
        if boxes and not labels:
            raise ValueError("--box needs --labels: a box x1,y1,x2,y2 and the class to explain in it")
        if boxes and len(labels) not in (1, len(boxes)):
            raise ValueError(f"expected one --labels, or one for each of {len(boxes)} boxes; got {len(labels)}")
        if boxes and (self.top_k is not None or self.score_threshold is not None):
            raise ValueError("--top-k and --score-threshold select predictions; they do not apply to --box")

    def target_options(self, adapter: Adapter) -> dict[str, Any]:
        """Return the arguments of `explain_files` that say what to explain.

        Raises:
            ValueError: the model has no such class, a box is not valid, or the model has neither boxes nor regions.
        """
        from detcam.detections import label_index
        from detcam.explanation.batch import box_targets

        against = None if self.against is None else label_index(adapter.names, self.against)
        labels = None if self.labels is None else [label_index(adapter.names, name) for name in self.labels]
        if not self.box or labels is None:
            return {
                "score_threshold": self.score_threshold,
                "top_k": self.top_k,
                "labels": labels,
                "quantity": self.quantity,
                "against": against,
            }
        if adapter.task not in ("detection", "segmentation"):
            raise ValueError(
                f"--box is for detectors and segmentation networks; the task of this model is {adapter.task}"
            )
        labels = labels * len(self.box) if len(labels) == 1 else labels
        return {
            "targets_for": partial(
                box_targets, adapter, boxes=self.boxes, labels=labels, quantity=self.quantity, against=against
            )
        }


def explain_command(options: ExplainOptions) -> int:
    """Explain images and print a table row per target.

    Returns:
        The exit code: 0, 1 if some images failed, 2 if no image could be explained.
    """
    from detcam.explanation.image_files import find_images

    paths = find_images(options.photos)
    from detcam.explanation.batch import explain_files
    from detcam.explanation.explain import DEFAULT_MAX_BOXES, make_cam
    from detcam.methods.spec import add_setting

    options.check()
    adapter = options.load(target_layers=options.target_layer)
    method = add_setting(options.method, "passes", options.passes)
    model = f"{type(adapter.model).__name__} ({adapter.family}) on {adapter.device}"
    print(f"{model}, {make_cam(adapter, method).name} at {', '.join(adapter.layer_names)}", file=sys.stderr)
    target_options = options.target_options(adapter)
    by_default = adapter.task == "detection" and options.top_k is None and not options.box
    max_boxes = DEFAULT_MAX_BOXES if by_default else None
    against = "" if options.against is None else f" minus that of {options.against}"
    quantity = options.quantity + against
    with ExplainReport(paths, options.score_threshold, adapter, max_boxes=max_boxes, quantity=quantity) as report:
        index = explain_files(
            adapter,
            paths,
            options.out,
            method,
            on_progress=report.add,
            batch_size=options.batch_size,
            colormap=options.colormap,
            model_name=options.model_name,
            engine=options.engine_object(),
            resume=options.resume,
            settings={name: getattr(options, name) for name in RECORDED},
            aug_smooth=options.aug_smooth,
            eigen_smooth=options.eigen_smooth,
            **target_options,
        )
    return report.finish(index)


def _threshold_note(adapter: Adapter, score_threshold: float | None) -> str:
    """A note if the model drops detections that the user asks for, else an empty string."""
    from detcam.adapters.torchvision.detector import TorchvisionDetector

    if score_threshold is None or not isinstance(adapter, TorchvisionDetector):
        return ""
    own = adapter.model_score_threshold
    if score_threshold >= own:
        return ""
    name = "box_score_thresh" if hasattr(adapter.model, "roi_heads") else "score_thresh"
    return f"note: the model itself drops detections with scores below {own:g}: {name} of its constructor, in Python"


@dataclass
class ExplainReport:
    """Prints a table row per target while images are explained, a progress bar, and the totals.

    Attributes:
        paths: the images.
        score_threshold: the minimum score that the user gave, or None.
        adapter: the model.
        explained: number of explained images.
        targets: number of explained targets.
        passes: numbers of perturbed images per image, for methods that sample.
        failures: number of images that could not be explained.
        max_boxes: maximum number of targets per image that applies because the user gave none, or None.
        cut: number of images with that many.
        first_overlay: file name of the first overlay, which shows the best prediction of its image; "" without one.
        quantity: what the column of values holds.
    """

    paths: Sequence[Path]
    score_threshold: float | None
    adapter: Adapter
    explained: int = 0
    targets: int = 0
    passes: set[int] = field(default_factory=set)
    failures: int = 0
    max_boxes: int | None = None
    cut: int = 0
    first_overlay: str = ""
    quantity: str = "score"

    def __enter__(self) -> ExplainReport:
        self.width = min(max(len(RESULT_COLUMNS[0]), *(len(path.name) for path in self.paths)), MAX_NAME_WIDTH)
        others = self.width + VALUE_WIDTH + REACH_WIDTH + OVERLAY_WIDTH + GAP_WIDTH * (len(RESULT_COLUMNS) - 1)
        self.target_width = min(MAX_TARGET_WIDTH, max(MIN_TARGET_WIDTH, make_console().width - others))
        self.bar = ProgressBar("", len(self.paths)).__enter__()
        self.bar.print(self._table(header=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, trace)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            print(
                f"detcam: interrupted; {self.explained} of {len(self.paths)} images are done; --resume continues",
                file=sys.stderr,
            )

    def add(self, path: Path, entry: Mapping[str, Any] | None, message: str) -> None:
        """Print one image's result: its entry in the index, or the message if it failed."""
        if entry is None:
            message = " ".join(message.split())
            message = message if str(path) in message else f"{path}: {message}"
            self.failures += 1
            self.bar.print(f"detcam: skipped: {printable(message)}", stderr=True)
        else:
            self.explained += 1
            self.targets += len(entry["targets"])
            self.cut += len(entry["targets"]) == self.max_boxes
            self.first_overlay = self.first_overlay or next((t["overlay"] for t in entry["targets"]), "")
            if entry["sampling"] is not None:
                self.passes |= {entry["sampling"]["passes"]}
            self.bar.print(self._rows(path, entry))
        self.bar.advance(description=shorten(path.name, 24))

    def _rows(self, path: Path, entry: Mapping[str, Any]) -> Table:
        table = self._table()
        name = shorten(printable(path.name), self.width)
        if not entry["targets"]:
            table.add_row(name, "no targets" + self._threshold())
        for index, described in enumerate(entry["targets"]):
            words, _, value = described["caption"].rpartition(" ")
            reach = f"{described['reach']['fraction']:.0%}" if described["reach"] else "-"
            target = shorten(printable(words), self.target_width)
            table.add_row("" if index else name, target, value, reach, printable(described["overlay"]))
        return table

    def _threshold(self) -> str:
        from detcam.explanation.explain import DEFAULT_SCORE_THRESHOLD

        if self.adapter.task != "detection":
            return ""
        return f" at or above {DEFAULT_SCORE_THRESHOLD if self.score_threshold is None else self.score_threshold:g}"

    def _table(self, *, header: bool = False) -> Table:
        """Return a table of fixed widths, so that rows that are printed one by one line up."""
        table = make_table(*RESULT_COLUMNS, right=("value", "reach"))
        table.show_header = header
        widths = (self.width, self.target_width, VALUE_WIDTH, REACH_WIDTH)
        for column, width in zip(table.columns, widths, strict=False):
            column.width = width
        return table

    def finish(self, index: Path) -> int:
        """Print the totals and return the exit code."""
        if not self.explained:
            print(f"detcam: none of {plural(len(self.paths), 'image')} could be explained", file=sys.stderr)
            return 2
        note = _threshold_note(self.adapter, self.score_threshold)
        if not self.targets:
            remedy = "" if note else " A lower --score-threshold includes weaker predictions."
            print(f"The model predicts nothing.{remedy}", file=sys.stderr)
        if note:
            print(note, file=sys.stderr)
        if self.cut:
            note = (
                f"{plural(self.cut, 'image')} with {self.max_boxes} targets, the default maximum: --top-k explains more"
            )
            print(note, file=sys.stderr)
        if self.failures:
            print(f"detcam: {self.failures} of {plural(len(self.paths), 'image')} failed", file=sys.stderr)
        console = make_console()
        if self.passes:
            low, high = min(self.passes), max(self.passes)
            console.print(f"{low if low == high else f'{low} to {high}'} passes per image")
        if self.targets:
            legend = f"value: {self.quantity}; reach: share of the image from which evidence can appear on the map"
            console.print(legend, style="dim", soft_wrap=True)
        console.print(f"\n{plural(self.explained, 'image')}, {plural(self.targets, 'target')}: {index}", soft_wrap=True)
        if self.first_overlay:
            first = index.parent / self.first_overlay
            console.print(
                f"Open first: {printable(str(first))} (overlay; every number is in {index.name})", soft_wrap=True
            )
        return 1 if self.failures else 0


def parse_box(text: str) -> tuple[float, float, float, float]:
    """Parse a box from ``x1,y1,x2,y2``.

    Raises:
        ValueError: the text is not four numbers, or the box is empty.
    """
    from detcam.targets import BoxTarget

    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"expected --box as four numbers x1,y1,x2,y2 in pixels; got {text!r}") from error
    return BoxTarget((x1, y1, x2, y2), 0).box_xyxy
