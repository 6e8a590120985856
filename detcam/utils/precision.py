"""Precision of numbers: double where the device has it, and autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of the types in which a network can compute; None leaves it as it is."""


def to_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, or in float32 on a device without it (Apple's MPS)."""
    return tensor.to(float64_on(tensor.device))


def float64_on(device: torch.device) -> torch.dtype:
    """Return float64, or float32 for a device without it."""
    return torch.float32 if device.type == "mps" else torch.float64


def work_dtype(tensor: Tensor) -> torch.dtype:
    """Return float32 for half precision, so that sums over pixels neither overflow nor underflow; else the dtype."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@contextmanager
def autocast_to(precision: str) -> Iterator[None]:
    """Run a block under `torch.autocast` on every device of this machine; the weights keep their type.

    Args:
        precision: a name in `PRECISIONS`; ``"float32"`` changes nothing.

    Raises:
        ValueError: there is no such type.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"expected dtype {', '.join(PRECISIONS)}; got {precision!r}")
    dtype = PRECISIONS[precision]
    with ExitStack() as stack:
        for device in _device_types() if dtype is not None else ():
            stack.enter_context(torch.autocast(device, dtype))
        yield


def autocast_precision() -> str:
    """Return the name of the type to which autocast is set in this thread."""
    for device in _device_types():
        if torch.is_autocast_enabled(device):
            return str(torch.get_autocast_dtype(device)).removeprefix("torch.")
    return "float32"


def _device_types() -> list[str]:
    has_accelerator = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [device for device, is_there in has_accelerator.items() if is_there] + ["cpu"]
