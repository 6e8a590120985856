"""A lock per model, because the hooks, flags and replaced layers of one call must not affect another thread."""

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

from detcam.utils.modules import all_modules


@dataclass(frozen=True, order=True)
class _Lock:
    """A re-entrant lock and its number; several locks are acquired in the order of their numbers."""

    number: int
    lock: Any = field(default_factory=threading.RLock, compare=False)


class _LockTable:
    """The locks of all modules that were explained, for the modules' lifetime."""

    def __init__(self) -> None:
        self._table_lock = threading.Lock()
        self._numbers = itertools.count()
        self.locks: weakref.WeakKeyDictionary[nn.Module, _Lock] = weakref.WeakKeyDictionary()

    def locks_of(self, model: nn.Module) -> list[_Lock]:
        """Return a model's locks in the order of acquisition: one, or one per part that was explained separately."""
        with self._table_lock:
            modules = all_modules(model)
            locks = {lock for lock in map(self.locks.get, modules) if lock is not None}
            model_lock = min(locks) if locks else _Lock(next(self._numbers))
            for module in modules:
                self.locks.setdefault(module, model_lock)
            return sorted(locks | {model_lock})


lock_table = _LockTable()


def _reset_after_fork() -> None:
    """Drop all locks in a forked process, which has no threads that could release them."""
    global lock_table
    lock_table = _LockTable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Hold the lock of a model: no other thread enters a block of this model or of one that shares a module with it.

    The lock is re-entrant. Models without common modules have separate locks. A model and a wrapper around it, or
    around a part of it, share modules and so a lock; a wrapper around two models that have a lock each acquires both,
    always in the same order. A thread that holds the lock of a model must not enter with a wrapper around it. Tied
    parameters of separate modules are not considered. Nothing is stored on the model, so that it can be copied and
    pickled as before.

    Args:
        model: the whole network.
    """
    with ExitStack() as stack:
        for item in lock_table.locks_of(model):
            stack.enter_context(item.lock)
        yield
