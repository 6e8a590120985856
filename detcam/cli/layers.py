"""Which layers of a model have maps: found by one run on an image of noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from detcam.adapters import Adapter
from detcam.trace import flatten_tensors, guarded

IMAGE_SIZE_HW = (480, 640)


@dataclass(frozen=True)
class MapLayer:
    """A layer that can be a target layer.

    Attributes:
        name: dotted name in the model.
        kind: the module's class.
        sizes: per level, channels, height and width of its map.
        stride: input pixels per cell, finest level to coarsest.
        is_default: whether the adapter looks at it unless told otherwise.
    """

    name: str
    kind: str
    sizes: tuple[tuple[int, int, int], ...]
    stride: str
    is_default: bool


def map_layers(adapter: Adapter) -> list[MapLayer]:
    """The layers of a model whose output is a grid of more than one cell for the whole image, in the model's order.

    The model runs once, on noise of 480 x 640 pixels, and is left as it was.
    """
    image = torch.rand((3, *IMAGE_SIZE_HW), generator=torch.Generator().manual_seed(0))
    seen: dict[str, list[tuple[int, int, int]]] = {}
    with guarded(adapter.model, gradients=False):
        batch = adapter.prepare([image])
        reshape = adapter.reshape_for(batch)

        def look(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                sizes = _sizes(output, reshape)
                if sizes:
                    seen.setdefault(name, []).extend(sizes)

            return hook

        named = [(name, module) for name, module in adapter.model.named_modules() if name]
        handles = [module.register_forward_hook(look(name)) for name, module in named]
        try:
            adapter.forward(batch)
        finally:
            for handle in handles:
                handle.remove()
    height = batch.inputs.shape[-2]
    default = {id(layer) for layer in adapter.target_layers}
    return [
        MapLayer(name, type(module).__name__, tuple(seen[name]), _stride(height, seen[name]), id(module) in default)
        for name, module in named
        if name in seen
    ]


def _sizes(output: Any, reshape: Any) -> list[tuple[int, int, int]]:
    """Channels, height and width of an output's maps; none where it is no map of one whole image."""
    sizes = []
    for tensor in flatten_tensors(output):
        try:
            (grid,) = flatten_tensors(reshape(tensor))
        except ValueError:  # tokens or vectors that do not lie on a grid
            return []
        if grid.ndim != 4 or len(grid) != 1 or grid.shape[-1] * grid.shape[-2] < 2:
            return []
        sizes.append((grid.shape[1], grid.shape[2], grid.shape[3]))
    return sizes


def _stride(input_height: int, sizes: list[tuple[int, int, int]]) -> str:
    strides = [round(input_height / height) for _, height, _ in sizes]
    return str(strides[0]) if len(set(strides)) == 1 else f"{min(strides)} to {max(strides)}"
