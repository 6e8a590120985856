"""The container of a model's detections in one image, with the part of the network that produced each of them."""

from __future__ import annotations

import difflib
import math
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, SupportsFloat, TypeAlias

import numpy as np
import torch
from torch import Tensor

from detcam.utils.optional import needs_extra

NamesLike: TypeAlias = "Mapping[int, str] | Sequence[str]"
"""Class names: a mapping from class index to name, or a list in class order."""

LabelsLike: TypeAlias = "int | str | Sequence[int | str] | Tensor"
"""A class or several, by name or index."""

MAX_SHOWN = 3
"""Number of detections that the `repr` shows."""


@dataclass(frozen=True)
class Source:
    """The part of the network that produced a detection; targets read their score from it.

    Attributes:
        kind: ``"proposal"`` (two-stage heads), ``"anchor"`` or ``"cell"`` (dense heads), ``"query"`` (DETR-like
            decoders), ``"region"`` (a class in a semantic map) or ``"image"`` (a classifier).
        level: index of the pyramid level.
        anchor: index of the anchor at that cell, or of the query or candidate; -1 if it is unknown, which stands for
            the candidate that fits the target's box best.
        center_xy: center of the anchor or cell, original image pixels.
        box_xyxy: the proposal, original image pixels.
    """

    kind: Literal["proposal", "anchor", "cell", "query", "region", "image"]
    level: int = 0
    anchor: int = 0
    center_xy: tuple[float, float] | None = None
    box_xyxy: tuple[float, float, float, float] | None = None

    def hflip(self, width: int) -> Source:
        """Return the source in the image mirrored left to right, which is `width` pixels wide."""
        center = self.center_xy and (width - self.center_xy[0], self.center_xy[1])
        box = self.box_xyxy and (width - self.box_xyxy[2], self.box_xyxy[1], width - self.box_xyxy[0], self.box_xyxy[3])
        # A query has no fixed position; the mirrored image determines which one predicts the object.
        anchor = -1 if self.kind == "query" else self.anchor
        return replace(self, anchor=anchor, center_xy=center, box_xyxy=box)


