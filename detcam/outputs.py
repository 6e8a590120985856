"""The interface between models and targets: targets, and the per-image model outputs that they read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.detections import Detections, Source, class_name, label_index
from detcam.geometry import Geometry
from detcam.segmenter_output import SegmenterOutput
from detcam.utils.console import short_repr
from detcam.utils.subclasses import check_complete, missing_members

if TYPE_CHECKING:
    from typing_extensions import Self

ModelOutput: TypeAlias = Any
"""A model's output, or an adapter's output for one image; its type depends on the adapter and the model."""

Target: TypeAlias = Callable[[ModelOutput], Tensor]
"""A function from one image's model output to a scalar. `BaseTarget` declares its optional attributes."""

CandidateField: TypeAlias = Literal["boxes_xyxy", "class_scores", "class_logits", "objectness"]
"""A field of `Candidates`."""

Part: TypeAlias = Literal["box", "mask", "output"]
"""What a `DetectionTarget` reads."""


class BaseTarget:
    """A target: a callable from one image's model output to a scalar, with the facts that methods and metrics use.

    A subclass defines `__call__`; a base class of several targets that does not is declared with
    ``class MyBase(BaseTarget, abstract=True)``. The attributes have defaults for a target that refers to the whole
    image and to no class. A dataclass that overrides one of them by a field without a default writes
    ``label: int = field()``.

    Raises:
        TypeError: at the creation of a subclass that defines no scalar.
    """

    label: int | None = None
    """The class index that the target refers to."""
    box_xyxy: tuple[float, float, float, float] | None = None
    """The box that the target refers to, pixels of the original image, half-open."""
    quantity: str | None = None
    """The name of the explained quantity, such as ``"score"``, ``"logit"`` or ``"mask"``."""
    against: int | None = None
    """The class index that `label` is compared with."""
    has_position: bool = False
    """Whether the target refers to a part of the image, so that `hflip` changes it."""

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not abstract:
            check_complete("target", cls, cls._missing_scalar())

    @classmethod
    def _missing_scalar(cls) -> list[str]:
        """Return the declaration of the scalar, if the class does not define it."""
        return [] if cls.__call__ is not BaseTarget.__call__ else ["def __call__(self, output): ...  # the scalar"]

    def __call__(self, output: ModelOutput) -> Tensor:
        """Return the scalar of one image's model output."""
        raise NotImplementedError

    def hflip(self, width: int) -> Self:
        """Return the same target in the image mirrored left to right, which is `width` pixels wide."""
        return self

    def check(self, image_size_hw: tuple[int, int], names: Mapping[int, str], classes: int) -> None:
        """Raise ValueError if the target does not fit the image or the model has no such class."""

    def describe(self, names: Mapping[int, str]) -> str:
        """Return a description of the target, for captions."""
        return type(self).__name__ if self.label is None else class_name(names, self.label)

    def pinned(self, output: ModelOutput) -> Self:
        """Return the target bound to the part of the model that produces it in `output`."""
        return self

    def named(self, names: Mapping[int, str]) -> Self:
        """Return the target with class indices where it was given class names.

        Args:
            names: the model's class names, by index.

        Raises:
            ValueError: the model has no class of that name.
        """
        return self

    def labeled(self, output: ModelOutput) -> Self:
        """Return the target with a class where it was given none: the best one at its box in `output`."""
        return self


class _CallableTarget(BaseTarget):
    """A callable that is not a `BaseTarget`; attributes that it shares with one are taken over."""

    def __init__(self, target: Target) -> None:
        self.target = target
        label = getattr(target, "label", getattr(target, "category", None))
        self.label = label if isinstance(label, int) else None
        self.box_xyxy = getattr(target, "box_xyxy", None)
        self.against = getattr(target, "against", None)
        self.has_position = hasattr(target, "hflip")

    def __call__(self, output: object) -> Tensor:
        return self.target(output)

    def hflip(self, width: int) -> Any:
        return self.target.hflip(width) if self.has_position else self.target  # type: ignore[attr-defined]

    def describe(self, names: Mapping[int, str]) -> str:
        if hasattr(self.target, "describe"):
            return str(self.target.describe(names))
        if self.label is not None:
            return class_name(names, self.label)
        return str(getattr(self.target, "__name__", type(self.target).__name__))


