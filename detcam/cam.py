"""The batched engine of every method: targets in, heatmaps out.

One forward pass per batch serves all targets. A further target costs one backward pass from the head to the earliest
target layer; targets on different images share it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from detcam.adapters import adapt
from detcam.adapters.base import Adapter, Batch, ModelLike, Target
from detcam.adapters.black_box import BlackBox, check_gradients
from detcam.adapters.contract import TASKS
from detcam.adapters.several_inputs import maps_of_input
from detcam.adapters.volumes import combine_volumes, is_volume
from detcam.detections import Detections
from detcam.diagnostics import check_maps_finite, check_saliency, warn_about_maps
from detcam.geometry import Geometry
from detcam.inputs import Images, Request, Select, Targets, View, labeled_targets, read_request, views
from detcam.layers import LayersLike
from detcam.rendering import Combine, DeferredHeatmaps, HeatmapArray, RawMaps, combine_levels
from detcam.results import ImageHeatmaps, Measured, Pass, Reach, levels_of, mean_of_results, values_of
from detcam.trace import ReshapeTransform, Trace, gradient_magnitude, guarded
from detcam.utils.batching import run_slices
from detcam.utils.console import track
from detcam.utils.model_lock import exclusive
from detcam.utils.pca import first_principal_component
from detcam.utils.precision import work_dtype
from detcam.utils.subclasses import check_complete, missing_members

Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""A wrapper of a loop that shows its progress, such as tqdm."""

DEFAULT_BATCH_SIZE = 32
"""Images per forward pass."""


