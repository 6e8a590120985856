"""The adapter protocol: how a model family prepares images, runs, and reports scores and detections."""

from __future__ import annotations

import copy
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from detcam.adapters.black_box import BlackBox, gradient_obstacle
from detcam.adapters.contract import TOO_SMALL, check_class, check_options, option_names, too_small
from detcam.adapters.normalization import Normalization
from detcam.adapters.several_inputs import InputKey, arguments, take_input
from detcam.adapters.target_layers import layer_name, resolve_layers, without_prefix
from detcam.adapters.volumes import VolumeReshape, is_volume
from detcam.data.images import Bands, ImageLike, ImageReader, to_uint8
from detcam.detections import Detections, LabelsLike, NamesLike, as_names
from detcam.geometry import Geometry
from detcam.layers import LayersLike, infer_reshape, input_channels, last_axis_channels
from detcam.outputs import ModelOutput
from detcam.outputs import Target as Target
from detcam.trace import ReshapeTransform, Trace, guarded
from detcam.utils.batching import batches, group_by, run_slices
from detcam.utils.console import track
from detcam.utils.text import first_line
from detcam.utils.warnings import warn

if TYPE_CHECKING:
    from detcam.adapters.transformers.prompts import WordHeat

logger = logging.getLogger("detcam")

ModelLike: TypeAlias = "Adapter | nn.Module | str | PathLike[str] | Callable[..., Any]"
"""An adapter, or a model, which is adapted: a module, an ONNX file, or a function from an image to boxes."""

Task = Literal["detection", "segmentation", "classification", "embedding"]

