"""Hooks on modules, removed at the end of a block, also where Ctrl-C comes while they are put on or taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

Hook: TypeAlias = Callable[..., Any]
Hooks: TypeAlias = Iterable[tuple[nn.Module, Hook]]
"""Modules with the hook of each."""


@contextmanager
def active_hooks(after: Hooks = (), *, before: Hooks = ()) -> Iterator[None]:
    """Register hooks, and remove them at the end of the block.

    Hooks are found by the functions themselves and not by handles, of which one is lost where an interruption comes
    between the registration and the return of its handle.

    Args:
        after: forward hooks.
        before: forward pre-hooks.
    """
    after, before = list(after), list(before)

    def remove() -> None:
        for module, hook in after:
            _discard(module._forward_hooks, hook)
        for module, hook in before:
            _discard(module._forward_pre_hooks, hook)

    try:
        for module, hook in before:
            module.register_forward_pre_hook(hook)
        for module, hook in after:
            module.register_forward_hook(hook)
        yield
    finally:
        complete(remove)


def _discard(table: dict[int, Hook], hook: Hook) -> None:
    for key in [key for key, value in table.items() if value is hook]:
        table.pop(key, None)


def complete(restore: Callable[[], None]) -> None:
    """Run a function that restores something to its end: if Ctrl-C interrupts it, again, and interrupt afterwards.

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