class BaseCAM:
    """Base class of the methods.

    A subclass sets `name` and defines one of `weights`, `contributions`, `saliency` and `measure`. A base class of
    several methods is declared as ``class MyBase(BaseCAM, abstract=True)`` and needs neither.

    Args:
        model: a model, which `detcam.adapters.adapt` adapts, or its adapter.
        target_layers: modules or dotted names; None takes the adapter's default. The maps of several layers are
            averaged.
        reshape_transform: function from a layer's output to (B, C, h, w); None infers it.

    Attributes:
        adapter: the adapter of the model.
        model: the model.
        batch_size: images per forward pass, 32 by default.
        outputs: the model's raw output of the last pass of any thread; None before the first call.

    Raises:
        TypeError: at the creation of a subclass that defines no `name` or no formula.

    Example:
        >>> from detcam import BaseCAM
        >>> from detcam.testing import tiny_classifier
        >>> class MeanGradientCAM(BaseCAM):
        ...     name = "meangradientcam"
        ...
        ...     def weights(self, activations, gradients):
        ...         return gradients.mean((2, 3))
        >>> MeanGradientCAM(tiny_classifier())(torch.rand(2, 3, 32, 32)).shape
        (2, 32, 32)
    """

    name: ClassVar[str]
    """The method's name in the registry, lower case."""
    paper: ClassVar[str] = ""
    """Title, venue and link."""
    cost: ClassVar[str] = ""
    """Passes through the network for one image, in a few words."""
    use: ClassVar[str] = ""
    """When to use the method, in a few words."""
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)
    """The tasks (`Adapter.task`) of the models that the method explains."""
    uses_gradients: bool = True
    """Whether the method differentiates the score at the target layers."""
    class_discriminative: ClassVar[bool] = True
    """Whether the map depends on the target."""
    compares_scores: ClassVar[bool] = False
    """Whether the map consists of small differences between scores, which half precision rounds away. If so, a model in
    half precision or under autocast runs in float32 meanwhile."""
    covers_receptive_field: bool = False
    """Whether gradients at the target layers cover the network's receptive field; then no `ReachWarning` is issued."""
    explains_volumes: ClassVar[bool] = True
    """Whether the method explains volumes (B, C, D, H, W)."""
    rectified: ClassVar[bool] = True
    """Whether negative saliency is set to 0 before the map is normalized."""

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if abstract:
            return
        if not isinstance(cls.__dict__.get("name"), str):
            raise TypeError(
                f"{cls.__name__} does not define a name, under which its results are saved: add "
                f"name = {cls.__name__.lower()!r} to the class, or declare a base class of several methods with "
                f"class {cls.__name__}(..., abstract=True)"
            )
        formulas = ("weights", "contributions", "saliency", "measure")
        if all(getattr(cls, formula) is getattr(BaseCAM, formula) for formula in formulas):
            raise TypeError(
                f"{cls.__name__} has no formula: define weights(self, activations, gradients), which returns channel "
                "weights (n, C), or one of contributions, saliency and measure"
            )
        check_complete("method", cls, missing_members(cls))

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        self.adapter: Adapter = adapt(model, target_layers=target_layers, reshape_transform=reshape_transform)
        self.model = self.adapter.model
        self.batch_size = DEFAULT_BATCH_SIZE
        self.outputs: Any = None
        if isinstance(self.model, BlackBox):  # before a method searches it for layers
            self._check_model()

    @property
    def target_layers(self) -> list[nn.Module]:
        """The target layers. Modules or dotted names that are assigned take effect at the next call."""
        return self.adapter.target_layers

    @target_layers.setter
    def target_layers(self, layers: LayersLike) -> None:
        self._set_layers(layers, None)

    @property
    def reshape_transform(self) -> ReshapeTransform | None:
        """The function from a layer's output to (B, C, h, w); None infers it."""
        return self.adapter.reshape_transform

    @reshape_transform.setter
    def reshape_transform(self, reshape_transform: ReshapeTransform | None) -> None:
        self._set_layers(None, reshape_transform)

    def _set_layers(self, layers: LayersLike, reshape_transform: ReshapeTransform | None) -> None:
        self.adapter = self.adapter.with_layers(layers, reshape_transform)
        self.covers_receptive_field = False
        for value in vars(self).values():
            if isinstance(value, BaseCAM):  # the base method of a wrapper
                value._set_layers(layers, reshape_transform)

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return channel weights (n, C) from activations and gradients (n, C, h, w).

        Raises:
            ValueError: by default: the method defines `saliency` alone, and `eigen_smooth` needs more.
        """
        raise ValueError(
            f"eigen_smooth needs the channels' parts of the map, and {type(self).__name__} defines saliency alone: "
            "define contributions(self, activations, gradients), which returns (n, C, h, w), or leave eigen_smooth out"
        )

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return each channel's part of the map (n, C, h, w) from activations and gradients of that shape."""
        return self.weights(activations, gradients)[:, :, None, None] * activations

    def saliency(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return the raw signed map (n, h, w) from activations and gradients (n, C, h, w)."""
        return self.contributions(activations, gradients).sum(1)

    @overload
    def __call__(
        self,
        input_tensor: str | Path | Image.Image | NDArray[Any] | list[Any],
        targets: Targets = ...,
        aug_smooth: bool = ...,
        eigen_smooth: bool = ...,
        *,
        model_kwargs: Mapping[str, Any] | None = ...,
    ) -> list[HeatmapArray]: ...

    @overload
    def __call__(
        self,
        input_tensor: Images,
        targets: Detections | Sequence[Detections] | Sequence[Sequence[Target]],
        aug_smooth: bool = ...,
        eigen_smooth: bool = ...,
        *,
        model_kwargs: Mapping[str, Any] | None = ...,
    ) -> list[HeatmapArray]: ...

    @overload
    def __call__(  # an array for a (B, C, H, W) tensor, a list for a (C, H, W) tensor: their type is the same
        self,
        input_tensor: Images,
        targets: Targets = ...,
        aug_smooth: bool = ...,
        eigen_smooth: bool = ...,
        *,
        model_kwargs: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def __call__(
        self,
        input_tensor: Images,
        targets: Targets = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> HeatmapArray | list[HeatmapArray]:
        """Compute heatmaps for targets.

        Args:
            input_tensor: one image or a list of them (see `detcam.data.images.ImageLike`), or an already normalized
                (B, C, H, W) tensor; a tuple of tensors for a model with several inputs, the image first.
            targets: None (the top class, or every detection), one target per image, a list of targets per image, or
                `Detections`, one per image.
            aug_smooth: whether to average over six views of the image (mirrored or not, times 0.9, 1, 1.1).
            eigen_smooth: whether to take the first principal component over the channels instead of their sum.
            model_kwargs: keyword arguments for the model.

        Returns:
            For a (B, C, H, W) tensor with at most one target per image: a float32 array (B, H, W) in [0, 1], for
            volumes (B, C, D, H, W) of methods that weight activations an array (B, D, H, W). Else a
            list, one entry per image, of float32 arrays (N_i, H_i, W_i) in that image's pixels.

        Raises:
            TypeError, ValueError: the input or the targets are not as expected.
            RuntimeError: a target layer never ran, the score does not depend on it, or a map holds NaN or infinity.

        Example:
            >>> from detcam import GradCAM
            >>> from detcam.testing import tiny_classifier
            >>> cam = GradCAM(tiny_classifier())
            >>> grayscale_cam = cam(input_tensor=torch.rand(1, 3, 32, 32))[0, :]
            >>> grayscale_cam.shape, grayscale_cam.dtype
            ((32, 32), dtype('float32'))
        """
        request = read_request(self.adapter, input_tensor, targets, model_kwargs)
        results = self.compute(request, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)
        heatmaps: list[HeatmapArray] = [result.heatmaps for result in results]
        return np.concatenate(heatmaps) if request.stacked else heatmaps

    def explain(
        self,
        images: Images,
        targets: Targets = None,
        *,
        choose: Select | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        progress: bool | Progress = False,
    ) -> list[ImageHeatmaps]:
        """Compute heatmaps together with raw saliency, scores, reach and detections; one entry per image.

        Args:
            images: as in the call.
            targets: as in the call.
            choose: with ``targets=None``, selects the predictions to explain and makes their targets.
            aug_smooth: as in the call.
            eigen_smooth: as in the call.
            model_kwargs: as in the call.
            progress: whether to show a progress bar on stderr; or a wrapper of the loop over batches, such as tqdm.

        Returns:
            One `ImageHeatmaps` per image.

        Raises:
            TypeError, ValueError, RuntimeError: as in the call.

        Example:
            >>> import torch
            >>> from torchvision.models import resnet18
            >>> from detcam import GradCAM
            >>> result = GradCAM(resnet18()).explain(torch.rand(3, 64, 48))[0]
            >>> result.heatmaps.shape, len(result.saliency)
            ((1, 64, 48), 1)
        """
        request = replace(read_request(self.adapter, images, targets, model_kwargs), choose=choose)
        if isinstance(progress, bool):
            progress = partial(track, description=self.name, enabled=progress)
        return self.compute(request, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth, progress=progress)

    def __enter__(self) -> BaseCAM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Do nothing: hooks exist only during a call."""

    def compute(
        self,
        request: Request,
        *,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        progress: Progress | None = None,
    ) -> list[ImageHeatmaps]:
        """Run a checked request; one result per image, in order. No other thread runs the model meanwhile."""
        self._check_model()
        if is_volume(request.tensor) and not self.explains_volumes:
            raise ValueError(
                f"{type(self).__name__} does not explain volumes (B, C, D, H, W); use a method that weights the "
                "activations of a layer by their gradients, such as GradCAM or HiResCAM"
            )
        with exclusive(self.model):
            results: dict[int, ImageHeatmaps] = {}
            groups = request.groups(self.adapter, self.batch_size)
            for group in progress(groups) if progress else groups:
                size = len(group) if request.is_divisible(self.adapter) else None
                explain = partial(self._explain_part, request, group, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)
                parts = run_slices(len(group), size, explain)
                results.update(zip(group, chain.from_iterable(parts), strict=True))
            ordered = [results[index] for index in range(len(results))]
            warn_about_maps(self, ordered, self.adapter)
            return ordered

    def _explain_part(
        self, request: Request, group: Sequence[int], part: slice, *, aug_smooth: bool, eigen_smooth: bool
    ) -> list[ImageHeatmaps]:
        """Explain a part of the images that may share a forward pass; the mean over the views with `aug_smooth`."""
        group = group[part]
        per_view: list[list[ImageHeatmaps]] = []
        targets = request.targets_for(group)
        for view in views(aug_smooth):
            per_view.append(self._run(request, group, targets, view, eigen_smooth))
            # The other views explain the predictions, and the best classes of boxes without one, of the plain image.
            targets = [list(result.targets) for result in per_view[0]]
        return [mean_of_results(results) for results in zip(*per_view, strict=True)]

    def _check_model(self) -> None:
        """Raise TypeError if the model has no gradients (int8, ONNX, a function) and the method needs what it lacks."""
        needs_layers = not isinstance(self, LayerlessCAM) and not self.adapter.target_layers
        if self.uses_gradients or needs_layers:
            needed = "gradients" if self.uses_gradients else "target_layers=, layers that return float maps"
            check_gradients(self.model, type(self).__name__, needed)

    def _run(
        self,
        request: Request,
        group: Sequence[int],
        targets: list[list[Target]] | None,
        view: View,
        eigen_smooth: bool,
    ) -> list[ImageHeatmaps]:
        """Explain the images of a group in one view."""
        adapter = self.adapter
        with guarded(self.model, gradients=self.uses_gradients, float32=self.compares_scores):
            batch = self.prepare_input(request.batch(adapter, group, view))
            with adapter.trace(batch, gradients=self.uses_gradients) as trace, self.recording(batch) as recorded:
                raw = adapter.forward(batch)
            self.outputs = trace.output = raw
            outputs = adapter.outputs(raw, batch)
            trace.check_ran()
            detections: Sequence[Detections | None] = [None] * len(group)
            if targets is None:
                detections, targets = request.predictions(adapter, outputs, batch)
            elif request.detections is not None:
                detections = [request.detections[index] for index in group]
            targets = labeled_targets(targets, outputs)
            viewed = [[view.target(t, g) for t in row] for row, g in zip(targets, batch.geometries, strict=True)]
            source_images = partial(request.source_images, adapter, group, view)
            measured = self.measure(Pass(adapter, batch, trace, outputs, viewed, eigen_smooth, source_images, recorded))
        if adapter.input_key is not None and adapter.target_layers:
            measured = maps_of_input(adapter, batch, measured, type(self).__name__)
        check_maps_finite(self, measured.maps, targets, group)
        is_image = not is_volume(batch.inputs)
        combine = self.combine if is_image else combine_volumes(batch, trace, rectified=self.rectified)
        return [
            measured.image_heatmaps(
                index,
                self._rendered(combine, [level[index] for level in measured.maps], geometry, view),
                targets[index],
                detections[index],
                geometry,
            )
            for index, geometry in enumerate(batch.geometries)
        ]

    def _rendered(
        self, combine: Combine, levels: Sequence[Tensor], geometry: Geometry, view: View
    ) -> Tensor | DeferredHeatmaps:
        """One image's heatmaps; large ones are left to be computed when they are read, where `combine` allows it."""
        is_common = type(self).combine is BaseCAM.combine
        is_function = isinstance(inspect.getattr_static(self, "combine"), staticmethod)  # it holds no model
        if combine == self.combine and (is_common or is_function):
            formula = None if is_common else combine
            return RawMaps(tuple(levels), geometry, self.rectified, view.mirrored, formula).heatmaps()
        return view.undo(combine(levels, geometry))

    def prepare_input(self, batch: Batch) -> Batch:
        """Return the network's input for the pass, by default unchanged; a method may make it require gradients."""
        return batch

    def recording(self, batch: Batch) -> AbstractContextManager[Any]:
        """Return a context that is open during the forward pass, to record more than the target layers."""
        return nullcontext()

    def measure(self, run: Pass) -> Measured:
        """Return the raw maps of every target of a pass. Methods that perturb or sample override this."""
        activations = levels_of(run.trace, len(run.targets))
        counts = [len(row) for row in run.targets]
        maps = [
            [level.new_zeros((n, *level.shape[-2:]), dtype=work_dtype(level)) for n in counts] for level in activations
        ]
        if not any(counts):
            return Measured(maps, [[] for _ in counts], [[] for _ in counts] if self.uses_gradients else None)
        scalars = run.adapter.score(run.outputs, run.targets)
        values = values_of(scalars)
        if self.uses_gradients:
            return Measured(maps, values, self._differentiate(run, scalars, activations, maps))
        for level, out in zip(activations, maps, strict=True):
            level = level.to(work_dtype(level))
            saliency = check_saliency(self, self.saliency(level, level), level)
            for image, n in enumerate(counts):
                out[image][:] = saliency[image].expand(n, -1, -1)
        return Measured(maps, values, None)

    def differentiate(self, trace: Trace, score: Tensor, *, retain_graph: bool) -> list[Tensor]:
        """Return the gradients for `contributions`: per level (B, C, h, w), zero for a level without influence."""
        return [gradient for layer in trace.gradients(score, retain_graph=retain_graph) for gradient in layer]

    def _differentiate(
        self, run: Pass, scalars: list[list[Tensor]], activations: list[Tensor], maps: list[list[Tensor]]
    ) -> list[list[Reach]]:
        """Fill in the maps, one backward pass for the k-th target of all images; return each target's reach."""
        reach: list[list[Reach]] = [[] for _ in scalars]
        rounds = max(len(row) for row in scalars)
        for k in range(rounds):
            images = [image for image, row in enumerate(scalars) if len(row) > k]
            total = torch.stack([scalars[image][k].reshape(()) for image in images]).sum()
            gradients = self.differentiate(run.trace, total, retain_graph=k + 1 < rounds)
            support = []
            for level, gradient, out in zip(activations, gradients, maps, strict=True):
                magnitude = gradient_magnitude(gradient)[images]
                if not bool(torch.isfinite(magnitude).all()):
                    raise RuntimeError(f"the gradient at {', '.join(run.trace.names)} is NaN or infinite; use float32")
                support.append(magnitude > 0)
                live = support[-1].flatten(1).any(1)
                if not live.any():
                    continue
                selected = [image for image, nonzero in zip(images, live.tolist(), strict=True) if nonzero]
                a, g = level[selected].to(work_dtype(level)), gradient[selected].to(work_dtype(gradient))
                if run.eigen_smooth:
                    saliency = first_principal_component(self.contributions(a, g))
                else:
                    saliency = check_saliency(self, self.saliency(a, g), a)
                for row, image in enumerate(selected):
                    out[image][k] = saliency[row]
            for row, image in enumerate(images):
                reach[image].append(Reach.measure([s[row] for s in support], run.batch.geometries[image]))
        return reach

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Combine one image's raw maps into heatmaps (N, H, W); see `detcam.rendering.combine_levels`.

        A subclass that overrides this with a static method, which treats each target alone, keeps the raw maps of large
        images and combines them when they are read; the heatmaps of other overrides are computed at once.
        """
        return combine_levels(levels, geometry, rectified=self.rectified)


class LayerlessCAM(BaseCAM, abstract=True):
    """Base class of the methods without target layers, which use the image or the gradient at the network's input.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted for a common signature; the map does not depend on it.
        reshape_transform: as `target_layers`.
    """

    explains_volumes = False

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        network = [""]  # instead of a default layer, which some networks do not have
        super().__init__(model, target_layers if isinstance(model, Adapter) else network, reshape_transform)
        self.adapter = self.adapter.without_layers()

    def _set_layers(self, layers: LayersLike, reshape_transform: ReshapeTransform | None) -> None:
        raise ValueError(f"{type(self).__name__} has no target layers: its map does not depend on feature maps")
