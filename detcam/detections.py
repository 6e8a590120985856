"""One canonical container for what a model found in one image, and where in the network each finding came from."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

NamesLike: TypeAlias = "Mapping[int, str] | Sequence[str]"
"""Class names: a mapping from class index to name, or a list in class order."""

LabelsLike: TypeAlias = "int | str | Sequence[int | str] | Tensor"
"""Classes by name or index: one of them, or several."""


@dataclass(frozen=True)
class Source:
    """The part of the network that produced a detection, so that the same part can be asked again.

    Attributes:
        kind: ``"proposal"`` (two-stage heads), ``"anchor"`` or ``"cell"`` (dense heads), ``"query"`` (DETR-like
            decoders), ``"region"`` (a class in a semantic map) or ``"image"`` (a classifier).
        level: index of the pyramid level.
        anchor: index of the anchor at that cell, or of the query or candidate; -1 where it is not known, and the
            candidate that fits the target's box best is asked.
        center_xy: where that anchor or cell sits, original image pixels.
        box_xyxy: the proposal, original image pixels.
    """

    kind: Literal["proposal", "anchor", "cell", "query", "region", "image"]
    level: int = 0
    anchor: int = 0
    center_xy: tuple[float, float] | None = None
    box_xyxy: tuple[float, float, float, float] | None = None

    def hflip(self, width: int) -> Source:
        """The same source in the image mirrored left to right."""
        center = self.center_xy and (width - self.center_xy[0], self.center_xy[1])
        box = self.box_xyxy and (width - self.box_xyxy[2], self.box_xyxy[1], width - self.box_xyxy[0], self.box_xyxy[3])
        # A query has no fixed place: which one answers for the mirrored object is for the mirrored image to say.
        anchor = -1 if self.kind == "query" else self.anchor
        return replace(self, anchor=anchor, center_xy=center, box_xyxy=box)


@dataclass(frozen=True)
class Detections:
    """What a model found in one image.

    Attributes:
        boxes_xyxy: (N, 4) float32, pixels of the original image, half-open.
        labels: (N,) int64, the model's own class indices.
        scores: (N,) float32 in [0, 1], as the model reports them.
        image_size_hw: height and width of the original image.
        source: what produced each detection, N entries.
        masks: (N, H, W) bool in image pixels, or None where the model has none.
        names: class index to name; classes without a name are called ``class 7``.
        extras: further per-detection tensors of the family, first dimension N: ``keypoints``
            (N, K, 3) x, y, score; ``corners_xy`` (N, 4, 2) of rotated boxes.
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
        """An image in which nothing was found."""
        return cls(
            torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), image_size_hw, (), names=names or {}
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Detections]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Detections:
        """Some of the detections: an index, a slice, a list of indices or a bool mask (N,)."""
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
            ValueError: a name is not in `names`.
        """
        keep = torch.ones_like(self.scores, dtype=torch.bool)
        if score_threshold is not None:
            keep &= self.scores >= score_threshold
        if labels is not None:
            keep &= torch.isin(self.labels, torch.tensor(label_indices(self.names, labels), dtype=torch.int64))
        order = torch.nonzero(keep)[:, 0]
        order = order[self.scores[order].argsort(descending=True, stable=True)]
        return self[order[:top_k]]

    def name(self, index: int) -> str:
        """The class name of one detection."""
        return class_name(self.names, int(self.labels[index]))

    def caption(self, index: int) -> str:
        """Class name and score of one detection, for people."""
        return f"{self.name(index)} {float(self.scores[index]):.2f}"

    def to_dict(self, index: int) -> dict[str, Any]:
        """One detection as plain numbers, for JSON."""
        return {
            "box_xyxy": [round(value, 2) for value in self.boxes_xyxy[index].tolist()],
            "label": int(self.labels[index]),
            "name": self.name(index),
            "score": round(float(self.scores[index]), 6),
        }


def class_name(names: Mapping[int, str], label: int) -> str:
    """The name of a class index, or ``class 7`` where the model has no name for it."""
    return names.get(label, f"class {label}")


def label_index(names: Mapping[int, str], label: int | str) -> int:
    """Return the class index of a class name or index.

    An exact match is preferred; otherwise case and surrounding spaces are ignored. A text of digits that is not a name
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
    plain = {name.strip().casefold(): name for name in reversed(list(names.values()))}
    wanted = label.strip().casefold()
    if wanted in plain:
        return indices[plain[wanted]]
    if wanted.isdecimal():
        return int(wanted)
    if not names:
        raise ValueError(
            f"the model has no class names; give {label!r} as an index, or pass class names (names=, --names)"
        )
    close = [plain[match] for match in difflib.get_close_matches(wanted, plain, n=3, cutoff=0.5)]
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
