"""Splitting of work into parts that fit into memory, or that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import TypeVar

from detcam.utils.files import is_storage_error
from detcam.utils.memory import alone_out_of_memory, is_out_of_memory, release_memory, warn_out_of_memory

K = TypeVar("K")
R = TypeVar("R")
T = TypeVar("T")


def check_count(value: object, name: str = "batch_size") -> None:
    """Raise ValueError unless an argument is an int, also of NumPy, of at least 1."""
    if not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"expected {name} as an int of at least 1; got {value!r}")


def batch_slices(count: int, size: int) -> Iterator[slice]:
    """Split the range from 0 to `count` into slices of at most `size`.

    Raises:
        ValueError: `size` is no int of at least 1.
    """
    check_count(size)
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


def run_slices(count: int, size: int | None, run: Callable[[slice], R]) -> list[R]:
    """Run a function on slices of the range from 0 to `count`, with half the size wherever memory does not suffice.

    Args:
        count: length of the range.
        size: maximum length of a slice; None stands for one slice that cannot be divided.
        run: the function.

    Returns:
        The results in order.

    Raises:
        Exception: `run` failed for another reason, or a single item needs more memory than there is.
    """
    results: list[R] = []
    start, divisible, size = 0, size is not None, size or count
    while start < count:
        part = slice(start, min(start + size, count))
        try:
            results.append(run(part))
        except Exception as error:
            if not divisible or part.stop - part.start == 1 or not is_out_of_memory(error):
                raise
            release_memory(error)
            warn_out_of_memory()
            size = (part.stop - part.start) // 2
        else:
            start = part.stop
    return results


def run_each(items: Sequence[T], run: Callable[[Sequence[T]], Sequence[R]]) -> list[R | Exception]:
    """Run a function on items together, or, if that fails, on each alone, so that a bad item costs itself alone.

    Args:
        items: the items.
        run: function from items to one result each.

    Returns:
        A result, or the exception, for each item.
    """
    if not items:
        return []
    try:
        return list(run(items))
    except Exception as error:
        if is_storage_error(error):
            raise
        if len(items) == 1:
            return [alone_out_of_memory(error) if is_out_of_memory(error) else error]
    return [result for item in items for result in run_each([item], run)]