DEFAULT_BATCH_SIZE = 16
"""Number of images per forward pass of `Adapter.predict`."""


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass.

    Attributes:
        inputs: (B, C, H, W) network input on the model's device.
        geometries: B entries, the position of each original image on the input.
        extra_inputs: further positional arguments of the model.
        model_kwargs: keyword arguments of the model.
        is_ready: whether the inputs are the user's tensor, which the adapter has not resized.
    """

    inputs: Tensor
    geometries: tuple[Geometry, ...]
    extra_inputs: tuple[Any, ...] = ()
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    is_ready: bool = False


class AdapterOptions(TypedDict, total=False):
    """Keyword arguments of every adapter; see `Adapter`."""

    target_layers: LayersLike
    reshape_transform: ReshapeTransform | None
    names: NamesLike | None
    value_range: tuple[float, float] | None
    bgr: bool
    page: int | None
    show_bands: Bands | None
    input_key: InputKey | None


class Adapter(ABC):
    """Base class of all adapters: prepares images, runs one model family and interprets its output.

    A subclass sets `family` and `task` and implements `supports`, `default_target_layers`, `prepare`, `outputs`,
    `detections` and `targets_of`. These are checked when the class is created. A base class of further adapters is
    declared with ``class MyBase(Adapter, abstract=True)``, which skips the check.

    Args:
        model: the network; it is not changed.
        target_layers: modules or dotted names; None takes the family's default.
        reshape_transform: from a layer's output to (B, C, h, w); None infers it.
        names: class index to name, or names in class order; None takes the names that the model stores.
        value_range: the values of black and white of images whose dtype does not tell, such as (0, 4095); None scales
            by dtype (`detcam.data.images.ImageReader`).
        bgr: whether arrays of three channels are in OpenCV's order, blue first.
        page: index of the page of files with several.
        show_bands: index of the channel, or of the three channels, that are drawn; None takes the first three.
        input_key: for a network of several inputs, the one that is explained: its position in the tuple of inputs, or
            the name of a keyword argument. None takes the first. Where inputs share layers, maps are those of this
            input.

    Attributes:
        channels: number of channels of the network's input.
        reader: reads images with that number of channels.
        family: name of the model family, unique among adapters.
        task: ``"detection"``, ``"segmentation"``, ``"classification"`` or ``"embedding"``.
        model: the network.
        target_layers: the modules whose activations are explained.
        layer_names: their dotted names.
        layers_given: whether the target layers were passed by the user. A method with its own default layers does not
            replace them.
        reshape_transform: the user's transform, or None where it is inferred for each input size (`reshape_for`).
        names: class index to name; may be incomplete or empty.
        mean: per channel, the mean that `prepare` subtracts from pixels in [0, 1]; None where inputs are not
            normalized by the adapter or the normalization is unknown. Used to display a batch given as a tensor.
        std: per channel, the standard deviation that `prepare` divides by; None together with `mean`.
        max_batch_size: maximum number of images per forward pass; None where the model takes any number.
        takes_bags: whether the network gives one output for a batch, as one of slices: then a target belongs to all.
        first_label: the first index of a class that is no background.
        background: index of the class that is no object, which detections leave out; None if there is none.
        layer_prefix: name of the network in the module that was given to `adapt`, if it is a wrapper.
        wrapper_normalization: how such a wrapper normalizes its input, or None; a batch given as a tensor passes it.
        score_threshold_name: name of the attribute with the minimum score of a detection, where the adapter applies
            it; None where the model applies its own.
        takes_bytes: whether `prepare` also takes large images in 8 bits (`detcam.data.images.as_float`). A class,
            or mixin, with a `prepare` of its own says so itself.
        fixed_options: arguments of the base class's constructor that the subclass sets itself and does not accept.
    """

    family: ClassVar[str]
    task: ClassVar[Task]
    model: nn.Module
    input_key: InputKey | None = None
    target_layers: list[nn.Module]
    layer_names: list[str]
    layers_given: bool
    reshape_transform: ReshapeTransform | None
    names: dict[int, str]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    max_batch_size: int | None = None
    layer_prefix: str = ""
    wrapper_normalization: Normalization | None = None
    takes_bags: bool = False
    background: int | None = None
    first_label: ClassVar[int] = 0
    normalization_is_known: bool = True
    score_threshold_name: ClassVar[str | None] = None
    takes_bytes: ClassVar[bool] = False
    fixed_options: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # One of the two alone in a class says nothing about the other: the first class with either decides.
        first = next(base for base in cls.__mro__ if {"prepare", "takes_bytes"} & vars(base).keys())
        if "takes_bytes" not in vars(first):
            cls.takes_bytes = False  # the `prepare` of a base class does, this one may not
        if not abstract:
            check_class(cls)

    def __init__(
        self,
        model: nn.Module,
        *,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        names: NamesLike | None = None,
        value_range: tuple[float, float] | None = None,
        bgr: bool = False,
        page: int | None = None,
        show_bands: Bands | None = None,
        input_key: InputKey | None = None,
        **unknown: object,
    ) -> None:
        check_options(type(self), unknown)
        self.model = model
        self.reader = ImageReader(input_channels(model), value_range, bgr, page)
        self.show_bands = show_bands
        self.input_key = input_key
        self.reshape_transform = reshape_transform
        self.layers_given = target_layers is not None
        self.names = as_names(self.default_names() if names is None else names)
        self._set_layers(self._default_layers() if target_layers is None else target_layers)
        logger.info("%s explained by the %s adapter at %s", type(model).__name__, self.family, self.layer_names)

    def _default_layers(self) -> Sequence[nn.Module | str] | None:
        """The default target layers; None for a model without gradients, which would tell which they are."""
        if isinstance(self.model, BlackBox):
            return None
        if gradient_obstacle(self.model) is None:
            return self.default_target_layers()
        with warnings.catch_warnings():  # the same obstacle, in torch's words
            warnings.filterwarnings("ignore", ".*an autograd kernel was not registered", UserWarning)
            try:
                return self.default_target_layers()
            except RuntimeError:
                return None

    def _set_layers(self, layers: Sequence[nn.Module | str] | nn.Module | str | None) -> None:
        self.target_layers = [] if layers is None else resolve_layers(self.model, layers)
        self.layer_names = [layer_name(self.model, layer) for layer in self.target_layers]

    def check_normalization(self) -> None:
        """Warn if the normalization of images of this number of channels is not known."""
        if not self.normalization_is_known:
            warn(
                f"{type(self.model).__name__} takes {self.channels} channels and stores no normalization for them: "
                "pixels in [0, 1] go in as they are. Pass mean= and std= (--mean, --std) if it was trained otherwise",
                UserWarning,
            )

    @property
    def channels(self) -> int:
        """Number of channels of the network's input."""
        return self.reader.channels or 3

    def display(self, image: Tensor) -> np.ndarray:
        """Return an image (C, H, W) in [0, 1] as it is drawn: (H, W, 3) uint8."""
        return to_uint8(image, self.show_bands)

    @classmethod
    @abstractmethod
    def supports(cls, model: object) -> bool:
        """Return whether the adapter explains this model. Does not import optional packages.

        Args:
            model: the object given to `adapt`: a module, or a wrapper of another library.
        """

    @classmethod
    def variant(cls, options: Mapping[str, object]) -> type[Adapter]:
        """Return the class that `adapt` takes for a supported model with these options; by default this one."""
        return cls

    @abstractmethod
    def default_target_layers(self) -> Sequence[nn.Module | str]:
        """Return the target layers for ``target_layers=None``."""

    def default_names(self) -> Mapping[int, str]:
        """Return the class names that the model stores, by class index."""
        return {}

    def with_layers(self, target_layers: LayersLike, reshape_transform: ReshapeTransform | None) -> Self:
        """Return a copy of the adapter with other target layers; the adapter itself if both arguments are None."""
        if target_layers is None and reshape_transform is None:
            return self
        changed = copy.copy(self)
        layers = without_prefix(target_layers, self.layer_prefix)
        if layers is not None:
            changed.layers_given = True
            changed._set_layers(layers)
        changed.reshape_transform = reshape_transform or self.reshape_transform
        return changed

    def without_layers(self) -> Self:
        """Return a copy without target layers, for methods that only change the image."""
        changed = copy.copy(self)
        changed.target_layers, changed.layer_names = [], []
        return changed

    def reshape_for(self, batch: Batch) -> ReshapeTransform:
        """Return the transform from a layer's output to (B, C, h, w): the user's, or one inferred for this input."""
        size_hw = (batch.inputs.shape[-2], batch.inputs.shape[-1])
        if is_volume(batch.inputs):
            return VolumeReshape(size_hw, last_axis_channels(self.model), self.reshape_transform)
        return self.reshape_transform or infer_reshape(self.model, size_hw)

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype of the model's parameters."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    def group_key(self, image_size_hw: tuple[int, int]) -> Hashable:
        """Return a key for an image size. Images with equal keys may share a forward pass with unchanged results."""
        return image_size_hw

    @abstractmethod
    def prepare(self, images: Sequence[Tensor]) -> Batch:
        """Turn images (C, H, W) in [0, 1] with equal `group_key` into the network's input."""

    def prepare_tensor(self, batch: Tensor) -> Batch:
        """Turn the user's (B, C, H, W) tensor into the network's input; by default it is taken as it is."""
        inputs = batch.detach().to(self.device, self.dtype)
        if self.wrapper_normalization is not None:
            inputs = self.wrapper_normalization.apply(inputs)
        if is_volume(inputs):  # depth and height are one axis of the maps
            depth, height, width = inputs.shape[2:]
            return Batch(inputs, (Geometry.identity((depth * height, width)),) * len(inputs), is_ready=True)
        geometry = Geometry.identity((inputs.shape[-2], inputs.shape[-1]))
        return Batch(inputs, (geometry,) * len(inputs), is_ready=True)

    def forward(self, batch: Batch) -> Any:
        """Run the model once, differentiable where autograd is on, and return its raw output of any type.

        Raises:
            ValueError: the image is too small for the model's poolings or convolutions.
        """
        positional, keywords = arguments(batch, self.input_key)
        try:
            return self.model(*positional, **keywords)
        except RuntimeError as error:
            if not any(part in str(error) for part in TOO_SMALL):
                raise
            takes_size = not batch.is_ready and "image_size" in option_names(type(self))
            raise ValueError(too_small(self.model, batch.inputs, first_line(error), takes_size=takes_size)) from error

    def take_input(self, images: Any, model_kwargs: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Split a call's inputs into the one of `input_key`, further positional inputs, and keyword arguments."""
        return take_input(self, images, model_kwargs)

    def trace(self, batch: Batch, *, gradients: bool) -> Trace:
        """A context that records the target layers during a pass of a batch."""
        return Trace(
            self.target_layers,
            self.layer_names,
            gradients=gradients,
            reshape_transform=self.reshape_for(batch),
            images=None if self.input_key is None else len(batch.inputs),
        )

    @abstractmethod
    def outputs(self, raw: ModelOutput, batch: Batch) -> list[Any]:
        """Split the raw output by image: B entries, each the argument of a target."""

    @abstractmethod
    def detections(self, outputs: Sequence[Any], batch: Batch) -> list[Detections]:
        """Return the model's own result for each image, detached, best first."""

    @abstractmethod
    def targets_of(self, detections: Detections) -> list[Target]:
        """Return one target for each detection of an image."""

    def default_targets(self, outputs: Sequence[Any], batch: Batch) -> tuple[list[Detections], list[list[Target]]]:
        """Return the detections of each image and their targets, for ``targets=None``."""
        detections = self.detections(outputs, batch)
        return detections, [self.targets_of(item) for item in detections]

    def with_score_threshold(self, score_threshold: float) -> Self:
        """Return a copy that also reports detections of lower scores.

        Args:
            score_threshold: minimum score in [0, 1]. The adapter itself is returned where its own threshold is not
                greater. A threshold in the model, such as torchvision's ``score_thresh``, still applies.
        """
        name = self.score_threshold_name
        if name is None or getattr(self, name) <= score_threshold:
            return self
        changed = copy.copy(self)
        setattr(changed, name, score_threshold)
        return changed

    def words(self, image: Tensor, detections: Detections) -> list[WordHeat]:
        """Return what each word of the prompt of each detection contributes; empty for models that read no text.

        Args:
            image: (3, H, W) in [0, 1].
            detections: detections of the image.
        """
        return []

    def select(
        self,
        detections: Detections,
        output: ModelOutput,
        *,
        score_threshold: float | None = None,
        top_k: int | None = None,
        labels: LabelsLike | None = None,
    ) -> Detections:
        """Select detections of one image by score and class, best first.

        Args:
            detections: the entry of `detections` for the image.
            output: the entry of `outputs` for the image.
            score_threshold: minimum score in [0, 1].
            top_k: maximum number of detections.
            labels: class names or indices.
        """
        return detections.filter(score_threshold=score_threshold, labels=labels, top_k=top_k)

    def score(self, outputs: Sequence[Any], targets: Sequence[Sequence[Target]]) -> list[list[Tensor]]:
        """Return one differentiable scalar per target, per image."""
        return [[target(output) for target in row] for output, row in zip(outputs, targets, strict=True)]

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        score_threshold: float | None = None,
        top_k: int | None = None,
        labels: LabelsLike | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[Detections]:
        """Run the model on images and return its detections.

        Args:
            images: one image, a list of them of any size, or a folder or pattern of files.
            score_threshold: minimum score in [0, 1]; None takes the adapter's own. A threshold in the model, such as
                torchvision's ``score_thresh``, applies as well.
            top_k: maximum number of detections per image; None keeps all. A classifier reports its top class unless
                `top_k` or `labels` is given.
            labels: class names or indices to keep; one of them or several. A classifier reports these classes whatever
                their rank.
            batch_size: number of images per forward pass; None takes 16.
            progress: whether to show a progress bar on stderr.

        Returns:
            One `Detections` per image, best first.

        Raises:
            TypeError: an image has an unknown type.
            ValueError: an image cannot be read, or the model has no such class.

        Example:
            >>> import detcam, torch
            >>> from torchvision.models import resnet18
            >>> adapter = detcam.adapt(resnet18().eval(), image_size=64)
            >>> (detections,) = adapter.predict(torch.rand(3, 48, 64), top_k=2)
            >>> len(detections)
            2
        """
        if score_threshold is not None and (lowered := self.with_score_threshold(score_threshold)) is not self:
            return lowered.predict(
                images,
                score_threshold=score_threshold,
                top_k=top_k,
                labels=labels,
                batch_size=batch_size,
                progress=progress,
            )
        tensors = self.reader.read_all(images, keep_bytes=self.takes_bytes)
        results: dict[int, Detections] = {}
        groups = self.groups(tensors, DEFAULT_BATCH_SIZE if batch_size is None else batch_size)
        for group in track(groups, "predicting", enabled=progress):
            select = partial(self.select, score_threshold=score_threshold, top_k=top_k, labels=labels)
            parts = run_slices(len(group), len(group), partial(self._predict_part, tensors, group, select))
            results.update(zip(group, chain.from_iterable(parts), strict=True))
        return [results[index] for index in range(len(tensors))]

    def _predict_part(
        self, images: Sequence[Tensor], group: Sequence[int], select: Callable[..., Detections], part: slice
    ) -> list[Detections]:
        """Return the selected detections of a part of the images that may share a forward pass."""
        with guarded(self.model, gradients=False):
            batch = self.prepare([images[index] for index in group[part]])
            outputs = self.outputs(self.forward(batch), batch)
            detections = self.detections(outputs, batch)
        return [select(item, output) for item, output in zip(detections, outputs, strict=True)]

    def groups(self, images: Sequence[Tensor], batch_size: int) -> list[list[int]]:
        """Return the indices of images that share a forward pass, at most `batch_size` and `max_batch_size` each."""
        self.check_normalization()
        size = min(batch_size, self.max_batch_size or batch_size)
        by_key = group_by(
            range(len(images)), lambda index: self.group_key((images[index].shape[-2], images[index].shape[-1]))
        )
        return [batch for members in by_key.values() for batch in batches(members, size)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, target_layers={self.layer_names})"
