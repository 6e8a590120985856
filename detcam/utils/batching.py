"""Splitting of work into parts that fit into memory, or that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def batch_slices(count: int, size: int) -> Iterator[slice]:
    """Split the range from 0 to `count` into slices of at most `size`.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"expected batch_size of at least 1; got {size}")
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def batches(items: Sequence[T], size: int) -> list[list[T]]:
    """Split a sequence into lists of at most `size` items."""
    return [list(items[part]) for part in batch_slices(len(items), size)]


def group_by(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Group items by a key, in the order in which they and their keys come."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
