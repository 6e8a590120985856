"""The adapter protocol: what a model family must say about itself so that every method works on it."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from detcam.data.images import ImageLike, load_images
from detcam.detections import Detections
from detcam.geometry import Geometry
from detcam.layers import infer_reshape
from detcam.outputs import BaseTarget, DetectionTarget, DetectorOutput
from detcam.outputs import Target as Target
from detcam.targets import BoxTarget
from detcam.trace import ReshapeTransform, guarded

logger = logging.getLogger("detcam")

ModelLike: TypeAlias = "Adapter | nn.Module"
"""An adapter, or a model, which is adapted."""

Task = Literal["detection", "segmentation", "classification", "embedding"]


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes.

    Attributes:
        inputs: (B, C, H, W) network input on the model's device; several inputs ride in `extra_inputs`.
        geometries: B entries, where each original image lies on the input.
        extra_inputs: further positional arguments of the model.
        model_kwargs: keyword arguments of the model.
    """

    inputs: Tensor
    geometries: tuple[Geometry, ...]
    extra_inputs: tuple[Any, ...] = ()
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)


class Adapter(ABC):
    """Normalises one model family: prepares images, runs the model, and says what its output means.

    Args:
        model: the user's module; it is never changed.
        target_layers: modules or dotted names; None takes the family's measured default.
        reshape_transform: from a layer's output to (B, C, h, w); None infers it.
        names: class index to name; None takes what the model knows.

    Attributes:
        layers_given: whether somebody chose the target layers; a method with a default of its own then keeps them.
    """

    family: ClassVar[str]
    task: ClassVar[Task]

    def __init__(
        self,
        model: nn.Module,
        *,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        names: Mapping[int, str] | Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.reshape_transform = reshape_transform
        self.layers_given = target_layers is not None
        self.names: dict[int, str] = dict(self.default_names()) if names is None else as_names(names)
        layers = self.default_target_layers() if target_layers is None else target_layers
        self.target_layers: list[nn.Module] = resolve_layers(model, layers)
        self.layer_names: list[str] = [layer_name(model, layer) for layer in self.target_layers]
        logger.info("%s explained by the %s adapter at %s", type(model).__name__, self.family, self.layer_names)

    @classmethod
    @abstractmethod
    def supports(cls, model: Any) -> bool:
        """Whether this adapter explains that model; must not import an optional package."""

    @abstractmethod
    def default_target_layers(self) -> Sequence[nn.Module | str]:
        """The layers that explain this family best, by measurement."""

    def default_names(self) -> Mapping[int, str]:
        """Class names that the model itself knows."""
        return {}

    def with_layers(
        self,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None,
        reshape_transform: ReshapeTransform | None,
    ) -> Adapter:
        """This adapter, or a copy of it that looks at other layers."""
        if target_layers is None and reshape_transform is None:
            return self
        changed = copy.copy(self)
        if target_layers is not None:
            changed.layers_given = True
            changed.target_layers = resolve_layers(self.model, target_layers)
            changed.layer_names = [layer_name(self.model, layer) for layer in changed.target_layers]
        changed.reshape_transform = reshape_transform or self.reshape_transform
        return changed

    def without_layers(self) -> Adapter:
        """A copy of this adapter that looks at no layer, for methods that change the image alone."""
        changed = copy.copy(self)
        changed.target_layers, changed.layer_names = [], []
        return changed

    def reshape_for(self, batch: Batch) -> ReshapeTransform:
        """From a layer's output to (B, C, h, w): the user's own, or one inferred for this input size."""
        return self.reshape_transform or infer_reshape(self.model, (batch.inputs.shape[-2], batch.inputs.shape[-1]))

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the model's parameters."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    def group_key(self, image_size_hw: tuple[int, int]) -> Hashable:
        """Images with equal keys may share a forward pass without changing one another's result."""
        return image_size_hw

    @abstractmethod
    def prepare(self, images: Sequence[Tensor]) -> Batch:
        """Images of one group (3, H, W) in [0, 1] to the network's input, geometry kept."""

    def prepare_tensor(self, batch: Tensor) -> Batch:
        """A (B, C, H, W) tensor given by the user: a network's ready input, unless the family says otherwise."""
        inputs = batch.detach().to(self.device, self.dtype)
        return Batch(inputs, (Geometry.identity((inputs.shape[-2], inputs.shape[-1])),) * len(inputs))

    @abstractmethod
    def forward(self, batch: Batch) -> Any:
        """Run the model once; differentiable where autograd is on. Returns its raw output."""

    @abstractmethod
    def outputs(self, raw: Any, batch: Batch) -> list[Any]:
        """The raw output split by image: what a target is called with, B entries."""

    @abstractmethod
    def default_targets(self, outputs: Sequence[Any], batch: Batch) -> tuple[list[Detections], list[list[Target]]]:
        """What `targets=None` means: per image what the model found, and a target for each finding."""

    @abstractmethod
    def targets_of(self, detections: Detections) -> list[Target]:
        """A target for each of an image's findings."""

    def score(self, outputs: Sequence[Any], targets: Sequence[Sequence[Target]]) -> list[list[Tensor]]:
        """One differentiable scalar per target, per image."""
        return [[target(output) for target in asked] for output, asked in zip(outputs, targets, strict=True)]

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        score_threshold: float = 0.0,
        top_k: int | None = None,
        labels: Sequence[int] | None = None,
        batch_size: int = 16,
    ) -> list[Detections]:
        """What the model finds, one `Detections` per image, best first.

        Args:
            images: one image or a list of them; sizes are free.
            score_threshold: least score, in [0, 1], on top of the model's own threshold.
            top_k: at most so many per image.
            labels: class indices to keep.
            batch_size: images per forward pass.
        """
        tensors = load_images(images)
        found: dict[int, Detections] = {}
        for group in self.groups(tensors, batch_size):
            with guarded(self.model, gradients=False):
                batch = self.prepare([tensors[i] for i in group])
                findings, _ = self.default_targets(self.outputs(self.forward(batch), batch), batch)
            found.update(zip(group, findings, strict=True))
        return [
            found[i].filter(score_threshold=score_threshold, labels=labels, top_k=top_k) for i in range(len(tensors))
        ]

    def groups(self, images: Sequence[Tensor], batch_size: int) -> list[list[int]]:
        """Indices of images that share a forward pass, at most `batch_size` each."""
        by_key: dict[Hashable, list[int]] = {}
        for index, image in enumerate(images):
            by_key.setdefault(self.group_key((image.shape[-2], image.shape[-1])), []).append(index)
        return [
            members[start : start + batch_size]
            for members in by_key.values()
            for start in range(0, len(members), batch_size)
        ]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, target_layers={self.layer_names})"


