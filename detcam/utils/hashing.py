"""Short names for a model and for what an adapter does with it: results of others are not taken for its own."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

PLAIN_TYPES = (int, float, str, bool, tuple, type(None))


def weights_digest(model: nn.Module) -> str:
    """A short name for a model's weights."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            plain = value.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
            found.update(plain.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def adapter_digest(adapter: object) -> str:
    """A short name for what an adapter does to images and boxes, as far as it is plain values: sizes, thresholds."""
    own = {n: v for n, v in vars(adapter).items() if isinstance(v, PLAIN_TYPES) and not n.startswith("_")}
    return hashlib.sha256(f"{adapter!r}{sorted(own.items())}".encode()).hexdigest()[:16]
