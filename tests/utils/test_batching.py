"""Parts of work that do not fit into memory, or fail."""

from __future__ import annotations

import warnings

import pytest
import torch

from detcam.utils.batching import run_each, run_slices
from detcam.utils.memory import MemoryLimitWarning, is_out_of_memory, parse_bytes

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to..."
ERRORS = [
    RuntimeError(CPU_ERROR),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    MemoryError(),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried to allocate"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:30])
def test_slices_are_halved_where_memory_does_not_suffice_and_this_is_said_once(error: Exception) -> None:
    tried = []

    def run(part: slice) -> list[int]:
        tried.append((part.start, part.stop))
        if part.stop - part.start > 2:
            raise error
        return list(range(part.start, part.stop))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        parts = run_slices(7, 5, run)
    assert sum(parts, []) == list(range(7))
    assert tried == [(0, 5), (0, 2), (2, 4), (4, 6), (6, 7)]
    assert [warning.category for warning in caught] == [MemoryLimitWarning]


@pytest.mark.parametrize(("size", "error"), [(4, ValueError("no")), (1, MemoryError()), (None, MemoryError())])
def test_other_errors_and_items_that_cannot_be_halved_are_raised(size: int | None, error: Exception) -> None:
    def run(part: slice) -> None:
        raise error

    with pytest.raises(type(error)):
        run_slices(4, size, run)
    assert is_out_of_memory(error) == (type(error) is MemoryError)


def test_a_bad_item_costs_itself_alone() -> None:
    calls = []

    def run(items: list[int]) -> list[int]:
        calls.append(list(items))
        if 3 in items:
            raise KeyError("three")
        return [item * 10 for item in items]

    results = run_each([1, 2, 3, 4], run)
    assert results[:2] == [10, 20] and results[3] == 40 and isinstance(results[2], KeyError)
    assert calls == [[1, 2, 3, 4], [1], [2], [3], [4]]
    assert run_each([], run) == []


def test_ctrl_c_is_no_bad_item() -> None:
    def run(items: list[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_each([1, 2], run)


def test_sizes_are_read() -> None:
    assert [parse_bytes(text) for text in ("4G", "4 GiB", "512mb", "1.5G", "300000000")] == [
        2**32, 2**32, 2**29, 3 * 2**29, 300_000_000,
    ]  # fmt: skip
    for text in ("", "G", "-4G", "4X", "10M", "nan"):
        with pytest.raises(ValueError, match="at least 256M"):
            parse_bytes(text)


def test_an_item_that_needs_too_much_memory_alone_says_the_remedy() -> None:
    def run(items: list[int]) -> list[int]:
        if 2 in items:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return list(items)

    first, second = run_each([1, 2], run)
    assert first == 1 and "--image-size" in str(second) and "can't allocate memory" in str(second)