def as_target(target: Target) -> BaseTarget:
    """Return a target with all attributes of `BaseTarget`; a plain callable is wrapped."""
    return target if isinstance(target, BaseTarget) else _CallableTarget(target)


@dataclass(frozen=True)
class DetectionTarget(BaseTarget, abstract=True):
    """A target for one box of one class.

    A subclass defines `value`, which computes the scalar from one row of `Candidates`; it then works on every
    detector. Another may override `__call__` and set `part` to ``"output"`` to read the whole output. A subclass
    without its scalar is a TypeError when the class is created.

    Attributes:
        box_xyxy: the box, pixels of the original image, half-open.
        label: the model's class index. A method also takes its name, or None for the class of the highest score at the
            candidate that fits the box best.
        source: the part of the network that produced the box; None for a box that no detection produced (a missed
            object, a region drawn by hand). Then a two-stage head scores the box as a proposal, and a dense head is
            read at the cell, anchor or query whose predicted box times class score fits best.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class AreaTarget(DetectionTarget):
        ...     def value(self, candidates, row):
        ...         x1, y1, x2, y2 = candidates.boxes_xyxy[row]
        ...         return (x2 - x1) * (y2 - y1)
        >>> AreaTarget((10, 10, 50, 40), label=1).box_xyxy
        (10.0, 10.0, 50.0, 40.0)
    """

    part: ClassVar[Part] = "box"
    """What the target reads: candidates of the box head, the mask of the instance, or the output by itself."""
    has_position = True

    box_xyxy: tuple[float, float, float, float] = field()
    label: int = field()
    source: Source | None = None

    @classmethod
    def _missing_scalar(cls) -> list[str]:
        if cls.part not in get_args(Part):
            return [f"part = ...  # one of {', '.join(map(repr, get_args(Part)))}; not {cls.part!r}"]
        if cls.part == "output" and cls.__call__ is DetectionTarget.__call__:
            return ['def __call__(self, output): ...  # the scalar, since part is "output"']
        if cls.part == "box" and cls.value is DetectionTarget.value:
            return [
                "def value(self, candidates, row): ...  # the scalar, from one row of Candidates; or instead\n    "
                'part = "output", and def __call__(self, output): ...  # the scalar, from the whole output'
            ]
        return []

    def __post_init__(self) -> None:
        try:
            box = tuple(float(value) for value in torch.as_tensor(self.box_xyxy).flatten().tolist())
        except OverflowError as error:  # an integer beyond 1e308
            raise ValueError(f"expected finite box coordinates; got {short_repr(self.box_xyxy)}") from error
        if len(box) != 4:
            raise ValueError(f"expected a box of 4 numbers x1, y1, x2, y2; got {self.box_xyxy!r}")
        if not all(torch.isfinite(torch.tensor(box))):
            raise ValueError(f"expected finite box coordinates; got {box}")
        # A detector may report a box without area (clipped at the border); pinned to its source it can be explained.
        flat = box[2] < box[0] or box[3] < box[1] if self.source else box[2] <= box[0] or box[3] <= box[1]
        if flat:
            raise ValueError(f"expected a box with x1 < x2 and y1 < y2 (xyxy, not xywh); got {box}")
        object.__setattr__(self, "box_xyxy", box)
        set_indices(self)

    @property
    def reads(self) -> frozenset[CandidateField]:
        """The fields of `Candidates` that `value` reads; detectors skip the computation of the others."""
        return frozenset({"boxes_xyxy", "class_scores", "class_logits", "objectness"})

    def value(self, candidates: Candidates, row: int) -> Tensor:
        """Compute the scalar.

        Args:
            candidates: predictions of the box head; only the fields in `reads` are filled.
            row: the row that belongs to this target.

        Returns:
            A tensor with one element, differentiable with respect to the candidates.
        """
        raise NotImplementedError

    def mask_value(self, logits: Tensor, area_xyxy: tuple[float, float, float, float]) -> Tensor:
        """Compute the scalar of a target whose `part` is ``"mask"``: the mean logit over the pixels of the mask.

        Args:
            logits: (h, w), the mask logits of the instance.
            area_xyxy: the part of the image that the cells cover evenly, original image pixels; it may exceed the image
                by fractions of a cell.

        Returns:
            A tensor with one element, differentiable with respect to the logits.
        """
        inside = logits.detach() > 0
        return logits[inside].mean() if bool(inside.any()) else logits.max()

    def __call__(self, output: DetectorOutput) -> Tensor:
        return output.score([self])[0]

    def hflip(self, width: int) -> Self:
        x1, y1, x2, y2 = self.box_xyxy
        source = self.source and self.source.hflip(width)
        return replace(self, box_xyxy=(width - x2, y1, width - x1, y2), source=source)

    def check(self, image_size_hw: tuple[int, int], names: Mapping[int, str], classes: int) -> None:
        height, width = image_size_hw
        x1, y1, x2, y2 = self.box_xyxy
        if self.source is None and (x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0):
            raise ValueError(f"box {self.box_xyxy} lies outside the image, which is {width} x {height} pixels")
        check_label(self.label, names, classes)

    def named(self, names: Mapping[int, str]) -> Self:
        return _with_indices(self, names)

    def labeled(self, output: object) -> Self:
        if self.label is not None or not isinstance(output, DetectorOutput):
            return self
        boxes, scores = output.raw_candidates()
        if not len(boxes):
            raise ValueError("the model has no candidates in this image; give the box a class: BoxTarget(box, label)")
        scores = scores.float().clone()
        if output.background is not None:  # most candidates are background, which is no class of a box
            scores[:, output.background] = -1
        best, labels = scores.max(1)
        overlap = box_iou(boxes.new_tensor([self.box_xyxy]).float(), boxes.float())[0]
        return replace(self, label=int(labels[(overlap * best).argmax()]))

    def pinned(self, output: object) -> Self:
        return replace(self, source=output.source_of(self)) if isinstance(output, DetectorOutput) else self


