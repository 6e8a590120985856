"""Cost of an explanation: forward and backward passes, time, memory."""

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
from detcam.adapters.black_box import BlackBox
from detcam.data.images import ImageLike
from detcam.trace import guarded
from detcam.utils.hooks import active_hooks

BACKWARD_CALLS = (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)
MIB = 2**20
STATUS_FILE, CLEAR_FILE = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Result = TypeVar("Result")


@dataclass(frozen=True)
class WorkCount:
    """Computing work, independent of the machine.

    Attributes:
        passes: floating-point operations of convolutions, matrix products and attention, forward and backward, divided
            by those of one prediction of the model; for ONNX files and functions, the number of images.
        backward: number of backward passes.
    """

    passes: float
    backward: int


@dataclass(frozen=True)
class Cost:
    """Time and memory of one call.

    Attributes:
        seconds: wall-clock time.
        peak_mib: peak memory in MiB above the memory in use before the call. On CUDA, memory that PyTorch allocated on
            the device; on a CPU under Linux, resident memory of the process, which does not include reused memory
            that was freed earlier. None on other systems.
    """

    seconds: float
    peak_mib: float | None


def _onednn_convolution(value: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Operations of a direct oneDNN convolution, which PyTorch's counter does not include."""
    return int(conv_flop_count(value, weight, out_shape))


CUSTOM_FLOPS = {torch.ops.aten.mkldnn_convolution: _onednn_convolution}


class _NoModules:
    """The counter's tracker of modules, without modules, which a total does not need.

    PyTorch's fails where a module runs without autograd on a view of a tensor that needs gradients.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None: ...


class _TotalFlops(FlopCounterMode):
    """Counts the floating point operations of a block, not those of each module."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=CUSTOM_FLOPS)
        self.mod_tracker: Any = _NoModules()


class _BackwardCalls(TorchFunctionMode):
    """Counts calls of autograd."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in BACKWARD_CALLS
        return func(*args, **(kwargs or {}))


def count_work(adapter: Adapter, image: ImageLike, call: Callable[[], object]) -> WorkCount:
    """Count the operations of a call. Counting slows the call down; measure its time with `measure_cost`.

    Args:
        adapter: the adapter of the model that the call runs.
        image: the image that the call explains; one prediction on it is the unit of `WorkCount.passes`.
        call: the call, without arguments.

    Returns:
        The work of the call.

    Raises:
        ValueError: the model runs no operation that is counted.

    Example:
        >>> import torch
        >>> from detcam import GradCAM, adapt
        >>> from detcam.metrics import count_work
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> adapter, image = adapt(network.eval(), target_layers=["0"], image_size=32), torch.rand(3, 32, 32)
        >>> count_work(adapter, image, lambda: GradCAM(adapter)(image)).backward
        1
    """
    if isinstance(adapter.model, BlackBox):
        return WorkCount(_count_images(adapter.model, call), 0)
    pixels = adapter.reader.read(image)
    with guarded(adapter.model, gradients=False), _TotalFlops() as plain:
        batch = adapter.prepare([pixels])
        adapter.default_targets(adapter.outputs(adapter.forward(batch), batch), batch)
    unit = plain.get_total_flops()
    if not unit:
        raise ValueError(f"{type(adapter.model).__name__} runs no convolution, matrix product or attention to count")
    with _BackwardCalls() as backward, _TotalFlops() as counted:
        call()
    return WorkCount(counted.get_total_flops() / unit, backward.count)


def _count_images(model: BlackBox, call: Callable[[], object]) -> float:
    """The number of images that run through a model during a call."""
    counts: list[int] = []
    with active_hooks(before=[(model, lambda module, inputs: counts.append(len(inputs[0])))]):
        call()
    return float(sum(counts))


def measure_cost(call: Callable[[], Result], device: torch.device) -> tuple[Result, Cost]:
    """Run a call and measure its time and memory.

    Args:
        call: the call, without arguments.
        device: the device on which the call runs.

    Returns:
        The result of the call, and its cost.

    Example:
        >>> import torch
        >>> from detcam.metrics import measure_cost
        >>> result, cost = measure_cost(lambda: 6 * 7, torch.device("cpu"))
        >>> result, cost.seconds >= 0
        (42, True)
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int | None = torch.cuda.memory_allocated(device)
    else:
        before = _reset_resident_peak()
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")
    return result, Cost(seconds, None if before is None or peak is None else max(0, peak - before) / MIB)


def _reset_resident_peak() -> int | None:
    """Reset the process's peak memory, and return its memory in bytes; None where the system cannot."""
    with suppress(OSError):
        CLEAR_FILE.write_text("5")
        return _resident("VmRSS")
    return None


def _resident(name: str) -> int | None:
    """A field of the process's status in bytes; None where the system has none."""
    with suppress(OSError):
        for line in STATUS_FILE.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
