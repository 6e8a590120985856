"""Hooks on modules that are removed at the end of a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def active_hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block, also after an exception."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield
