"""Double precision where the device has it."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, or in float32 on a device without it (Apple's MPS)."""
    return tensor.to(float64_on(tensor.device))


def float64_on(device: torch.device) -> torch.dtype:
    """Return float64, or float32 for a device without it."""
    return torch.float32 if device.type == "mps" else torch.float64
