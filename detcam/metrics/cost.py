"""What an explanation costs: computing work, backward passes, seconds, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from detcam.adapters.base import Adapter
from detcam.data.images import ImageLike, load_image
from detcam.trace import guarded

BACKWARD = (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)
MIB = 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Result = TypeVar("Result")


@dataclass(frozen=True)
class WorkCount:
    """How much is computed, whatever the machine.

    Attributes:
        passes: floating-point operations of convolutions, matrix products and attention, forward and backward, in units
            of what the model takes to find what it finds in the image once.
        backward: how often autograd was asked for gradients.
    """

    passes: float
    backward: int


@dataclass(frozen=True)
class Cost:
    """What one call took.

    Attributes:
        seconds: wall-clock.
        peak_mib: on CUDA, how far the memory that PyTorch holds on the device rose above what it held before. On a
            CPU under Linux, how far the whole process's resident memory did; memory that was freed earlier and is
            used again does not show. None elsewhere.
    """

    seconds: float
    peak_mib: float | None


def _onednn_convolution(value: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Operations of a convolution that was asked of oneDNN directly, which PyTorch's counter does not know."""
    return int(conv_flop_count(value, weight, out_shape))


MORE = {torch.ops.aten.mkldnn_convolution: _onednn_convolution}


class _BackwardCalls(TorchFunctionMode):
    """Counts the calls that ask autograd for gradients."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in BACKWARD
        return func(*args, **(kwargs or {}))


def count_work(adapter: Adapter, image: ImageLike, call: Callable[[], object]) -> WorkCount:
    """Count what a call computes. Counting slows it down, so take its time apart (`measure_cost`).

    Args:
        adapter: the model that the call runs.
        image: the image it is run on; a plain pass over it is the unit.
        call: what is counted.

    Raises:
        ValueError: the model computes nothing that is counted.
    """
    pixels = load_image(image)
    with guarded(adapter.model, gradients=False), FlopCounterMode(display=False, custom_mapping=MORE) as plain:
        batch = adapter.prepare([pixels])
        adapter.default_targets(adapter.outputs(adapter.forward(batch), batch), batch)
    unit = plain.get_total_flops()
    if not unit:
        raise ValueError(f"{type(adapter.model).__name__} runs no convolution, matrix product or attention to count")
    with _BackwardCalls() as backward, FlopCounterMode(display=False, custom_mapping=MORE) as counted:
        call()
    return WorkCount(counted.get_total_flops() / unit, backward.count)


def measure_cost(call: Callable[[], Result], device: torch.device) -> tuple[Result, Cost]:
    """Run a call and measure its time and memory.

    Returns:
        what the call returned, and its cost.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int | None = torch.cuda.memory_allocated(device)
    else:
        before = _begin_resident_peak()
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")
    return result, Cost(seconds, None if before is None or peak is None else max(0, peak - before) / MIB)


def _begin_resident_peak() -> int | None:
    """Set the process's peak to what it holds now; None where the system cannot."""
    with suppress(OSError):
        CLEAR.write_text("5")
        return _resident("VmRSS")
    return None


def _resident(name: str) -> int | None:
    """A figure in bytes from the process's status; None where there is none."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
