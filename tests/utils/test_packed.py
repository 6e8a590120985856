"""Packed sequences give back what they hold, in less memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from detcam.utils.packed import BLOCK, Packed, concatenate


@dataclass(frozen=True)
class Item:
    name: str
    path: Path
    size: tuple[int, ...]
    values: np.ndarray
    boxes: torch.Tensor
    mixed: Any
    same: Any


class Pair(NamedTuple):
    first: np.ndarray
    second: np.ndarray


NAMES = {1: "a"}


def make(number: int) -> Item:
    generator = np.random.default_rng(number)
    count = number % 4
    mixed = generator.random(2).astype(np.float32 if number % 2 else np.float64)
    boxes = torch.from_numpy(generator.random((count, 4), dtype=np.float32))
    return Item(
        str(number), Path("folder") / f"{number}.png", (number, 1), generator.random(count), boxes, mixed, NAMES
    )


@pytest.mark.parametrize("count", [0, 1, BLOCK, 2 * BLOCK + 3])
def test_items_come_back_as_they_were(count: int) -> None:
    items = [make(number) for number in range(count)]
    packed = Packed(items)
    assert len(packed) == count
    for item, found in zip(items, packed, strict=True):
        assert (found.name, found.path, found.size) == (item.name, item.path, item.size) and found.same is NAMES
        for one, other in ((item.values, found.values), (item.boxes, found.boxes), (item.mixed, found.mixed)):
            assert type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
            assert (one == other).all()
    assert [item.name for item in packed[1 : 2 * BLOCK : 7]] == [item.name for item in items[1 : 2 * BLOCK : 7]]
    if items:
        assert packed[-1].name == items[-1].name
    with pytest.raises(IndexError):
        packed[count]


def test_named_tuples() -> None:
    packed = Packed(Pair(np.arange(number % 3), np.zeros(number % 2)) for number in range(BLOCK + 1))
    assert isinstance(packed[5], Pair) and packed[5].first.tolist() == [0, 1] and packed[5].second.tolist() == [0.0]


def test_small_items_take_little_memory() -> None:
    def size(make_sequence: Any) -> int:
        tracemalloc.start()
        kept = make_sequence(Pair(np.arange(3), np.arange(3.0)) for _ in range(20 * BLOCK))
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(kept) == 20 * BLOCK
        return used

    assert size(Packed) < 0.3 * size(list)


def test_concatenate_is_numpy_s() -> None:
    rows = [(np.arange(number % 3), np.ones((number % 2, 2))) for number in range(2 * BLOCK + 5)]
    for found, column in zip(concatenate(iter(rows)), zip(*rows, strict=True), strict=True):
        assert np.array_equal(found, np.concatenate(column)) and found.dtype == column[0].dtype
