"""One thread at a time for each model: hooks, flags and swapped layers of one call must not be seen by another."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, order=True)
class _Lock:
    """A re-entrant lock with its place in the order in which several are taken."""

    number: int
    lock: Any = field(default_factory=threading.RLock, compare=False)


class _Registry:
    """The lock of every module that was ever explained, while the module lives."""

    def __init__(self) -> None:
        self._held = threading.Lock()
        self._numbers = itertools.count()
        self._locks: weakref.WeakKeyDictionary[nn.Module, _Lock] = weakref.WeakKeyDictionary()

    def locks_of(self, model: nn.Module) -> list[_Lock]:
        """The locks of a model, in the order in which they are taken: one, or one for each part explained before."""
        with self._held:
            modules = list(model.modules())
            locks = {lock for lock in map(self._locks.get, modules) if lock is not None}
            own = min(locks) if locks else _Lock(next(self._numbers))
            for module in modules:
                self._locks.setdefault(module, own)
            return sorted(locks | {own})


_registry = _Registry()


def _forget() -> None:
    """In a forked process: the threads that held locks are not there to let them go."""
    global _registry
    _registry = _Registry()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Inside, no other thread is in such a block of this model, or of one that shares a module with it.

    The same thread may enter again. Models without common modules do not wait for each other. A model and a wrapper
    around it (or around a part of it) share modules, and so a lock; two models that were explained before one wrapper
    held both keep a lock each, and the wrapper takes both, in an order that is always the same. A thread that is inside
    with one model should not enter with a larger one around it. Parameters that separate modules share (tied weights)
    are not looked for. Nothing is stored on the model, so copying and pickling it are as before.

    Args:
        model: the whole network.
    """
    with ExitStack() as stack:
        for each in _registry.locks_of(model):
            stack.enter_context(each.lock)
        yield
