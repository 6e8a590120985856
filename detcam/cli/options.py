"""Options that several subcommands share, and the values that they parse to."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from detcam.adapters import Adapter
    from detcam.runs import EngineLike

MODEL, TARGETS, METHOD, OUTPUT, ENGINE = "Model", "What to explain", "How to explain it", "Output", "Where it runs"


def option(panel: str, metavar: str | None, help: str, *names: str, **settings: Any) -> Any:
    """Return a `typer.Option` in a panel of the help page.

    Args:
        panel: title of the panel.
        metavar: what the help page shows for the value; None for a flag.
        help: help text.
        *names: names on the command line; by default that of the field.
        **settings: further arguments of `typer.Option`.
    """
    return typer.Option(*names, metavar=metavar, rich_help_panel=panel, help=help, **settings)


Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE|FILE",
        help="Import a Python module or file that registers methods, adapters, metrics or targets; repeatable.",
    ),
]
Model = Annotated[
    str,
    option(
        MODEL,
        "NAME",
        "A torchvision name (fasterrcnn_resnet50_fpn, lraspp_mobilenet_v3_large, resnet50, ...), an ultralytics "
        "name (yolo11n.pt, rtdetr-l.pt, yolo11n.yaml), timm:NAME, smp:Unet?encoder=resnet34&classes=4, hf:FOLDER or "
        "hf:NAME for models of transformers, an ONNX file (model.onnx), or a file that holds a whole model.",
        "--model",
        "-m",
        show_default=False,
    ),
]
Out = Annotated[
    Path, option(OUTPUT, "DIR", "Folder for the results; it is created if it does not exist.", file_okay=False)
]


def complete_method(incomplete: str) -> list[str]:
    """Return the methods whose names begin with a text, for the shell's completion."""
    from detcam.methods import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


Method = Annotated[
    str,
    option(
        METHOD,
        "NAME",
        "Name of a method; 'detcam methods' lists them, and 'auto' takes odam for boxes and gradcam for masks and "
        "classes. Settings follow a colon: occlusion:grid=32,window=4.",
        autocompletion=complete_method,
    ),
]


def split_layers(names: list[str] | None) -> list[str] | None:
    """Split target layers that are separated by commas."""
    return names and [part.strip() for name in names for part in name.split(",")]


