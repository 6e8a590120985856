"""Detectors that are plain functions from an image to boxes: a server, a pipeline, another framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from detcam.adapters.base import AdapterOptions
from detcam.adapters.black_box import BlackBox, class_vectors, count_classes, pad_rows, pixels
from detcam.adapters.custom_detector import CustomDetectorAdapter
from detcam.detections import Detections, as_names

DetectorAnswer: TypeAlias = "Detections | Mapping[str, Any] | tuple[Any, ...]"
"""The detections of one image: `Detections`; ``(boxes, scores)`` or ``(boxes, scores, labels)``; or a mapping with
``boxes`` (N, 4) xyxy in pixels, ``scores`` (N,), ``labels`` (N,) if there are several classes, and optionally
``class_scores`` (N, C)."""

ImageFunction: TypeAlias = Callable[[Any], Any]
"""From an RGB image (H, W, 3) uint8, or a list of them, to its `DetectorAnswer`, or a list of them."""


def read_answer(answer: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Read a function's detections in one image.

    Args:
        answer: a `DetectorAnswer`.

    Returns:
        Boxes (N, 4), scores (N,), labels (N,) int64 or None, and class scores (N, C) or None, on the CPU.

    Raises:
        TypeError: another type.
        ValueError: arrays of other shapes.
    """
    if isinstance(answer, Detections):
        answer = {"boxes": answer.boxes_xyxy, "labels": answer.labels, "scores": answer.scores}
    if isinstance(answer, (tuple, list)) and len(answer) in (2, 3):
        answer = dict(zip(("boxes", "scores", "labels"), answer, strict=False))
    if not isinstance(answer, Mapping) or not {"boxes", "scores"} <= answer.keys():
        got = f"a mapping with {sorted(answer)}" if isinstance(answer, Mapping) else type(answer).__name__
        raise TypeError(
            "expected Detections, (boxes, scores), (boxes, scores, labels), or a mapping with boxes, scores and labels "
            f"per image; got {got}"
        )
    boxes, scores = _tensor(answer["boxes"]).reshape(-1, 4), _tensor(answer["scores"]).reshape(-1)
    labels = None if answer.get("labels") is None else _tensor(answer["labels"]).long().reshape(-1)
    if len(scores) != len(boxes) or (labels is not None and len(labels) != len(boxes)):
        counts = ("" if labels is None else f"{len(labels)} labels, ") + f"{len(scores)} scores"
        raise ValueError(f"expected as many labels and scores as boxes; got {counts}, {len(boxes)} boxes")
    vectors = answer.get("class_scores")
    vectors = None if vectors is None else _tensor(vectors)
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != len(boxes)):
        raise ValueError(f"expected class_scores of shape ({len(boxes)}, C); got {tuple(vectors.shape)}")
    return boxes, scores, labels, vectors


def _tensor(value: Any) -> Tensor:
    """Return numbers as a float32 tensor on the CPU."""
    return torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value, np.float32)).detach().float().cpu()


class FunctionModel(BlackBox):
    """A function from an image to boxes, as a module.

    Args:
        function: an `ImageFunction`.
        classes: number of class indices.
        batched: whether the function takes a list of images.
    """

    obstacle = "is a plain function, without gradients and layers"

    def __init__(self, function: ImageFunction, classes: int, *, batched: bool = False) -> None:
        super().__init__()
        self.function, self.classes, self.batched = function, classes, batched

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, N, 4) and class scores (B, N, C) of images (B, 3, H, W) in [0, 1], padded with zeros."""
        images = pixels(inputs)
        answers = self.function(images) if self.batched else [self.function(image) for image in images]
        if not isinstance(answers, (list, tuple)) or len(answers) != len(images):
            raise TypeError(f"expected the function to return a list with {len(images)} entries, one per image")
        rows = [self._read(answer) for answer in answers]
        return pad_rows([boxes for boxes, _ in rows]), pad_rows([scores for _, scores in rows])

    def _read(self, answer: Any) -> tuple[Tensor, Tensor]:
        boxes, scores, labels, vectors = read_answer(answer)
        if vectors is None:
            return boxes, class_vectors(torch.zeros(len(boxes)) if labels is None else labels, scores, self.classes)
        if vectors.shape[1] > self.classes:
            raise ValueError(
                f"got scores of {vectors.shape[1]} classes and expected at most {self.classes}; pass names=, the name "
                "of each class index, which tells the number of classes"
            )
        return boxes, torch.nn.functional.pad(vectors, (0, self.classes - vectors.shape[1]))


class FunctionDetectorAdapter(CustomDetectorAdapter):
    """Explains a detector that is a plain function, by methods that change the image.

    The function sees the image with parts removed and returns what it detects, as always. A box is found again by
    overlap and class; one that is not found has the score 0.

    Args:
        function: from an RGB image (H, W, 3) uint8 to ``(boxes, scores)`` or ``(boxes, scores, labels)``, NumPy arrays
            or tensors with boxes (N, 4) as corners x1, y1, x2, y2 in pixels, scores (N,) in [0, 1] and labels (N,); or
            to a mapping of these names, or `Detections`. A low threshold helps: a weak box is more informative than
            none.
        kind: ``"detection"``: what the function is.
        batched: whether the function takes a list of images and returns a list.
        score_threshold: minimum score of a detection, in [0, 1].
        **options: `names` and others as in `Adapter`. The names tell the number of classes; without them it is 100.

    Raises:
        TypeError: `kind` is not given.

    Example:
        >>> import detcam, torch
        >>> def bright_corner(image):
        ...     return [(0, 0, 16, 16)], [image[:16, :16].mean() / 255]
        >>> adapter = detcam.adapt(bright_corner, kind="detection", names=["corner"])
        >>> (detections,) = adapter.predict(torch.ones(3, 32, 32))
        >>> detections.names[0], detections.scores.tolist()
        ('corner', [1.0])
    """

    family = "function"
    fixed_options = frozenset({"image_size", "letterbox", "preprocess", "iou_threshold", "max_batch_size"})

    def __init__(
        self,
        function: ImageFunction,
        *,
        kind: str | None = None,
        batched: bool = False,
        score_threshold: float = 0.001,
        max_detections: int = 300,
        **options: Unpack[AdapterOptions],
    ) -> None:
        if kind != "detection":
            name = getattr(function, "__name__", type(function).__name__)
            raise TypeError(
                f"expected a torch.nn.Module, an adapter, or a function from an image to (boxes, scores, labels) with "
                f'kind="detection"; got {name}' + ("" if kind is None else f" with kind={kind!r}")
            )
        classes = count_classes(as_names(options.get("names") or {}))
        super().__init__(
            FunctionModel(function, classes, batched=batched),
            lambda raw: raw,
            score_threshold=score_threshold,
            iou_threshold=1.0,  # the function has suppressed what it suppresses
            max_detections=max_detections,
            **options,
        )

    @classmethod
    def supports(cls, model: object) -> bool:
        if isinstance(model, (nn.Module, type)) or isinstance(getattr(model, "model", None), nn.Module):
            return False
        return callable(model)

    def __repr__(self) -> str:
        function = self.model.function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        return f"{type(self).__name__}({name}, names={list(self.names.values())})"