def set_indices(target: Any) -> None:
    """Convert the class indices `label` and `against` of a frozen target to int; class names and None are unchanged."""
    for name in ("label", "against"):
        index = getattr(target, name, None)
        if index is not None and not isinstance(index, str):
            object.__setattr__(target, name, int(index))


def _with_indices(target: Any, names: Mapping[int, str]) -> Any:
    """Return a dataclass target with class indices for the class names in `label` and `against`."""
    given = {field: getattr(target, field, None) for field in ("label", "against")}
    indices = {field: label_index(names, name) for field, name in given.items() if isinstance(name, str)}
    return replace(target, **indices) if indices else target


def check_label(label: int, names: Mapping[int, str], classes: int) -> None:
    """Raise ValueError if a class index is not one of the model's, or TypeError if it is none."""
    if not isinstance(label, int):
        raise TypeError(
            f"expected a class index as label; got {label!r}. Methods look up names and the best class; otherwise call "
            "target.named(adapter.names) and target.labeled(output)"
        )
    if not 0 <= label < classes:
        known = f", e.g. {', '.join(f'{i} {n}' for i, n in list(names.items())[:3])}" if names else ""
        raise ValueError(f"expected a class index from 0 to {classes - 1}{known}; got {label}")


@dataclass(frozen=True)
class Candidates:
    """Differentiable predictions of a detector's head for K targets; row k belongs to the k-th target.

    Attributes:
        boxes_xyxy: (K, 4) predicted boxes of the targets' classes, original image pixels, not clipped.
        class_scores: (K, C), in [0, 1], as the detector reports them; column = the model's class index.
        class_logits: (K, C) before the sigmoid or softmax.
        objectness: (K,) in [0, 1]; None where the family has none, and from `candidates` of a two-stage detector.
    """

    boxes_xyxy: Tensor
    class_scores: Tensor
    class_logits: Tensor
    objectness: Tensor | None = None


