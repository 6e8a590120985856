"""Layers whose gradients reach as far over the scene as the network looks, found by a probe."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Batch, Target
from detcam.outputs import DetectorOutput, SegmenterOutput
from detcam.results import Reach
from detcam.targets import BoxTarget, MaskTarget
from detcam.trace import flatten_tensors, guarded

logger = logging.getLogger("detcam")

PROBE_SIZE_HW = (320, 320)
"""The noise image's size before the adapter prepares it."""
COARSEST = 3
"""Stages up to a stride of 2 ** COARSEST are asked: deeper ones have moved features towards the boxes."""
LEAST_CELLS = 40
"""A stage's grid has at least so many cells along its shorter side, to tell small things apart."""
LEAST_REACH = 0.8
"""A layer reaches the scene where its gradient's support covers this share of what the input's own covers."""


@dataclass(frozen=True)
class _Run:
    """One run of a module in the probe, in the order in which they ended.

    Attributes:
        name: the module's dotted name.
        output: the map that it put out.
        entered: log2 of the input pixels per cell of the map that it took, None where it took none.
        left: the same of what it put out.
        shape_hw: height and width of what it put out, in cells.
    """

    name: str
    output: Tensor
    entered: int | None
    left: int
    shape_hw: tuple[int, int]


def reaching_layers(adapter: Adapter, count: int = 2) -> list[str]:
    """The deepest fine-grained stages from which gradients still reach as far as the network looks.

    A noise image runs through the model; the last module of each stage (a run of layers with one stride) is asked
    how far the gradient of a target in the image's middle spreads there, against its spread over the input itself.
    In two detectors with certified causes outside the box, the product of two such stages had its peak on every
    cause; one stage further, on a third of them.

    Args:
        adapter: of the model to probe.
        count: at most so many layers.

    Returns:
        Dotted names, finest first; empty where no stage qualifies.

    Raises:
        RuntimeError: the model cannot run on the probe.
    """
    noise = torch.rand((3, *PROBE_SIZE_HW), generator=torch.Generator().manual_seed(0))
    with guarded(adapter.model, gradients=True):
        batch = adapter.prepare([noise])
        batch.inputs.requires_grad_(True)
        with _watched(adapter, batch) as runs:
            try:
                raw = adapter.forward(batch)
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise RuntimeError(
                    f"cannot probe {type(adapter.model).__name__} with one image ({error}); pass target_layers="
                ) from error
        output = adapter.outputs(raw, batch)[0]
        score = adapter.score([output], [[_central_target(output)]])[0][0]
        stages = [stage for stage in _stage_ends(runs) if stage.left <= COARSEST and min(stage.shape_hw) >= LEAST_CELLS]
        maps = [batch.inputs, *(stage.output for stage in stages)]
        gradients = torch.autograd.grad(score, maps, allow_unused=True)
        reshape = adapter.reshape_for(batch)
        grids = [g if g is None or i == 0 else flatten_tensors(reshape(g))[0] for i, g in enumerate(gradients)]
        most, *spread = [
            0.0 if g is None else Reach.measure([(g[0] != 0).any(0)], batch.geometries[0]).fraction for g in grids
        ]
    logger.info(
        "%s: gradients reach %.0f%% of an image; by stage %s",
        type(adapter.model).__name__,
        100 * most,
        {stage.name: round(reach, 2) for stage, reach in zip(stages, spread, strict=True)},
    )
    found = [stage.name for stage, reach in zip(stages, spread, strict=True) if 0 < LEAST_REACH * most <= reach]
    return found[-count:]


def with_reaching_layers(adapter: Adapter) -> Adapter:
    """The adapter at the layers that `reaching_layers` finds; as it is where layers were chosen, or none is found."""
    if adapter.layers_given:
        return adapter
    return adapter.with_layers(reaching_layers(adapter) or None, None)


def _central_target(output: Any) -> Target:
    """A target in the middle of the probe: a box, a region, or all of an output without places."""
    height, width = PROBE_SIZE_HW
    if isinstance(output, DetectorOutput):
        box = (width * 0.4, height * 0.4, width * 0.6, height * 0.6)
        return BoxTarget(box, min(1, output.classes - 1), quantity="logit")
    if isinstance(output, SegmenterOutput):
        middle = torch.zeros(PROBE_SIZE_HW, dtype=torch.bool)
        middle[height * 2 // 5 : height * 3 // 5, width * 2 // 5 : width * 3 // 5] = True
        return MaskTarget(output.classes - 1, middle)
    return lambda out: torch.stack([tensor.square().sum() for tensor in flatten_tensors(out)]).sum()


@contextmanager
def _watched(adapter: Adapter, batch: Batch) -> Iterator[list[_Run]]:
    """Inside, every module that puts out one map over the image is written down when it ends."""
    runs: list[_Run] = []
    reshape = adapter.reshape_for(batch)
    side = batch.inputs.shape[-1]

    def grid(value: Any) -> tuple[int, int] | None:
        """Height and width of a map, in cells."""
        tensors = flatten_tensors(value)
        if not tensors:
            return None
        try:
            levels = flatten_tensors(reshape(tensors[0]))
        except ValueError:  # tokens or vectors that lie on no grid
            return None
        if not levels or levels[0].ndim != 4 or min(levels[0].shape[-2:]) < 2:
            return None
        return levels[0].shape[-2], levels[0].shape[-1]

    def depth(grid_hw: tuple[int, int] | None) -> int | None:
        """Log2 of a map's stride."""
        return grid_hw and round(math.log2(side / grid_hw[1]))

    def watcher(name: str) -> Any:
        def watch(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return
            shape_hw = grid(output)
            left = depth(shape_hw)
            if shape_hw is not None and left is not None:
                runs.append(_Run(name, output, depth(grid(inputs)), left, shape_hw))

        return watch

    handles = [module.register_forward_hook(watcher(name)) for name, module in adapter.model.named_modules() if name]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def _stage_ends(runs: Sequence[_Run]) -> list[_Run]:
    """The last module of each run of layers with one stride, before the first coarser map; finest first.

    The first convolutions of a block that halves the map do not count: a shortcut may pass them by.
    """
    halving = [run for run in runs if run.entered is not None and run.left == run.entered + 1]

    def in_halving_block(run: _Run) -> bool:
        return any(run.name.startswith(block.name + ".") and run.left < block.left for block in halving)

    ends = []
    for depth in sorted({run.left for run in runs}):
        before = next((i for i, run in enumerate(runs) if run.left > depth), len(runs))
        stage = [run for run in runs[:before] if run.left == depth and not in_halving_block(run)]
        ends += stage[-1:]
    return ends
