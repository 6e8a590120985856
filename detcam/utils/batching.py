"""Splitting of work into parts that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator


def batch_slices(count: int, size: int) -> Iterator[slice]:
    """Split the range from 0 to `count` into slices of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
