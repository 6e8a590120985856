"""Search for target layers whose gradients cover the network's receptive field, by a probe."""

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
from detcam.outputs import DetectorOutput
from detcam.results import Reach
from detcam.segmenter_output import SegmenterOutput
from detcam.targets import BoxTarget, MaskTarget
from detcam.trace import flatten_tensors, guarded
from detcam.utils.hooks import active_hooks

logger = logging.getLogger("detcam")

PROBE_SIZE_HW = (320, 320)
"""Size of the probe, a noise image, before the adapter prepares it, pixels."""
MAX_LOG2_STRIDE = 3
"""Maximum log2 of a stage's stride; deeper stages have moved features toward the boxes."""
MIN_CELLS = 40
"""Minimum number of cells along the shorter side of a stage's map, to resolve small objects."""
MIN_RELATIVE_REACH = 0.8
"""Minimum reach of a layer's gradient, as a fraction of the reach of the gradient at the input."""


@dataclass(frozen=True)
class _ModuleRun:
    """One run of a module during the probe.

    Attributes:
        name: dotted name of the module.
        output: the module's output, a map.
        input_depth: log2 of the stride of the module's input; None if the input is not a map.
        depth: log2 of the stride of the output.
        shape_hw: height and width of the output, in cells.
    """

    name: str
    output: Tensor
    input_depth: int | None
    depth: int
    shape_hw: tuple[int, int]


def find_context_layers(adapter: Adapter, count: int = 2) -> list[str]:
    """Find the deepest high-resolution stages whose gradients cover the network's receptive field.

    The model runs on a noise image. For the last module of each stage (consecutive layers of one stride), the reach of
    the gradient of a target at the image's center is compared with its reach at the input. In two detectors with
    certified causes outside the box, the product of two such stages had its peak on every cause; one stage deeper, on
    a third of them.

    Args:
        adapter: adapter of the model.
        count: maximum number of layers.

    Returns:
        Dotted names, finest first; empty if no stage qualifies.

    Raises:
        RuntimeError: the model cannot run on the probe.
    """
    noise = torch.rand((adapter.channels, *PROBE_SIZE_HW), generator=torch.Generator().manual_seed(0))
    with guarded(adapter.model, gradients=True):
        batch = adapter.prepare([noise])
        batch.inputs.requires_grad_(True)
        with _recorded_runs(adapter, batch) as runs:
            try:
                raw = adapter.forward(batch)
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise RuntimeError(
                    f"cannot probe {type(adapter.model).__name__} with one image ({error}); pass target_layers="
                ) from error
        output = adapter.outputs(raw, batch)[0]
        score = adapter.score([output], [[_central_target(output)]])[0][0]
        stages = [
            stage for stage in _stage_ends(runs) if stage.depth <= MAX_LOG2_STRIDE and min(stage.shape_hw) >= MIN_CELLS
        ]
        maps = [batch.inputs, *(stage.output for stage in stages)]
        gradients = torch.autograd.grad(score, maps, allow_unused=True)
        reshape = adapter.reshape_for(batch)
        grids = [g if g is None or i == 0 else flatten_tensors(reshape(g))[0] for i, g in enumerate(gradients)]
        input_reach, *stage_reach = [
            0.0 if g is None else Reach.measure([(g[0] != 0).any(0)], batch.geometries[0]).fraction for g in grids
        ]
    logger.info(
        "%s: gradients reach %.0f%% of an image; by stage %s",
        type(adapter.model).__name__,
        100 * input_reach,
        {stage.name: round(reach, 2) for stage, reach in zip(stages, stage_reach, strict=True)},
    )
    limit = MIN_RELATIVE_REACH * input_reach
    names = [stage.name for stage, reach in zip(stages, stage_reach, strict=True) if 0 < limit <= reach]
    return names[-count:]


def with_context_layers(adapter: Adapter) -> Adapter:
    """Return the adapter at the layers of `find_context_layers`; unchanged if layers were given or none is found."""
    if adapter.layers_given:
        return adapter
    return adapter.with_layers(find_context_layers(adapter) or None, None)


def _central_target(output: Any) -> Target:
    """A target at the center of the probe: a box, a region, or the whole output if it has no positions."""
    height, width = PROBE_SIZE_HW
    if isinstance(output, DetectorOutput):
        box = (width * 0.4, height * 0.4, width * 0.6, height * 0.6)
        return BoxTarget(box, min(1, output.classes - 1), quantity="logit")
    if isinstance(output, SegmenterOutput):
        center = torch.zeros(PROBE_SIZE_HW, dtype=torch.bool)
        center[height * 2 // 5 : height * 3 // 5, width * 2 // 5 : width * 3 // 5] = True
        return MaskTarget(output.classes - 1, center)
    return lambda out: torch.stack([tensor.square().sum() for tensor in flatten_tensors(out)]).sum()


@contextmanager
def _recorded_runs(adapter: Adapter, batch: Batch) -> Iterator[list[_ModuleRun]]:
    """Record every run of a module that returns one map over the image, inside the context."""
    runs: list[_ModuleRun] = []
    reshape = adapter.reshape_for(batch)
    side = batch.inputs.shape[-1]

    def grid(value: Any) -> tuple[int, int] | None:
        """Height and width of a map, in cells."""
        tensors = flatten_tensors(value)
        if not tensors:
            return None
        try:
            levels = flatten_tensors(reshape(tensors[0]))
        except ValueError:  # tokens or vectors without a grid
            return None
        if not levels or levels[0].ndim != 4 or min(levels[0].shape[-2:]) < 2:
            return None
        return levels[0].shape[-2], levels[0].shape[-1]

    def log2_stride(grid_hw: tuple[int, int] | None) -> int | None:
        """Log2 of a map's stride."""
        return grid_hw and round(math.log2(side / grid_hw[1]))

    def recorder(name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return
            shape_hw = grid(output)
            depth = log2_stride(shape_hw)
            if shape_hw is not None and depth is not None:
                runs.append(_ModuleRun(name, output, log2_stride(grid(inputs)), depth, shape_hw))

        return record

    modules = [(name, module) for name, module in adapter.model.named_modules() if name]
    with active_hooks((module, recorder(name)) for name, module in modules):
        yield runs


def _stage_ends(runs: Sequence[_ModuleRun]) -> list[_ModuleRun]:
    """The last module of each stage before the first coarser map, finest first.

    The first convolutions of a block that halves the map do not count, since a shortcut may bypass them.
    """
    halving = [run for run in runs if run.input_depth is not None and run.depth == run.input_depth + 1]

    def in_halving_block(run: _ModuleRun) -> bool:
        return any(run.name.startswith(block.name + ".") and run.depth < block.depth for block in halving)

    ends = []
    for depth in sorted({run.depth for run in runs}):
        end = next((i for i, run in enumerate(runs) if run.depth > depth), len(runs))
        stage = [run for run in runs[:end] if run.depth == depth and not in_halving_block(run)]
        ends += stage[-1:]
    return ends
