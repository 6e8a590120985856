"""Runs checkpointed modules as ordinary ones: a recomputation would bypass the hooks and the frozen parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch.utils.checkpoint as torch_checkpoint

_LOCK = Lock()
_original: dict[str, Any] = {}
_users = 0


class _Plain:
    """In place of `torch.utils.checkpoint.CheckpointFunction`, the reentrant form."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *arguments: Any) -> Any:
        return function(*arguments)


def _plain_generator(*arguments: Any, **options: Any) -> Iterator[None]:
    """In place of the generator around a forward pass, of the form that is not reentrant."""
    yield


_REPLACEMENTS: dict[str, Any] = {
    "CheckpointFunction": _Plain,
    "_checkpoint_without_reentrant_generator": _plain_generator,
    "_checkpoint_without_reentrant_generator_impl": _plain_generator,  # torch 2.14
}


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Run `torch.utils.checkpoint.checkpoint` without checkpoints inside the block, in the whole process."""
    global _users
    with _LOCK:
        if not _users:
            for name, replacement in _REPLACEMENTS.items():
                if hasattr(torch_checkpoint, name):
                    _original[name] = getattr(torch_checkpoint, name)
                    setattr(torch_checkpoint, name, replacement)
        _users += 1
    try:
        yield
    finally:
        with _LOCK:
            _users -= 1
            if not _users:
                for name, value in _original.items():
                    setattr(torch_checkpoint, name, value)
                _original.clear()
