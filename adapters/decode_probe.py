"""Passes on noise that tell how a custom detector behaves: its default layer, its batch, and what its rows are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detcam.adapters.decoded_boxes import DecodedOutput
from detcam.diagnostics import ReachWarning
from detcam.trace import flatten_tensors, guarded
from detcam.utils.hooks import active_hooks
from detcam.utils.memory import check_probe_memory
from detcam.utils.warnings import warn

if TYPE_CHECKING:
    from detcam.adapters.base import Batch
    from detcam.adapters.custom_detector import CustomDetectorAdapter

MIN_REACH = 0.5
"""Fraction of the image that the gradient at the default layer covers, where the network has such a layer."""
MIN_RELATIVE_REACH = 0.8
"""Where no layer reaches that far: fraction of the farthest layer's reach that the target layer keeps.

A compromise between reach and depth, which says nothing about the quality of maps. On seven plain networks of 3 to 8
convolutions, with inputs of 96 and 256 pixels, the layer is the same for both sizes. With 0.8 it follows the second or
third convolution in five of them and the first in two; with 0.5 it lies one or two convolutions deeper in the five, and
with 0.9 it is the first in six.
"""

_REORDERING = ("sort", "argsort", "msort", "topk", "nonzero", "masked_select", "unique", "_unique2", "nms")
"""Operations after which a row is no identity: the rows of another image are in another order, or others."""


@dataclass(frozen=True)
class DecodeBehavior:
    """What `observe_decode` found.

    Attributes:
        rows_are_sources: whether row i of every image comes from the same part of the network.
        max_batch_size: 1 where the network takes no two images at once, else None.
    """

    rows_are_sources: bool = True
    max_batch_size: int | None = None


class _Operations(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "overloadpacket", func)).rpartition(".")[2].rpartition("::")[2]
        if name == "index" and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in (args[1] or ())):
            name = "masked_select"
        self.names.add(name)
        return func(*args, **(kwargs or {}))


def observe_decode(
    adapter: CustomDetectorAdapter, noise: Callable[[int, tuple[int, int]], Batch], sizes: Sequence[tuple[int, int]]
) -> DecodeBehavior:
    """Run a custom detector and its decode function on noise.

    Args:
        adapter: the detector.
        noise: from a number of images and their height and width to the network's input.
        sizes: sizes of the images, of which the first that the network takes is used.
    """
    for size, count in product(sizes, (2, 1) if adapter.max_batch_size is None else (1,)):
        try:
            batch = noise(count, size)
            with guarded(adapter.model, gradients=True, quiet=True):
                batch.inputs.requires_grad_(True)
                with _Operations() as operations:
                    raw = adapter.forward(batch)
                    decoded = adapter.decoded(raw, count)
        except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError) as error:
            check_probe_memory(error, count, size)
            continue  # an export of fixed batch size; else an error that the first call reports
        is_hidden = bool(decoded.scores.numel()) and not decoded.scores.requires_grad  # computed outside of PyTorch
        reorders = not operations.names.isdisjoint(_REORDERING)
        return DecodeBehavior(not (reorders or is_hidden), 1 if count == 1 else None)
    return DecodeBehavior()


def deepest_far_layer(adapter: CustomDetectorAdapter, batch: Batch) -> nn.Module:
    """Return the deepest layer whose gradient, for boxes at the image's center, covers half of a noise image.

    Raises:
        RuntimeError: no layer returns a map, or the scores have no gradient.
    """
    maps: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.requires_grad and min(output.shape[-2:]) > 1:
            maps.append((module, output))

    with guarded(adapter.model, gradients=True):
        batch.inputs.requires_grad_(True)
        inner = [module for module in adapter.model.modules() if module is not adapter.model]
        with active_hooks((module, record) for module in inner):
            raw = adapter.forward(batch)
        output = DecodedOutput(adapter, adapter.decoded(raw, 1).image(0), batch.geometries[0])
        if not maps:
            raise RuntimeError(
                "no layer inside the model returns a (B, C, h, w) map; pass target_layers=, for example "
                "target_layers=[model] for a model of one layer"
            )
        if not len(output.boxes):
            raise RuntimeError(
                "decode returns no box for a noise image, so that no default layer can be found: leave out its "
                "threshold, or pass target_layers="
            )
        if not output.scores.requires_grad:
            what = "decode must not detach it" if _has_gradient(raw) else "the network stops gradients"
            raise RuntimeError(
                f"the scores that decode returns have no gradient with respect to the image ({what}); pass "
                "target_layers= and a method that changes the image, such as drise or occlusion"
            )
        reach = _reach([tensor for _, tensor in maps], output.central_scores(8))
    medians = [sorted(row)[len(row) // 2] if min(row) > 0 else 0.0 for row in reach]
    best = max(medians)
    if not best:
        raise RuntimeError(
            "the scores of boxes at the center of a noise image have no gradient at any layer (they are saturated, or "
            "the layers take no part in all of them), so that no default layer can be found; pass target_layers="
        )
    needed = MIN_REACH
    if best < MIN_REACH:  # one cell, as at the layer that makes the box, is no reach, however coarse the grid
        wider = [
            value if value * math.prod(tensor.shape[-2:]) > 1.5 else 0.0
            for value, (_, tensor) in zip(medians, maps, strict=True)
        ]
        medians = wider if any(wider) else medians
        best = max(medians)
        needed = best * MIN_RELATIVE_REACH
    index = max(i for i, value in enumerate(medians) if value >= needed)
    if best < MIN_REACH:
        name = next(name for name, module in adapter.model.named_modules() if module is maps[index][0])
        warn(
            f"no layer of {type(adapter.model).__name__} reaches half of the image (at most {best:.0%}); {name} is the "
            "target layer, and evidence outside its reach cannot appear on a map. target_layers= chooses another",
            ReachWarning,
        )
    return maps[index][0]


def _has_gradient(raw: Any) -> bool:
    return any(tensor.requires_grad for tensor in flatten_tensors(raw))


def _reach(layers: Sequence[Tensor], scores: Sequence[Tensor]) -> list[list[float]]:
    """Return, per layer and score, the fraction of the layer's cells with a nonzero gradient of the score."""
    fractions: list[list[float]] = [[] for _ in layers]
    for score in scores:
        gradients = torch.autograd.grad(score, list(layers), retain_graph=True, allow_unused=True)
        for row, gradient in zip(fractions, gradients, strict=True):
            row.append(0.0 if gradient is None else float((gradient != 0).any(1).float().mean()))
    return fractions