@dataclass(frozen=True, repr=False)
class Detections:
    """The detections of a model in one image.

    Attributes:
        boxes_xyxy: (N, 4) float32, pixels of the original image, half-open.
        labels: (N,) int64, the model's class indices.
        scores: (N,) float32 in [0, 1], as the model reports them.
        image_size_hw: height and width of the original image.
        source: the part of the network that produced each detection, N entries.
        masks: (N, H, W) bool in image pixels, or None if the model predicts none.
        names: class index to name; a class without a name is shown as ``class 7``.
        extras: further tensors of the model family, first dimension N: ``keypoints`` (N, K, 3) x, y, score;
            ``corners_xy`` (N, 4, 2) of rotated boxes.

    Example:
        >>> import torch
        >>> from detcam import Detections, Source
        >>> boxes = torch.tensor([[10.0, 10, 50, 40], [60, 20, 90, 80]])
        >>> scores, sources = torch.tensor([0.4, 0.9]), (Source("cell"), Source("cell"))
        >>> labels, names = torch.tensor([0, 1]), {0: "cat", 1: "dog"}
        >>> detections = Detections(boxes, labels, scores, (100, 100), sources, names=names)
        >>> detections.filter(score_threshold=0.5).caption(0)
        'dog 0.90'
    """

    boxes_xyxy: Tensor
    labels: Tensor
    scores: Tensor
    image_size_hw: tuple[int, int]
    source: tuple[Source, ...]
    masks: Tensor | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.labels)
        lengths = {"boxes_xyxy": len(self.boxes_xyxy), "scores": len(self.scores), "source": len(self.source)}
        lengths.update({name: len(value) for name, value in self.extras.items()})
        if self.masks is not None:
            lengths["masks"] = len(self.masks)
        wrong = {name: length for name, length in lengths.items() if length != count}
        if wrong:
            raise ValueError(f"expected {count} entries in every field, as in labels; got {wrong}")

    @classmethod
    def empty(cls, image_size_hw: tuple[int, int], names: Mapping[int, str] | None = None) -> Detections:
        """Return the detections of an image without any."""
        return cls(
            torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), image_size_hw, (), names=names or {}
        )

    def __repr__(self) -> str:
        height, width = self.image_size_hw
        first = [
            f"{self.caption(index)} at ({', '.join(f'{value:.0f}' for value in self.boxes_xyxy[index].tolist())})"
            for index in range(min(len(self), MAX_SHOWN))
        ]
        rest = [f"and {len(self) - MAX_SHOWN} more"] if len(self) > MAX_SHOWN else []
        listed = f": {', '.join(first + rest)}" if first else ""
        return f"Detections({len(self)} in an image of {width} x {height} pixels{listed})"

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Detections]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Detections:
        """Return a subset, by an index, a slice, a list of indices or a bool mask (N,)."""
        chosen = torch.arange(len(self))[index if not isinstance(index, list) else torch.tensor(index).long()]
        chosen = chosen.reshape(-1)
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[chosen],
            labels=self.labels[chosen],
            scores=self.scores[chosen],
            source=tuple(self.source[i] for i in chosen.tolist()),
            masks=None if self.masks is None else self.masks[chosen],
            extras={name: value[chosen] for name, value in self.extras.items()},
        )

    def filter(
        self, *, score_threshold: float | None = None, labels: LabelsLike | None = None, top_k: int | None = None
    ) -> Detections:
        """Select detections by score and class, best first.

        Args:
            score_threshold: minimum score in [0, 1]; None keeps every score.
            labels: class names or indices to keep; None keeps every class.
            top_k: maximum number of detections; None keeps all.

        Raises:
            TypeError: `score_threshold` or `top_k` is no number.
            ValueError: a name is not in `names`, the threshold is NaN, or `top_k` is negative.
        """
        keep = torch.ones_like(self.scores, dtype=torch.bool)
        if score_threshold is not None:
            keep &= self.scores >= checked_threshold(score_threshold)
        if labels is not None:
            keep &= torch.isin(self.labels, torch.tensor(label_indices(self.names, labels), dtype=torch.int64))
        order = torch.nonzero(keep)[:, 0]
        order = order[self.scores[order].argsort(descending=True, stable=True)]
        return self[order[: checked_top_k(top_k)]]

    def to_supervision(self) -> Any:
        """Convert to ``supervision.Detections``, with the class names in ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        with needs_extra("supervision"):
            from supervision import Detections as SupervisionDetections
        return SupervisionDetections(
            xyxy=self.boxes_xyxy.detach().cpu().numpy().astype(np.float32).reshape(-1, 4),
            mask=None if self.masks is None else self.masks.detach().cpu().numpy().astype(bool),
            confidence=self.scores.detach().cpu().numpy().astype(np.float32),
            class_id=self.labels.detach().cpu().numpy().astype(int),
            data={"class_name": np.array([self.name(index) for index in range(len(self))], dtype=object)},
        )

    @classmethod
    def from_supervision(
        cls, found: Any, image_size_hw: tuple[int, int], names: Mapping[int, str] | None = None
    ) -> Detections:
        """Convert from ``supervision.Detections``.

        Which part of a network produced a box is unknown: `source` is the candidate that fits the box best.

        Args:
            found: the detections; without ``confidence``, scores are 1.
            image_size_hw: height and width of the image.
            names: class index to name; None takes ``data["class_name"]``, if there is one.

        Raises:
            ValueError: the detections have no ``class_id``.
        """
        if found.class_id is None and len(found):
            raise ValueError("expected detections with class_id, the class index of each; got None")
        labels = [] if found.class_id is None else [int(label) for label in found.class_id]
        if names is None:
            known = found.data.get("class_name", [])
            names = {label: str(name) for label, name in zip(labels, known, strict=False)}
        boxes = torch.as_tensor(found.xyxy, dtype=torch.float32).reshape(-1, 4)
        scores = torch.ones(len(boxes)) if found.confidence is None else torch.as_tensor(found.confidence).float()
        sources = tuple(
            Source("cell", anchor=-1, center_xy=((x1 + x2) / 2, (y1 + y2) / 2), box_xyxy=(x1, y1, x2, y2))
            for x1, y1, x2, y2 in boxes.tolist()
        )
        masks = None if found.mask is None else torch.as_tensor(found.mask).bool()
        return cls(boxes, torch.tensor(labels, dtype=torch.int64), scores, image_size_hw, sources, masks, names)

    def name(self, index: int) -> str:
        """Return the class name of one detection."""
        return class_name(self.names, int(self.labels[index]))

    def caption(self, index: int) -> str:
        """Return class name and score of one detection, for display."""
        return f"{self.name(index)} {float(self.scores[index]):.2f}"

    def to_dict(self, index: int) -> dict[str, Any]:
        """Return one detection as plain numbers, for JSON."""
        return {
            "box_xyxy": [round(value, 2) for value in self.boxes_xyxy[index].tolist()],
            "label": int(self.labels[index]),
            "name": self.name(index),
            "score": round(float(self.scores[index]), 6),
        }


def checked_threshold(score_threshold: float) -> float:
    """Return a score threshold.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN, with which nothing compares.
    """
    if not isinstance(score_threshold, SupportsFloat) or isinstance(score_threshold, str):
        raise TypeError(f"expected score_threshold as a number in [0, 1]; got {score_threshold!r}")
    if math.isnan(score_threshold):
        raise ValueError("expected score_threshold as a number in [0, 1]; got NaN")
    return float(score_threshold)


def checked_top_k(top_k: int | None) -> int | None:
    """Return a maximum number, or None for all.

    Raises:
        TypeError: it is no integer.
        ValueError: it is negative, which would leave out the last ones.
    """
    if top_k is None:
        return None
    try:
        count = operator.index(top_k)
    except TypeError as error:
        raise TypeError(f"expected top_k as an integer; got {top_k!r}") from error
    if count < 0:
        raise ValueError(f"expected top_k of at least 0; got {top_k}")
    return min(count, sys.maxsize)


def class_name(names: Mapping[int, str], label: int) -> str:
    """Return the name of a class index, or ``class 7`` if the model has no name for it."""
    return names.get(label, f"class {label}")


def label_index(names: Mapping[int, str], label: int | str) -> int:
    """Return the class index of a class name or index.

    An exact match is preferred; otherwise case and surrounding spaces are ignored. A str of digits that is not a name
    is an index.

    Args:
        names: class index to name.
        label: class name or index.

    Raises:
        ValueError: no class has that name; the message suggests the closest ones.
        TypeError: `label` is neither a name nor an integer.
    """
    if not isinstance(label, str):
        try:
            return operator.index(label)
        except TypeError as error:
            raise TypeError(f"expected a class name or index; got {label!r}") from error
    indices = {name: index for index, name in reversed(list(names.items()))}
    if label in indices:
        return indices[label]
    by_key = {name.strip().casefold(): name for name in reversed(list(names.values()))}
    key = label.strip().casefold()
    if key in by_key:
        return indices[by_key[key]]
    if key.isdecimal():
        return int(key)
    if not names:
        raise ValueError(
            f"the model has no class names; give {label!r} as an index, or pass class names (names=, --names)"
        )
    close = [by_key[match] for match in difflib.get_close_matches(key, by_key, n=3, cutoff=0.5)]
    known = [*indices][::-1]
    listed = f"its classes are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
    hint = f"did you mean {' or '.join(close)}?" if close else listed
    raise ValueError(f"the model has no class named {label!r}; {hint}")


def label_indices(names: Mapping[int, str], labels: LabelsLike) -> list[int]:
    """Return the class indices of class names and indices; a single name or index counts as a list of one.

    Raises:
        ValueError: no class has one of the names; the message suggests the closest ones.
        TypeError: an entry is neither a name nor an integer.
    """
    if isinstance(labels, Tensor):
        return [int(label) for label in labels.flatten().tolist()]
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        return [label_index(names, labels)]
    return [label_index(names, label) for label in labels]


def as_names(names: NamesLike) -> dict[int, str]:
    """Return class names as a dict from class index to name."""
    return dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
