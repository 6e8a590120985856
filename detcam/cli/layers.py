"""``detcam layers``: the layers of a model that can be target layers, found by one forward pass on noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcam.cli.options import ModelOptions
from detcam.utils.console import make_console, make_table, plural, printable

if TYPE_CHECKING:
    from torch import nn

    from detcam.adapters import Adapter

HELP = """List the layers that --target-layer accepts, with the shapes of their maps; an asterisk marks the default.

No weights are downloaded, since shapes do not depend on them."""
IMAGE_SIZE_HW = (480, 640)
MAX_SIZES = 6


@dataclass(frozen=True, kw_only=True)
class LayersOptions(ModelOptions):
    """Options of ``detcam layers``."""

    depth: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of name parts, separated by dots.")] = 3


def layers_command(options: LayersOptions) -> int:
    """Print the layers of a model; return the exit code."""
    weights = options.weights or (None if Path(options.model).is_file() else "none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = map_layers(options.load(weights=weights))
    table = make_table("", "layer", "module", "stride", "sizes", right=("stride",))
    hidden = 0
    for layer in layers:
        if not layer.is_default and layer.name.count(".") >= options.depth:
            hidden += 1
            continue
        sizes = [f"{c} x {h} x {w}" for c, h, w in layer.sizes[:MAX_SIZES]] + ["..."] * (len(layer.sizes) > MAX_SIZES)
        mark = "*" if layer.is_default else ""
        table.add_row(mark, printable(layer.name), layer.module, layer.stride, ", ".join(sizes))
    console = make_console()
    console.print(table)
    console.print("* the default target layer; sizes: channels x height x width for a 480 x 640 image")
    if hidden:
        console.print(f"{plural(hidden, 'deeper layer')}: --depth {options.depth + 1}")
    return 0


@dataclass(frozen=True)
class MapLayer:
    """A layer that can be a target layer.

    Attributes:
        name: dotted name in the model.
        module: the module's class.
        sizes: channels, height and width of its map, per level.
        stride: input pixels per cell, finest level to coarsest.
        is_default: whether it is a default target layer.
    """

    name: str
    module: str
    sizes: tuple[tuple[int, int, int], ...]
    stride: str
    is_default: bool


def map_layers(adapter: Adapter) -> list[MapLayer]:
    """Find the layers of a model whose output is a grid of more than one cell for the whole image, in model order.

    The model runs once on 480 x 640 pixels of noise; its state does not change.
    """
    import torch

    from detcam.trace import guarded
    from detcam.utils.hooks import active_hooks

    image = torch.rand((adapter.channels, *IMAGE_SIZE_HW), generator=torch.Generator().manual_seed(0))
    seen: dict[str, list[tuple[int, int, int]]] = {}
    with guarded(adapter.model, gradients=False):
        batch = adapter.prepare([image])
        reshape = adapter.reshape_for(batch)

        def record(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                sizes = _map_sizes(output, reshape)
                if sizes:
                    seen.setdefault(name, []).extend(sizes)

            return hook

        named = [(name, module) for name, module in adapter.model.named_modules() if name]
        with active_hooks((module, record(name)) for name, module in named):
            adapter.forward(batch)
    height = batch.inputs.shape[-2]
    default = {id(layer) for layer in adapter.target_layers}
    return [
        MapLayer(name, type(module).__name__, tuple(seen[name]), _stride(height, seen[name]), id(module) in default)
        for name, module in named
        if name in seen
    ]


def _map_sizes(output: Any, reshape: Any) -> list[tuple[int, int, int]]:
    """Return channels, height and width of a layer's maps; empty if its output is not a map of one whole image."""
    from detcam.trace import flatten_tensors

    sizes = []
    for tensor in flatten_tensors(output):
        try:
            (grid,) = flatten_tensors(reshape(tensor))
        except ValueError:  # tokens or vectors without a grid
            return []
        if grid.ndim != 4 or len(grid) != 1 or grid.shape[-1] * grid.shape[-2] < 2:
            return []
        sizes.append((grid.shape[1], grid.shape[2], grid.shape[3]))
    return sizes


def _stride(input_height: int, sizes: list[tuple[int, int, int]]) -> str:
    strides = [round(input_height / height) for _, height, _ in sizes]
    return str(strides[0]) if len(set(strides)) == 1 else f"{min(strides)} to {max(strides)}"