TargetLayer = Annotated[
    list[str] | None,
    option(
        METHOD,
        "NAME",
        "Target layer, or several, separated by commas; maps are averaged. 'detcam layers' lists them. Default: the "
        "layer measured to be best for the model's family.",
        callback=split_layers,
    ),
]
BatchSize = Annotated[
    int | None, option(METHOD, "N", "Images per forward pass; a smaller number needs less memory.", min=1)
]
Resume = Annotated[bool, option(OUTPUT, None, "Continue an interrupted run in the folder.", "--resume")]
BoxFormat = Annotated[
    str | None,
    option(
        TARGETS,
        "NAME",
        "Format of the annotated boxes: xywh (COCO), xyxy or cxcywh, in pixels, or with -fractions appended. Default: "
        "xywh; boxes that are certainly not are refused. -upright or -stored, appended, is the frame of the boxes of "
        "images that EXIF rotates.",
    ),
]
ClassMap = Annotated[
    list[str] | None,
    option(
        TARGETS,
        "CATEGORY=CLASS",
        "The model's class for a category of the annotations, each by name or index; repeatable. Needed only "
        "where the names differ.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every subcommand."""

    imports: Imports = None
    debug: Debug = False

    def context(self) -> AbstractContextManager[object]:
        """Return a context in which the command runs."""
        return nullcontext()

    def check_paths(self) -> None:
        """Check that what the options name exists, before PyTorch is imported.

        Raises:
            ValueError: a file or folder does not exist.
        """


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CommonOptions):
    """Options that choose a model."""

    model: Model
    weights: Annotated[
        str | None,
        option(
            MODEL,
            "FILE",
            "State dict for the named model (.pth, .pt, .safetensors). Default: the published weights, downloaded "
            "if necessary; 'none' keeps random weights.",
        ),
    ] = None
    num_classes: Annotated[
        int | None,
        option(
            MODEL,
            "N",
            "Number of classes of your weights, including a background class. Usually read from the file.",
            min=1,
        ),
    ] = None
    names: Annotated[
        str | None,
        option(
            MODEL,
            "FILE|A,B,C",
            "Class names in order: a file with one name per line or a JSON list, or names separated by commas.",
        ),
    ] = None
    image_size: Annotated[
        str | None,
        option(
            MODEL,
            "N|HxW",
            "Side of the network input in pixels, or height x width as in 256x320; the shorter side for "
            "torchvision detectors.",
        ),
    ] = None
    prompt: Annotated[
        list[str] | None,
        option(
            MODEL,
            "TEXT",
            "What an open-vocabulary model of transformers looks for, such as 'a boat'; repeatable. The prompts are "
            "its classes.",
        ),
    ] = None
    value_range: Annotated[
        str | None,
        option(
            MODEL,
            "LOW,HIGH",
            "Values of black and white in the image files, such as 0,4095 for 12 bits. Default: by type, 255 for 8 "
            "bits, 65535 for 16 bits, floats as they are.",
        ),
    ] = None
    mean: Annotated[
        str | None,
        option(
            MODEL,
            "N,N,N",
            "Mean that is subtracted from pixels in [0, 1], one per channel. Default: the model's, else ImageNet's.",
        ),
    ] = None
    std: Annotated[
        str | None,
        option(MODEL, "N,N,N", "Standard deviation that pixels are divided by, one per channel. Default: as --mean."),
    ] = None
    page: Annotated[
        int | None, option(MODEL, "N", "Page of image files with several, from 0. Default: the first.", min=0)
    ] = None
    show_bands: Annotated[
        str | None,
        option(
            MODEL,
            "N|R,G,B",
            "Channels that are drawn, from 0: one in gray, or three as red, green and blue. Default: the first three.",
        ),
    ] = None
    device: Annotated[str, option(MODEL, "NAME", "cpu, cuda, cuda:1, mps, or auto: CUDA if it is available.")] = "auto"
    max_memory: Annotated[
        str | None,
        option(
            MODEL,
            "SIZE",
            "Memory that the process may use, such as 8G: a batch that needs more is halved. Without it Linux may end "
            "the process instead.",
        ),
    ] = None
    trust_checkpoint: Annotated[
        bool,
        option(
            MODEL,
            None,
            "Allow the checkpoint file to run code, as a whole model or an ultralytics .pt requires. Only for "
            "files from people you trust.",
            "--trust-checkpoint",
        ),
    ] = False

    def check_paths(self) -> None:
        """Check that the files of the model exist; the base class has the errors."""
        from detcam.models.files import check_files, read_names

        super().check_paths()
        check_files(self.model, self.weights)
        if self.names is not None:
            read_names(self.names)

    @property
    def model_name(self) -> str:
        """The model's name in results."""
        from detcam.models.files import RANDOM

        if self.weights is None:
            return self.model
        return f"{self.model} {'random weights' if self.weights == RANDOM else Path(self.weights).name}"

    def load(self, **options: Any) -> Adapter:
        """Load the model.

        Args:
            **options: further arguments of `detcam.models.load_model`; they override the command line.
        """
        from detcam.cli.trust import ask_to_trust
        from detcam.models.files import RANDOM, read_names
        from detcam.models.load import load_model
        from detcam.utils.memory import limit_memory, parse_bytes

        if self.max_memory is not None:
            limit_memory(parse_bytes(self.max_memory))
        given: dict[str, Any] = {
            "weights": self.weights,
            "num_classes": self.num_classes,
            "device": self.device,
            "trust_checkpoint": self.trust_checkpoint or ask_to_trust([self.model, self.weights]),
            "names": None if self.names is None else read_names(self.names),
            "image_size": None if self.image_size is None else parse_size(self.image_size),
            **({"prompts": self.prompt} if self.prompt else {}),
            **self._image_options(),
        }
        adapter = load_model(self.model, **{**given, **options})
        if self.weights == RANDOM and "weights" not in options:
            print(f"note: {self.model} has random weights: its predictions and heatmaps mean nothing", file=sys.stderr)
        return adapter

    def _image_options(self) -> dict[str, Any]:
        """Return the adapter's options that say how image files are read and drawn."""
        options: dict[str, Any] = {}
        if self.value_range is not None:
            options["value_range"] = parse_numbers(self.value_range, "--value-range", (2,), float)
        for name, text in (("mean", self.mean), ("std", self.std)):
            if text is not None:
                options[name] = parse_numbers(text, f"--{name}", None, float)
        if self.show_bands is not None:
            bands = parse_numbers(self.show_bands, "--show-bands", (1, 3), int)
            options["show_bands"] = bands[0] if len(bands) == 1 else bands
        if self.page is not None:
            options["page"] = self.page
        return options


@dataclass(frozen=True, kw_only=True)
class EngineOptions(CommonOptions):
    """Options that say where the work runs."""

    engine: Annotated[
        str,
        option(ENGINE, "local|ray", "Run in this process, or on workers of Ray (pip install 'detcam\\[ray]')."),
    ] = "local"
    workers: Annotated[
        int | None, option(ENGINE, "N", "Ray workers. Default: one for each GPU, or as fit on the cores.", min=1)
    ] = None
    threads: Annotated[int, option(ENGINE, "N", "Cores of a Ray worker.", min=1)] = 1
    address: Annotated[
        str | None,
        option(ENGINE, "HOST:PORT", "A Ray cluster that runs and sees the same files. Default: start one here."),
    ] = None

    dtype: Annotated[
        str,
        option(
            ENGINE,
            "NAME",
            "float32, or autocast to bfloat16 or float16: faster on many GPUs and a few CPUs. Methods that compare "
            "scores stay in float32.",
        ),
    ] = "float32"

    def context(self) -> AbstractContextManager[object]:
        """Return autocast to the precision."""
        if self.dtype == "float32":
            return nullcontext()
        from detcam.utils.precision import autocast_to

        return autocast_to(self.dtype)

    def engine_object(self) -> EngineLike:
        """Return the engine.

        Raises:
            ValueError: an option does not belong to the engine.
        """
        if self.engine == "ray":
            from detcam.runs import RayEngine

            return RayEngine(self.workers, self.threads, address=self.address, imports=tuple(self.imports or ()))
        if self.workers is not None or self.address is not None or self.threads != 1:
            raise ValueError("--workers, --threads and --address are options of --engine ray")
        return self.engine


@dataclass(frozen=True, kw_only=True)
class FilterOptions(ModelOptions):
    """Options that say which of the model's predictions matter."""

    labels: Annotated[
        list[str] | None,
        option(
            TARGETS,
            "NAME",
            "Explain this class only, by name or index; repeatable. A classifier is explained for the class even if "
            "another one ranks first; an audit counts the errors of the other classes too.",
        ),
    ] = None
    score_threshold: Annotated[
        float | None,
        option(
            TARGETS,
            "0..1",
            "Minimum score of a prediction that is explained. Default: 0.3 for boxes, none for classes and regions.",
            min=0,
            max=1,
        ),
    ] = None
    quantity: Annotated[
        str,
        option(
            TARGETS,
            "NAME",
            "Output to explain: score, logit, objectness, x1, y1, x2, y2, width, height or edges of a box, mask, "
            "or a registered name.",
        ),
    ] = "score"


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(FilterOptions):
    """Options that choose among the model's predictions."""

    top_k: Annotated[
        int | None,
        option(
            TARGETS,
            "N",
            "Maximum number of predictions per image, best first. Default: 10 boxes, 1 class, all regions; in a "
            "benchmark 3 boxes, 1 class, 3 regions.",
            min=1,
        ),
    ] = None


def parse_size(text: str) -> int | tuple[int, int]:
    """Parse a size from ``N`` or ``HxW``.

    Raises:
        ValueError: the text is not one or two positive integers.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"expected --image-size as a number of pixels, or height x width as in 256x320; got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def parse_numbers(text: str, name: str, counts: Sequence[int] | None, kind: type) -> tuple[Any, ...]:
    """Parse numbers separated by commas.

    Args:
        text: the numbers.
        name: name of the option, for the message.
        counts: how many there may be; None for any number.
        kind: ``int`` or ``float``.

    Raises:
        ValueError: other text, or another number of them.
    """
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (counts is not None and len(numbers) not in counts):
        expected = "" if counts is None else " or ".join(map(str, counts)) + " "
        raise ValueError(f"expected {name} as {expected}numbers separated by commas; got {text!r}")
    return numbers


def parse_class_map(pairs: Iterable[str]) -> dict[str | int, str | int]:
    """Parse ``CATEGORY=CLASS`` pairs into a mapping from category to class.

    Raises:
        ValueError: a pair has no equals sign, or one side is empty.
    """
    class_map: dict[str | int, str | int] = {}
    for pair in pairs:
        category, equals, name = (part.strip() for part in pair.partition("="))
        if not equals or not category or not name:
            raise ValueError(f"expected --class-map as CATEGORY=CLASS; got {pair!r}")
        class_map[category] = name
    return class_map
