"""Work cut into parts that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator


def pieces(count: int, size: int) -> Iterator[slice]:
    """0 to count in slices of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
