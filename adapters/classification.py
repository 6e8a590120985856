"""Classifiers: any module that returns logits or an object with ``.logits``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from detcam.adapters.base import Adapter, AdapterOptions, Batch, Target, Task
from detcam.adapters.normalization import IMAGENET, Normalization, fit_normalization
from detcam.adapters.output_heads import (
    OutputHead,
    OutputKind,
    check_output_kind,
    describe_output,
    find_head,
    output_of_image,
    recorded_modules,
    select_output,
    suggest_reading,
    unknown_output,
    with_batch_axis,
)
from detcam.adapters.probed_normalization import probed_normalization
from detcam.adapters.stored_config import imagenet_names, stored_config, stored_size
from detcam.data.images import as_float
from detcam.detections import Detections, LabelsLike, Source, checked_top_k, label_indices
from detcam.geometry import Geometry, checked_size
from detcam.layers import find_target_layers, input_channels, probe_image, probe_sizes, takes_sequences
from detcam.outputs import check_label, is_multilabel, raw_output, with_class_facts
from detcam.targets import ClassTarget, reads_raw_output
from detcam.trace import flatten_tensors, guarded
from detcam.utils.memory import check_probe_memory


class FixedSizeAdapter(Adapter, abstract=True):
    """Base class for networks that take images of one size.

    The whole image is resized to `image_size`, without keeping its aspect ratio, so that every pixel can be explained
    (a center crop would hide the borders), and normalized. A (B, C, H, W) tensor is taken as it is.

    Args:
        model: the network.
        image_size: height and width of the network's input, or one number for both; None takes the size that the model
            stores, else 224.
        mean: per channel, of pixels in [0, 1]; None takes 0 if the network normalizes images itself (found with passes
            on noise), else the values that the model stores, else ImageNet's.
        std: as `mean`.
        **options: further arguments of `Adapter`, such as `target_layers` and `names`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    takes_bytes = True

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Unpack[AdapterOptions],
    ) -> None:
        if takes_sequences(model):
            raise TypeError(
                f"expected a network of images or volumes; {type(model).__name__} takes sequences: its convolutions "
                "are Conv1d"
            )
        stored = stored_config(model) if any(value is None for value in (image_size, mean, std)) else {}
        size = checked_size(image_size) or stored_size(model, stored)
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        own = Normalization(tuple(stored.get("mean") or IMAGENET.mean), tuple(stored.get("std") or IMAGENET.std))
        normalization, self.normalization_is_known = fit_normalization(
            input_channels(model), (mean, std), lambda: probed_normalization(model, self.image_size, own)
        )
        self.mean, self.std = normalization.mean, normalization.std
        super().__init__(model, **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        return isinstance(model, nn.Module)

    def group_key(self, image_size_hw: tuple[int, int]) -> int:
        return 0

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self.mean, self.std))
        resized = [
            F.interpolate(as_float(image)[None].to(self.device), self.image_size, mode="bilinear", antialias=True)
            for image in images
        ]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        geometries = tuple(Geometry.resize(size, self.image_size) for size in sizes)
        return Batch(((torch.cat(resized) - mean) / std).to(self.dtype), geometries)


