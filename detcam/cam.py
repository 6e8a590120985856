"""The batched engine: targets in, heatmaps out.

One forward pass per batch, however many targets; each further target costs one backward pass from the head to the
earliest target layer, and targets on different images share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detcam.adapters import adapt
from detcam.adapters.base import Adapter, Batch, Target
from detcam.detections import Detections
from detcam.diagnostics import warn_about_maps
from detcam.geometry import Geometry, normalize
from detcam.inputs import Choose, Request, read_request
from detcam.outputs import work_dtype
from detcam.results import ImageHeatmaps, Measured, Pass, Reach
from detcam.smoothing import View, views
from detcam.trace import ReshapeTransform, Trace, guarded
from detcam.utils.model_lock import exclusive
from detcam.utils.pca import first_principal_component

Progress = Callable[[Iterable[Any]], Iterable[Any]]

TASKS = frozenset({"classification", "detection", "segmentation", "embedding"})


class BaseCAM:
    """What every class-activation-map method shares. Subclasses override one formula.

    Args:
        model: an `Adapter` from `detcam.adapters.adapt`, or a model, which is adapted.
        target_layers: modules or dotted names; None takes the adapter's default. Several are averaged.
        reshape_transform: from a layer's output to (B, C, h, w); None infers it.

    Attributes:
        batch_size: images per forward pass.
        outputs: the model's raw output of the last pass, whichever thread made it.
    """

    name: ClassVar[str]
    """The method's name in the registry, lower case."""
    paper: ClassVar[str]
    """Title, venue and link."""
    cost: ClassVar[str]
    """Passes through the network for one image, in a few words."""
    use: ClassVar[str]
    """When to use it, in a few words."""
    tasks: ClassVar[frozenset[str]] = TASKS
    """The kinds of adapters (`Adapter.task`) that it explains."""
    uses_gradients: ClassVar[bool] = True
    class_discriminative: ClassVar[bool] = True
    reaches_all: bool = False
    """Whether the layers were chosen to see as far as the network itself looks; what lies beyond has no part at all."""
    rectified: ClassVar[bool] = True
    """Whether negative saliency is cut to 0 before the map is normalised."""

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        self.adapter: Adapter = adapt(model, target_layers=target_layers, reshape_transform=reshape_transform)
        self.model = self.adapter.model
        self.target_layers = self.adapter.target_layers
        self.reshape_transform = self.adapter.reshape_transform
        self.batch_size = 32
        self.outputs: Any = None

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Channel weights (n, C) from activations and gradients (n, C, h, w)."""
        raise NotImplementedError(f"{type(self).__name__} must define weights or contributions")

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Each channel's part of the map: (n, C, h, w), from activations and gradients of that shape."""
        return self.weights(activations, gradients)[:, :, None, None] * activations

    def saliency(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """The raw signed map: (n, h, w)."""
        return self.contributions(activations, gradients).sum(1)

    def __call__(
        self,
        input_tensor: Any,
        targets: Any = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Heatmaps for targets.

        Args:
            input_tensor: one image or a list of them (see `detcam.data.images.ImageLike`), or an already normalised
                (B, C, H, W) tensor; a tuple of tensors for a model with several inputs, the image first.
            targets: None (the top class, or every detection), one target per image, a list of targets per image, or
                `Detections`, one per image.
            aug_smooth: mean over six views of the image (mirrored or not, times 0.9, 1, 1.1).
            eigen_smooth: first principal component over the channels instead of their sum.
            model_kwargs: keyword arguments for the model.

        Returns:
            For a (B, C, H, W) tensor with at most one target per image: (B, H, W) in [0, 1]. Else a list, one per
            image, of (N_i, H, W) tensors in that image's pixels.

        Raises:
            TypeError, ValueError: the input or the targets are not as expected.
            RuntimeError: a target layer never ran, or the score does not depend on it.
        """
        request = read_request(self.adapter, input_tensor, targets, model_kwargs)
        results = self.compute(request, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)
        heatmaps = [result.heatmaps for result in results]
        return torch.cat(heatmaps) if request.stacked else heatmaps

    def explain(
        self, images: Any, targets: Any = None, *, choose: Choose | None = None, **options: Any
    ) -> list[ImageHeatmaps]:
        """As calling, but with everything known: raw saliency, scores, reach and detections, one entry per image.

        Args:
            images: as in the call.
            targets: as in the call.
            choose: with ``targets=None``, which of the model's findings to explain and by what targets.
            **options: `aug_smooth`, `eigen_smooth`, `model_kwargs` as in the call; `progress`, a wrapper of the loop
                over batches such as tqdm.
        """
        request = read_request(self.adapter, images, targets, options.pop("model_kwargs", None))
        request = replace(request, choose=choose)
        return self.compute(request, **options)

    def __enter__(self) -> BaseCAM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to release: hooks live only during a call."""

    def compute(
        self,
        request: Request,
        *,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        progress: Progress | None = None,
    ) -> list[ImageHeatmaps]:
        """Run a checked request; one result per image, in order. No other thread runs the model meanwhile."""
        with exclusive(self.model):
            results: dict[int, ImageHeatmaps] = {}
            groups = request.groups(self.adapter, self.batch_size)
            for group in progress(groups) if progress else groups:
                per_view = []
                asked: list[list[Target]] | None = request.targets_for(group)
                for view in views(aug_smooth):
                    found = self._run(request, group, asked, view, eigen_smooth)
                    per_view.append(found)
                    if asked is None:  # the other views are asked for what the plain image showed
                        asked = [list(result.targets) for result in found]
                results.update(zip(group, [_mean(list(same)) for same in zip(*per_view, strict=True)], strict=True))
            ordered = [results[index] for index in range(len(results))]
            warn_about_maps(self, ordered, self.adapter)
            return ordered

    def _run(
        self,
        request: Request,
        group: Sequence[int],
        asked: list[list[Target]] | None,
        view: View,
        eigen_smooth: bool,
    ) -> list[ImageHeatmaps]:
        adapter = self.adapter
        with guarded(self.model, gradients=self.uses_gradients):
            batch = self.entering(request.batch(adapter, group, view))
            trace = Trace(
                adapter.target_layers,
                adapter.layer_names,
                gradients=self.uses_gradients,
                reshape_transform=adapter.reshape_for(batch),
            )
            with trace, self.watching(batch) as watched:
                raw = adapter.forward(batch)
            self.outputs = raw
            outputs = adapter.outputs(raw, batch)
            trace.check_ran()
            detections: Sequence[Detections | None] = [None] * len(group)
            if asked is None:
                detections, asked = request.findings(adapter, outputs, batch)
            elif request.detections is not None:
                detections = [request.detections[index] for index in group]
            viewed = [[view.target(t, g) for t in row] for row, g in zip(asked, batch.geometries, strict=True)]
            source_images = partial(request.source_images, adapter, group, view)
            found = self.measure(Pass(adapter, batch, trace, outputs, viewed, eigen_smooth, source_images, watched))
        return [
            ImageHeatmaps(
                heatmaps=view.undo(self.combine([m[i] for m in found.maps], batch.geometries[i])).float().cpu(),
                saliency=tuple(level[i].cpu() for level in found.maps),
                targets=tuple(asked[i]),
                scores=torch.tensor(found.values[i], dtype=torch.float32),
                reach=None if found.reach is None else tuple(found.reach[i]),
                detections=detections[i],
                geometry=batch.geometries[i],
                completeness=None if found.completeness is None else found.completeness[i].float().cpu(),
                sampling=None if found.sampling is None else found.sampling[i],
            )
            for i in range(len(group))
        ]

    def entering(self, batch: Batch) -> Batch:
        """The network's input as the pass takes it; methods that differentiate at the input let it enter autograd."""
        return batch

    def watching(self, batch: Batch) -> AbstractContextManager[Any]:
        """What else is open while the network runs, for methods that look at more than target layers."""
        return nullcontext()

    def measure(self, run: Pass) -> Measured:
        """Raw maps of every target of a pass. Methods that do not work by gradients or activations replace this."""
        activations = levels_of(run.trace, len(run.targets))
        counts = [len(row) for row in run.targets]
        maps = [
            [level.new_zeros((n, *level.shape[-2:]), dtype=work_dtype(level)) for n in counts] for level in activations
        ]
        if not any(counts):
            return Measured(maps, [[] for _ in counts], [[] for _ in counts] if self.uses_gradients else None)
        scalars = run.adapter.score(run.outputs, run.targets)
        values = [[value_of(scalar) for scalar in row] for row in scalars]
        if self.uses_gradients:
            return Measured(maps, values, self._differentiate(run, scalars, activations, maps))
        for level, out in zip(activations, maps, strict=True):
            level = level.to(work_dtype(level))
            found = self.saliency(level, level)
            for image, n in enumerate(counts):
                out[image][:] = found[image].expand(n, -1, -1)
        return Measured(maps, values, None)

    def differentiate(self, trace: Trace, score: Tensor, *, retain_graph: bool) -> list[Tensor]:
        """What `contributions` is given as gradients: per level (B, C, h, w), zero where the score does not depend."""
        return [gradient for layer in trace.gradients(score, retain_graph=retain_graph) for gradient in layer]

    def _differentiate(
        self, run: Pass, scalars: list[list[Tensor]], activations: list[Tensor], maps: list[list[Tensor]]
    ) -> list[list[Reach]]:
        """Fill in the maps, one backward pass for the k-th target of all images; returns each target's reach."""
        reach: list[list[Reach]] = [[] for _ in scalars]
        rounds = max(len(row) for row in scalars)
        for k in range(rounds):
            images = [image for image, row in enumerate(scalars) if len(row) > k]
            total = torch.stack([scalars[image][k].reshape(()) for image in images]).sum()
            gradients = self.differentiate(run.trace, total, retain_graph=k + 1 < rounds)
            support = []
            for level, gradient, out in zip(activations, gradients, maps, strict=True):
                strength = _strength(gradient)[images]
                if not bool(torch.isfinite(strength).all()):
                    raise RuntimeError(f"the gradient at {', '.join(run.trace.names)} is NaN or infinite; use float32")
                support.append(strength > 0)
                live = support[-1].flatten(1).any(1)
                if not live.any():
                    continue
                chosen = [image for image, here in zip(images, live.tolist(), strict=True) if here]
                a, g = level[chosen].to(work_dtype(level)), gradient[chosen].to(work_dtype(gradient))
                smooth = run.eigen_smooth
                found = first_principal_component(self.contributions(a, g)) if smooth else self.saliency(a, g)
                for row, image in enumerate(chosen):
                    out[image][k] = found[row]
            for row, image in enumerate(images):
                reach[image].append(Reach.measure([s[row] for s in support], run.batch.geometries[image]))
        return reach

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """One image's heatmaps from its raw maps.

        Each level is normalised over the cells that lie on the image, and resized; their mean is normalised again.

        Args:
            levels: per level, (N, h, w) signed saliency over the network's input.
            geometry: how the image lies on that input.

        Returns:
            (N, H, W) in [0, 1], original image pixels.
        """
        height, width = geometry.image_size_hw
        total = levels[0].new_zeros((len(levels[0]), height, width))
        for level in levels:
            if not len(level):
                continue
            rows, columns = geometry.valid_cells((level.shape[-2], level.shape[-1]))
            rectified = level.clamp(min=0) if self.rectified else level
            inside = rectified[:, rows, columns]
            low, high = inside.amin((1, 2), keepdim=True), inside.amax((1, 2), keepdim=True)
            span = high - low
            scaled = torch.where(span > 0, (rectified - low) / span.clamp(min=torch.finfo(level.dtype).tiny), 0)
            total += geometry.to_image(scaled)
        return normalize(total) if len(total) else total


class LayerlessCAM(BaseCAM):
    """A method without target layers: its map is made of the image, or of the gradient at the network's input.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted so that methods can be swapped; the map does not depend on it.
        reshape_transform: likewise.
    """

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        whole = [""]  # the network itself: no layer is looked for, so none has to be found
        super().__init__(model, target_layers if isinstance(model, Adapter) else whole, reshape_transform)
        self.adapter = self.adapter.without_layers()
        self.target_layers = self.adapter.target_layers


def levels_of(trace: Trace, images: int) -> list[Tensor]:
    """All levels of all layers, each (B, C, h, w), checked."""
    levels = []
    for name, layer in zip(trace.names, trace.activations(), strict=True):
        for level in layer:
            if len(level) != images:
                raise RuntimeError(
                    f"target layer {name} put out {len(level)} items for {images} images; choose a layer that sees "
                    "whole images, not regions of them"
                )
            # One sum tells; where it overflowed, or a value is not finite, every value is looked at.
            if not torch.isfinite(level.sum()) and not torch.isfinite(level).all():
                raise RuntimeError(
                    f"target layer {name} put out NaN or infinity; check the model's weights and its input range"
                    + (", or use float32 instead of half precision" if level.dtype == torch.float16 else "")
                )
            levels.append(level)
    return levels


def _strength(gradient: Tensor) -> Tensor:
    """The greatest magnitude over channels: (n, h, w). One number expanded (a level without part) has one channel."""
    if not any(gradient.stride()):
        return gradient[:, 0].abs()
    return gradient.abs().amax(1)


def value_of(scalar: Any) -> float:
    """A target's scalar as a number."""
    if not isinstance(scalar, Tensor) or scalar.numel() != 1:
        got = tuple(scalar.shape) if isinstance(scalar, Tensor) else type(scalar).__name__
        raise ValueError(f"expected a target to return one number (a tensor with one element); got {got}")
    return float(scalar.detach())


def values_of(scalars: Sequence[Sequence[Tensor]]) -> list[list[float]]:
    """Every target's scalar as a number, per image."""
    return [[value_of(scalar) for scalar in row] for row in scalars]


def _mean(views_of_image: list[ImageHeatmaps]) -> ImageHeatmaps:
    """The plain view's result with the heatmaps of all views averaged; raw saliency stays the plain view's."""
    first = views_of_image[0]
    if len(views_of_image) == 1:
        return first
    return replace(first, heatmaps=torch.stack([view.heatmaps for view in views_of_image]).mean(0))
