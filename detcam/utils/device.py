"""Devices: by name, and a model that runs on another device for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from detcam.utils.model_lock import exclusive


def pick_device(device: str | torch.device) -> torch.device:
    """Return an available device; ``auto`` is CUDA if available, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"expected a device such as cpu, cuda, cuda:1, mps or auto; got {str(device)!r}") from error
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (target.index or 0) >= counts.get(target.type, 0):
        raise ValueError(f"this machine has no device {target} (PyTorch {torch.__version__}); use device cpu or auto")
    return target


@contextmanager
def on_device(model: nn.Module, device: str | torch.device | None) -> Iterator[None]:
    """Run a block with the model on a device, and move the model back afterwards, also after an error.

    No other thread uses the model meanwhile, unless it stays where it is.

    Args:
        model: the network.
        device: as in `pick_device`; None leaves the model where it is.

    Raises:
        ValueError: this machine has no such device, or parts of the model are on several devices.
    """
    origins = {tensor.device for tensor in chain(model.parameters(), model.buffers())}
    target = None if device is None else pick_device(device)
    if target is None or all(origin.type == target.type and target.index in (None, origin.index) for origin in origins):
        yield
        return
    if len(origins) > 1:
        found = ", ".join(sorted(map(str, origins)))
        raise ValueError(f"expected a model on one device; its parts are on {found}. Move it, or leave out device=")
    with exclusive(model):
        try:
            model.to(target)
            yield
        finally:
            model.to(origins.pop())
