"""Options that several of the command's subcommands share."""

from __future__ import annotations

from typing import Annotated

import typer

_MODEL = typer.Option(
    "--model",
    "-m",
    metavar="NAME",
    rich_help_panel="Model",
    help="A torchvision name (fasterrcnn_resnet50_fpn, lraspp_mobilenet_v3_large, resnet50, ...), an "
    "ultralytics one (yolo11n.pt, rtdetr-l.pt, yolo11n.yaml), timm:NAME, smp:Unet?encoder=resnet34&classes=4, "
    "or a file that holds a whole model.",
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel="Model",
        help="Your own weights for the named model: a state dict (.pth, .pt, .safetensors). Without it the published "
        "weights are used, and downloaded if need be; 'none' leaves them random.",
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel="Model",
        help="Number of classes of your weights, a background class included. Usually read from the file.",
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="N|HxW",
        rich_help_panel="Model",
        help="Side of the network's input in pixels, or height x width as in 256x320; for torchvision's detectors the "
        "shorter side.",
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|A,B,C",
        rich_help_panel="Model",
        help="Class names in order: a file with one a line or a JSON list, or the names with commas between them.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel="Model", help="cpu, cuda, cuda:1, mps, or auto: CUDA where there is any."
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-checkpoint",
        rich_help_panel="Model",
        help="Allow code in the checkpoint file to run, which a whole model or ultralytics' .pt needs. Only for files "
        "from people you trust.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