class DetectorOutput(ABC):
    """One image's output of a detector, from which targets read their scalars.

    A subclass implements `candidates` and `detections`, which is checked when the class is created, and its constructor
    sets `geometry` and `classes`. A base class that implements less is declared with
    ``class MyBase(DetectorOutput, abstract=True)``.

    Attributes:
        geometry: position of the image on the network's input.
        classes: number of class indices, including the background if the family has one.
        background: the class index of the background if the scores are a softmax that has one, else None.
    """

    geometry: Geometry
    classes: int
    background: int | None = None

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not abstract:
            check_complete("output", cls, missing_members(cls))

    @abstractmethod
    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        """Return the predictions at each target's source; without a source, at the best fitting candidate."""

    @abstractmethod
    def detections(self) -> Detections:
        """Return the detector's post-processed detections, detached, each with its source."""

    def source_of(self, target: DetectionTarget) -> Source | None:
        """Return the source that predicts a target, or None if the head scores the box itself."""
        return target.source

    @torch.no_grad()
    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        """Return all predictions of the head before non-maximum suppression, detached.

        Args:
            label: for a head with one box per class, the class whose boxes are returned; None takes the best class of
                each candidate. Other heads ignore it.

        Returns:
            Boxes (K, 4), original image pixels, clipped to the image, and their class scores (K, C).
        """
        return self.detected()

    @torch.no_grad()
    def detected(self) -> tuple[Tensor, Tensor]:
        """Return the detector's detections with the scores of all classes, detached.

        Returns:
            Boxes (K, 4), original image pixels, clipped to the image, and their class scores (K, C).
        """
        detections = self.detections()
        if not len(detections):
            return torch.zeros(0, 4), torch.zeros(0, self.classes)
        rows = zip(detections.boxes_xyxy.tolist(), detections.labels.tolist(), detections.source, strict=True)
        candidates = self.candidates([DetectionTarget(tuple(box), label, source) for box, label, source in rows])
        return self.geometry.clip(candidates.boxes_xyxy), candidates.class_scores

    def mask_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        """Return `DetectionTarget.mask_value` of each target, of the logits of its instance's mask."""
        raise ValueError("this detector predicts no masks; explain a box with BoxTarget instead")

    def score(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        """Return one differentiable scalar per target; targets of one part share the head's computation."""
        scores: list[Tensor] = [torch.empty(0)] * len(targets)
        readers = {"box": self.box_scores, "mask": self.mask_scores, "output": lambda rest: [t(self) for t in rest]}
        for part, read in readers.items():
            rows = [row for row, target in enumerate(targets) if target.part == part]
            for row, score in zip(rows, read([targets[row] for row in rows]) if rows else [], strict=True):
                scores[row] = score
        return scores

    def box_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        """Return one differentiable scalar per box target."""
        candidates = self.candidates(targets)
        return [target.value(candidates, row) for row, target in enumerate(targets)]


def with_class_facts(logits: Tensor, raw: ModelOutput, *, multilabel: bool = False) -> Tensor:
    """Attach to one image's class logits what plain targets and scores need, and return them.

    Args:
        logits: (C,).
        raw: the model's own output for the image.
        multilabel: whether the classes are independent (sigmoid) rather than exclusive (softmax).
    """
    logits._detcam_raw = raw  # type: ignore[attr-defined]
    logits._detcam_multilabel = multilabel  # type: ignore[attr-defined]
    return logits


def raw_output(output: ModelOutput) -> ModelOutput:
    """Return the model's own output for one image, which a target reads that is a plain function."""
    return output.raw if isinstance(output, SegmenterOutput) else getattr(output, "_detcam_raw", output)


def is_multilabel(output: ModelOutput) -> bool:
    """Return whether the classes of one image's class logits are independent."""
    return bool(getattr(output, "_detcam_multilabel", False))
