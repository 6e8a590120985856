"""Hooks on modules, removed at the end of a block, also where Ctrl-C comes while they are put on or taken off."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

Hook: TypeAlias = Callable[..., Any]
Hooks: TypeAlias = Iterable[tuple[nn.Module, Hook]]
"""Modules with the hook of each."""


_NUMBERS = itertools.count()
_REMOVALS: dict[tuple[int, int], Callable[[], None]] = {}
"""By thread and number, how the hooks of each open block of `active_hooks` are removed."""


@contextmanager
def active_hooks(
    after: Hooks = (), *, before: Hooks = (), with_kwargs: Hooks = (), before_with_kwargs: Hooks = ()
) -> Iterator[None]:
    """Register hooks, and remove them at the end of the block.

    Hooks are found by the functions themselves and not by handles, of which one is lost where an interruption comes
    between the registration and the return of its handle.

    Args:
        after: forward hooks.
        before: forward pre-hooks.
        with_kwargs: forward hooks that are called with the module, its arguments, its keyword arguments and its output.
        before_with_kwargs: forward pre-hooks that are called with the module, its arguments and its keyword arguments.
    """
    after, before, with_kwargs, before_with_kwargs = map(list, (after, before, with_kwargs, before_with_kwargs))

    def remove() -> None:
        for module, hook in (*after, *with_kwargs):
            for key in _discard(module._forward_hooks, hook):
                module._forward_hooks_with_kwargs.pop(key, None)
        for module, hook in (*before, *before_with_kwargs):
            for key in _discard(module._forward_pre_hooks, hook):
                module._forward_pre_hooks_with_kwargs.pop(key, None)

    key = threading.get_ident(), next(_NUMBERS)
    _REMOVALS[key] = remove
    try:
        for module, hook in before:
            module.register_forward_pre_hook(hook)
        for module, hook in before_with_kwargs:
            module.register_forward_pre_hook(hook, with_kwargs=True)
        for module, hook in after:
            module.register_forward_hook(hook)
        for module, hook in with_kwargs:
            module.register_forward_hook(hook, with_kwargs=True)
        yield
    finally:
        complete(remove)
        _REMOVALS.pop(key, None)


@contextmanager
def no_hooks_stay() -> Iterator[None]:
    """Remove at the end of the block what blocks of `active_hooks` inside it left, in this thread.

    Such a block cannot remove its hooks where Ctrl-C comes as its exit is called, before a line of it has run. Hooks of
    others, such as those that transformers registers at a model's first pass, stay.
    """
    outside = set(_REMOVALS)

    def remove() -> None:
        for key in [key for key in list(_REMOVALS) if key not in outside and key[0] == threading.get_ident()]:
            _REMOVALS[key]()
            _REMOVALS.pop(key, None)

    try:
        yield
    finally:
        complete(remove)


def _discard(table: dict[int, Hook], hook: Hook) -> list[int]:
    """Remove a hook; return its numbers."""
    keys = [key for key, value in table.items() if value is hook]
    for key in keys:
        table.pop(key, None)
    return keys


def complete(restore: Callable[[], None]) -> None:
    """Run a function that must not be cut off to its end: if Ctrl-C interrupts it, again, and interrupt afterwards.

    Args:
        restore: the function; a second run after an incomplete one does what is left.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    interruption: KeyboardInterrupt | None = None
    while True:
        try:
            restore()
            break
        except KeyboardInterrupt as error:
            interruption = error
    if interruption is not None:
        raise interruption
