"""Sequences of small dataclasses with arrays, stored so that each takes little more than its numbers."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch

T = TypeVar("T")
BLOCK = 256
"""Number of items that are stored together."""


class Packed(Sequence[T]):
    """A sequence of dataclasses or named tuples of one type, made again when they are read.

    An array takes about 200 bytes beside its numbers, a tensor 500; an item of eight arrays of a few numbers is mostly
    that. Here the arrays of a field are stored one after the other, `BLOCK` items at a time. Arrays that are read are
    views: do not change them.

    Args:
        items: the first items.
    """

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._blocks: list[_Block[T]] = []
        self._rest: list[T] = []
        self._last: tuple[int, T] | None = None
        for item in items:
            self.append(item)

    def append(self, item: T) -> None:
        """Add an item at the end."""
        self._rest.append(item)
        if len(self._rest) == BLOCK:
            self._blocks.append(_Block(self._rest))
            self._rest = []

    def __len__(self) -> int:
        return BLOCK * len(self._blocks) + len(self._rest)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Packed[T]: ...

    def __getitem__(self, index: int | slice) -> T | Packed[T]:
        """Return an item, or a sequence of several."""
        if isinstance(index, slice):
            return Packed(self[number] for number in range(len(self))[index])
        index = range(len(self))[index]
        last = self._last
        if last is None or last[0] != index:  # an image's errors come one after the other
            block, position = divmod(index, BLOCK)
            item = self._blocks[block].item(position) if block < len(self._blocks) else self._rest[position]
            last = self._last = index, item
        return last[1]

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))


class _Block(Generic[T]):
    """Some items, field by field."""

    def __init__(self, items: Sequence[T]) -> None:
        first: Any = items[0]
        self._type = type(first)
        names = getattr(first, "_fields", None) or [field.name for field in fields(first)]
        self._columns = {name: _column([getattr(item, name) for item in items]) for name in names}

    def item(self, position: int) -> T:
        return self._type(**{name: column[position] for name, column in self._columns.items()})


def _column(values: list[Any]) -> Any:
    """The values of a field, indexed by position."""
    first = values[0]
    if all(value is first for value in values):
        return _Constant(first)
    if all(isinstance(value, np.ndarray) for value in values):
        return _Arrays(values) if _are_alike(values) else values
    if all(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in values):
        arrays = [value.detach().numpy() for value in values]
        return _Arrays(arrays, is_tensor=True) if _are_alike(arrays) else values
    if all(type(value) is tuple for value in values) or all(isinstance(value, Path) for value in values):
        return _Pickled(values)
    return values


def _are_alike(arrays: Sequence[np.ndarray]) -> bool:
    return len({(array.dtype, array.shape[1:]) if array.ndim else None for array in arrays}) == 1 and arrays[0].ndim > 0


class _Constant:
    """One value for all."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __getitem__(self, position: int) -> object:
        return self._value


class _Arrays:
    """Arrays that differ in length alone, one after the other."""

    def __init__(self, arrays: Sequence[np.ndarray], *, is_tensor: bool = False) -> None:
        self._values, self._is_tensor = np.concatenate(arrays), is_tensor
        self._ends = np.cumsum([0, *map(len, arrays)])

    def __getitem__(self, position: int) -> np.ndarray | torch.Tensor:
        part = self._values[self._ends[position] : self._ends[position + 1]]
        return torch.from_numpy(part) if self._is_tensor else part


class _Pickled:
    """Objects as bytes: numbers in nested tuples and lists take three times less."""

    def __init__(self, values: Sequence[object]) -> None:
        self._values = [pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL) for value in values]

    def __getitem__(self, position: int) -> Any:
        return pickle.loads(self._values[position])


def concatenate(rows: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Concatenate the arrays of many rows, column by column, without a list of all of them.

    Args:
        rows: rows of equally many arrays, at least one row.
    """
    blocks: list[list[np.ndarray]] = []
    rest: list[Sequence[np.ndarray]] = []
    for row in rows:
        rest.append(row)
        if len(rest) == BLOCK:
            blocks.append([np.concatenate(column) for column in zip(*rest, strict=True)])
            rest = []
    blocks += [list(row) for row in rest]
    return [np.concatenate(column) for column in zip(*blocks, strict=True)]