class DetectorAdapter(Adapter):
    """An adapter whose outputs are `DetectorOutput`s; detections and their targets follow from those."""

    task: ClassVar[Task] = "detection"
    least_score_name: ClassVar[str | None] = None
    """The attribute that holds the least score of a detection, where the adapter and not the model sets it."""

    def from_score(self, least: float) -> DetectorAdapter:
        """This adapter, or a copy of it that reports detections of lower scores, as average precision needs them.

        Args:
            least: score in [0, 1] from which on detections are reported. A threshold of the model's own, such as
                torchvision's ``score_thresh``, stays.
        """
        name = self.least_score_name
        if name is None or getattr(self, name) <= least:
            return self
        changed = copy.copy(self)
        setattr(changed, name, least)
        return changed

    @abstractmethod
    def outputs(self, raw: Any, batch: Batch) -> list[DetectorOutput]: ...

    def default_targets(
        self, outputs: Sequence[DetectorOutput], batch: Batch
    ) -> tuple[list[Detections], list[list[Target]]]:
        found = [output.detections() for output in outputs]
        return found, [self.targets_of(detections) for detections in found]

    def targets_of(self, detections: Detections) -> list[Target]:
        return [
            BoxTarget(tuple(box), int(label), source)
            for box, label, source in zip(
                detections.boxes_xyxy.tolist(), detections.labels.tolist(), detections.source, strict=True
            )
        ]

    def score(self, outputs: Sequence[DetectorOutput], targets: Sequence[Sequence[Target]]) -> list[list[Tensor]]:
        scores: list[list[Tensor]] = []
        for output, asked in zip(outputs, targets, strict=True):
            row: list[Tensor | None] = [None] * len(asked)
            for target in asked:
                if isinstance(target, BaseTarget):
                    target.check(output.geometry.image_size_hw, self.names, output.classes)
            boxes = {index: target for index, target in enumerate(asked) if isinstance(target, DetectionTarget)}
            for index, value in zip(boxes, output.score(list(boxes.values())) if boxes else [], strict=True):
                row[index] = value
            scores.append([asked[i](output) if value is None else value for i, value in enumerate(row)])
        return scores


def as_names(names: Mapping[int, str] | Sequence[str]) -> dict[int, str]:
    """Class names as a dict, from a dict or a list in class order."""
    return dict(names) if isinstance(names, Mapping) else dict(enumerate(names))


def resolve_layers(model: nn.Module, layers: Sequence[nn.Module | str] | nn.Module | str) -> list[nn.Module]:
    """Modules from modules or dotted names.

    Raises:
        ValueError: no layers, or a name or module that is not in the model.
        TypeError: neither a module nor a name.
    """
    items = [layers] if isinstance(layers, (str, nn.Module)) and not isinstance(layers, nn.ModuleList) else list(layers)
    if not items:
        raise ValueError("expected at least one target layer; got an empty list")
    by_name = dict(model.named_modules())
    known = {id(module) for module in by_name.values()}
    resolved: list[nn.Module] = []
    for item in items:
        if isinstance(item, str):
            if item not in by_name:
                near = [name for name in by_name if name and name.split(".")[-1] == item.split(".")[-1]]
                near = near or [name for name, _ in model.named_children()]
                raise ValueError(f"the model has no layer named {item!r}; did you mean one of {', '.join(near[:8])}?")
            resolved.append(by_name[item])
        elif isinstance(item, nn.Module):
            if id(item) not in known:
                raise ValueError(
                    f"target layer {type(item).__name__} is not part of this model; pick one of its modules"
                )
            resolved.append(item)
        else:
            raise TypeError(f"expected target layers as modules or dotted names; got {type(item).__name__}")
    return resolved


def layer_name(model: nn.Module, layer: nn.Module) -> str:
    """The dotted name of a module in a model."""
    for name, module in model.named_modules():
        if module is layer:
            return name or type(model).__name__
    return type(layer).__name__