class ClassificationAdapter(FixedSizeAdapter):
    """Explains any module from an image to class scores.

    Several logits are exclusive classes with softmax scores. A head with a single logit separates class 1 from class 0
    and has sigmoid scores. Where the network ends in a sigmoid, softmax or log-softmax, its values are reported as they
    are and the logits before it are explained; several sigmoid values are independent classes. This is found with one
    pass on noise and shown by `repr`. Images and arguments as in `FixedSizeAdapter`; by default, the target layer is
    the last one with a map that the output depends on, found with a probe (`detcam.layers.find_target_layers`).

    Args:
        model: the network.
        output: what the network returns: ``"logits"`` of exclusive classes, ``"probabilities"``, or ``"multilabel"``,
            independent classes (logits or probabilities); None finds it.
        output_key: position, key or attribute of the class scores, where the network returns several outputs.
        decode: from the network's raw output for a batch to class scores (B, C), instead of `output_key`.
        **options: as in `FixedSizeAdapter`.

    Attributes:
        output_head: how the network's output relates to logits.
        class_count: number of class scores that the network returned for noise; None if `output` was ``"logits"``, or
            if it took no noise image.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from detcam.adapters import adapt
        >>> network = [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2), nn.Sigmoid()]
        >>> adapt(nn.Sequential(*network).eval(), image_size=16)
        ClassificationAdapter(Sequential, target_layers=['0'], output='probabilities (sigmoid, multilabel)')
    """

    family = "classification"
    task: ClassVar[Task] = "classification"
    output_head: OutputHead = OutputHead()
    class_count: int | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        output: OutputKind | None = None,
        output_key: int | str | None = None,
        decode: Callable[[Any], Tensor] | None = None,
        **options: Any,
    ) -> None:
        check_output_kind(output)
        if decode is not None and (output_key is not None or not callable(decode)):
            raise TypeError("expected either output_key=, or decode= as a function of the model's output")
        self.output_key = output_key
        self.decode = decode
        super().__init__(model, **options)
        self.output_head = OutputHead() if output == "logits" else self._find_head(output)

    def _find_head(self, output: OutputKind | None) -> OutputHead:
        """Determine the activation at the network's end, and whether it takes one image at a time."""
        for size, count in product(probe_sizes(self.image_size), (2, 1)):
            noise = probe_image(self.model, size, self.device, self.dtype, count=count)
            batch = Batch(noise, (Geometry.identity(size),) * count)
            try:
                with guarded(self.model, gradients=True, quiet=True), recorded_modules(self.model) as seen:
                    values = self.read(self.forward(batch))
            except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError) as error:
                check_probe_memory(error, count, size)
                continue  # an export of fixed batch size, several inputs, or an output that no rule reads
            if values is not None:
                self.class_count = values.shape[1] if values.ndim > 1 else 1
            if values is not None and values.ndim == 2 and len(values) == 1 and count == 2:
                self.takes_bags = True
                return find_head(values, seen, output)
            if values is not None and len(values) == count:
                if count == 1 and self.max_batch_size is None:
                    self.max_batch_size = 1
                return find_head(values, seen, output)
        return find_head(None, [], output)

    def default_target_layers(self) -> Sequence[nn.Module]:
        return find_target_layers(self.model, self.image_size, self.device, self.dtype, self._class_scores)

    def default_names(self) -> Mapping[int, str]:
        return imagenet_names(self.model)

    def read(self, raw: object) -> Tensor | None:
        """Return the class scores (B, C) or (B,) in the model's raw output; None if they are not known."""
        if self.decode is not None:
            values: Any = self.decode(raw)
            if not isinstance(values, Tensor):
                raise TypeError(f"expected decode to return class scores (B, C); got {describe_output(values)}")
        elif self.output_key is not None:
            values = select_output(raw, self.output_key)
            if not isinstance(values, Tensor):
                raise TypeError(f"expected class scores (B, C) at {self.output_key!r}; got {describe_output(values)}")
        else:
            values = getattr(raw, "logits", raw)
            if isinstance(values, Mapping):
                values = values.get("logits", values)
            if not isinstance(values, Tensor):
                tensors = flatten_tensors(values)
                values = tensors[0] if len(tensors) == 1 else None
        if values is not None and values.ndim > 2 and values[0].numel() == values.shape[1]:
            return values.flatten(1)  # (B, C, 1, 1)
        return values

    def _class_scores(self, raw: object) -> Tensor:
        """Return the class scores of a probe.

        Raises:
            TypeError: the output is not understood.
        """
        values = self.read(raw)
        if values is None or values.ndim > 2:
            raise TypeError(unknown_output(self.model, raw))
        return values

    def forward(self, batch: Batch) -> Any:
        with self.output_head.recording():
            return super().forward(batch)

    def outputs(self, raw: object, batch: Batch) -> list[Any]:
        count = len(batch.inputs)
        values = self.read(raw)
        if values is None:
            return [output_of_image(raw, index, count) for index in range(count)]
        if self.takes_bags and values.ndim == 2 and len(values) == 1:
            # Each slice gets its share of the gradient, so that the sum over the slices has the bag's.
            own, logits = (
                part[0] / count + (part[0] * (1 - 1 / count)).detach()
                for part in (values, self.output_head.logits(values))
            )
            multilabel = self.output_head.multilabel
            return [with_class_facts(logits.clone(), own, multilabel=multilabel) for _ in range(count)]
        if not values.ndim or len(values) != count:
            raise TypeError(
                f"expected class scores of shape ({count}, C) from {type(self.model).__name__}; it returned "
                f"{describe_output(raw)}"
            )
        multilabel = self.output_head.multilabel
        whole = values is raw
        return [
            with_class_facts(logits, own if whole else output_of_image(raw, index, count), multilabel=multilabel)
            for index, (logits, own) in enumerate(zip(self.output_head.logits(values), values, strict=True))
        ]

    def score(self, outputs: Sequence[Any], targets: Sequence[Sequence[Target]]) -> list[list[Tensor]]:
        """Return one scalar per target: class targets read the logits, plain functions the model's own output."""
        return [
            [target(raw_output(output) if reads_raw_output(target) else output) for target in row]
            for output, row in zip(outputs, targets, strict=True)
        ]

    def __repr__(self) -> str:
        text = super().__repr__()
        described = self.output_head.describe()
        return f"{text[:-1]}, {described})" if described else text

    def detections(self, outputs: Sequence[Tensor], batch: Batch) -> list[Detections]:
        """The top class of each image, as a detection that covers the image."""
        return [self.ranked(o, g.image_size_hw, top_k=1) for o, g in zip(outputs, batch.geometries, strict=True)]

    def select(
        self,
        detections: Detections,
        output: Tensor,
        *,
        score_threshold: float | None = None,
        top_k: int | None = None,
        labels: LabelsLike | None = None,
    ) -> Detections:
        """Select classes of one image: the top class, unless `top_k` or `labels` is given."""
        if top_k is None and labels is None:
            top_k = 1
        ranked = self.ranked(output, detections.image_size_hw, labels=labels, top_k=top_k)
        return ranked.filter(score_threshold=score_threshold)

    def ranked(
        self,
        logits: Tensor,
        image_size_hw: tuple[int, int],
        *,
        labels: LabelsLike | None = None,
        top_k: int | None = None,
    ) -> Detections:
        """Rank the classes of one image, as detections that cover the image.

        Args:
            logits: (C,), or (1,) or a scalar of a binary head.
            image_size_hw: height and width of the image.
            labels: names or indices of the classes to rank; None takes all.
            top_k: maximum number of classes; None takes all.

        Raises:
            TypeError: the output is not one of class scores.
            ValueError: the model has no such class.
        """
        if not isinstance(logits, Tensor):
            raise TypeError(unknown_output(self.model, with_batch_axis(logits)))
        scores = class_scores(logits)
        indices = list(range(len(scores))) if labels is None else label_indices(self.names, labels)
        for label in indices:
            check_label(label, self.names, len(scores))
        chosen = torch.tensor(indices, dtype=torch.int64)
        chosen = chosen[scores[chosen].argsort(descending=True, stable=True)][: checked_top_k(top_k)]
        height, width = image_size_hw
        return Detections(
            torch.tensor([[0.0, 0.0, width, height]]).expand(len(chosen), 4),
            chosen,
            scores[chosen],
            image_size_hw,
            (Source("image"),) * len(chosen),
            names=self.names,
        )

    def targets_of(self, detections: Detections) -> list[Target]:
        return [ClassTarget(label) for label in detections.labels.tolist()]


def class_scores(logits: Tensor) -> Tensor:
    """Return class scores (C,) in [0, 1] of one image, on the CPU.

    This is the softmax, or the sigmoid of a single logit and of independent classes.

    Args:
        logits: (C,), or (1,) or a scalar of a binary head, whose scores are those of class 0 and class 1.

    Raises:
        TypeError: not one value per class.
    """
    if not isinstance(logits, Tensor) or logits.ndim > 1:
        raise TypeError(
            f"expected class scores of shape (C,) per image; got {describe_output(logits)}. Say what it is:\n"
            f"{suggest_reading(logits[None] if isinstance(logits, Tensor) else logits)}\n"
            "or pass targets= that read this output (e.g. SemanticSegmentationTarget)"
        )
    values = logits.detach().float().cpu().reshape(-1)
    if len(values) == 1:
        values = torch.cat([-values, values]) / 2  # softmax of (-z/2, z/2) is (sigmoid(-z), sigmoid(z))
    elif is_multilabel(logits):
        return values.sigmoid()
    return values.softmax(-1)
