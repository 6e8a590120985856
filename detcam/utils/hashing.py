"""Digests of models and adapters, which identify saved results."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

PLAIN_TYPES = (int, float, str, bool, tuple, type(None))
"""Types of the adapter attributes that enter its digest."""


def weights_digest(model: nn.Module) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            flat = value.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_digest(adapter: object) -> str:
    """Return 16 hexadecimal digits that identify an adapter's public settings, such as sizes and thresholds."""
    settings = {n: v for n, v in vars(adapter).items() if isinstance(v, PLAIN_TYPES) and not n.startswith("_")}
    return hashlib.sha256(f"{adapter!r}{sorted(settings.items())}".encode()).hexdigest()[:16]
