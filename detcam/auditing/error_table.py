"""The errors of a data set as columns, which take about 60 bytes an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, overload

import numpy as np

from detcam.auditing.errors import ERROR_TYPES, DetectionError
from detcam.utils.packed import concatenate

MISSING = -1
"""Stands for None among the indices; NaN does among the scores."""
COLUMN_TYPES = {
    "image_index": np.int32,
    "type": np.int8,
    "detection_index": np.int32,
    "ground_truth_index": np.int32,
    "duplicate_of": np.int32,
    "label": np.int64,
    "score": np.float64,
    "iou_same_class": np.float64,
    "iou_other_class": np.float64,
    "is_false_positive": np.bool_,
    "iou": np.float64,
}
OPTIONAL = ("detection_index", "ground_truth_index", "duplicate_of")


class ErrorTable(Sequence[DetectionError]):
    """A sequence of errors that keeps columns, and makes a `DetectionError` on access.

    Args:
        errors: the errors of each image.
        image_ids: id of each image.
    """

    def __init__(self, errors: Iterable[Sequence[DetectionError]], image_ids: Sequence[int | str]) -> None:
        self.image_ids = image_ids
        empty: np.ndarray = np.zeros(0, dtype=list(COLUMN_TYPES.items()))
        parts = (np.array([_to_row(error) for error in part], dtype=empty.dtype) for part in errors)
        (self.columns,) = concatenate((part,) for part in chain([empty], parts))

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, index: int) -> DetectionError: ...

    @overload
    def __getitem__(self, index: slice) -> list[DetectionError]: ...

    def __getitem__(self, index: int | slice) -> DetectionError | list[DetectionError]:
        """Return an error, or a list of errors."""
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        values = dict(zip(COLUMN_TYPES, self.columns[index].item(), strict=True))
        values["type"] = ERROR_TYPES[values["type"]]
        values |= {name: None for name in OPTIONAL if values[name] == MISSING}
        values["score"] = None if np.isnan(values["score"]) else values["score"]
        return DetectionError(image_id=self.image_ids[values["image_index"]], **values)

    def __iter__(self) -> Iterator[DetectionError]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    @cached_property
    def types(self) -> np.ndarray:
        """(n,) object, type of each error."""
        return np.array(ERROR_TYPES, dtype=object)[self.columns["type"]]


def _to_row(error: DetectionError) -> tuple[Any, ...]:
    values = vars(error)
    return tuple([_to_number(name, values[name]) for name in COLUMN_TYPES])


def _to_number(name: str, value: Any) -> Any:
    if value is None:
        return np.nan if name == "score" else MISSING
    return ERROR_TYPES.index(value) if name == "type" else value
