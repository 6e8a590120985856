"""Validates the input of a metric once, and presents it image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detcam.adapters import adapt
from detcam.adapters.base import Adapter, ModelLike, Target
from detcam.data.images import as_float
from detcam.inputs import Images, Request, Targets, read_request
from detcam.metrics.scoring import Protocol, ScoredImage, score_images
from detcam.metrics.target_regions import TargetRegions
from detcam.perturbation.base import default_batch_size
from detcam.results import ImageHeatmaps
from detcam.utils.console import plural

MapArray: TypeAlias = "Tensor | npt.NDArray[np.floating[Any]]"
"""Heatmaps of one image (N, H, W), or a single one (H, W)."""

Heatmaps: TypeAlias = "MapArray | Sequence[MapArray | ImageHeatmaps]"
"""Heatmaps per image, or (B, H, W) with one heatmap per image."""

Truth: TypeAlias = "Sequence[TargetRegions | MapArray]"
"""Per image the annotated regions: `TargetRegions`, or bool masks (N, H, W)."""

Explainer: TypeAlias = Callable[[Adapter, Any, list[list[Target]]], Sequence[MapArray]]
"""A method: from an adapter, images and the targets per image to heatmaps (N_i, H_i, W_i) per image."""


@dataclass(frozen=True)
class MetricImage:
    """One image with the heatmaps that a metric evaluates.

    Attributes:
        heatmaps: (n, H, W) float32 or float64, image pixels, on the CPU; finite, at least one.
        index: position of the image in the call.
        rows: the n positions of the heatmaps among all heatmaps of the image; heatmaps with NaN are left out.
        source: the whole input.
    """

    heatmaps: Tensor
    index: int
    rows: list[int]
    source: MetricInput

    @property
    def adapter(self) -> Adapter:
        """The adapter of the explained model."""
        return self.source.model_call[0]

    @property
    def normalized(self) -> bool:
        """Whether `pixels` is a normalized network input instead of an image."""
        return self.source.model_call[1].tensor is not None

    @property
    def pixels(self) -> Tensor:
        """The image (C, H, W) in [0, 1]; of a (B, C, H, W) input tensor, its normalized row."""
        request = self.source.model_call[1]
        return as_float(request.images[self.index]) if request.tensor is None else request.tensor[self.index]

    @property
    def targets(self) -> list[Target]:
        """The n targets that the heatmaps explain.

        Raises:
            ValueError: the call has no targets.
        """
        targets = self.source.model_call[1].targets
        if targets is None:
            raise ValueError("this metric needs targets=, the targets that the heatmaps explain")
        return [targets[self.index][row] for row in self.rows]

    @property
    def truth(self) -> TargetRegions:
        """The annotated regions (n, H, W) of the explained objects.

        Raises:
            ValueError: the call has no annotations.
        """
        if self.source.truth is None:
            raise ValueError("the call has no annotations: pass truth=, and add 'truth' to the needs of the metric")
        return self.source.truth[self.index].select(self.rows)

    def scored(
        self, protocol: Protocol = "pinned", batch_size: int | None = None, *, probability: bool | None = None
    ) -> ScoredImage:
        """The image at the network's input, where changed versions of it can be scored.

        Args:
            protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
            batch_size: changed images per forward pass; None chooses one for the device.
            probability: whether class logits are scored as probabilities; None follows the call: yes in
                `Metric.measure`, no in calls with the signature of ``pytorch_grad_cam``.
        """
        read_as_probability = self.source.probability if probability is None else probability
        return self.source.scored(self.index, protocol, batch_size, read_as_probability)

    def explain(self, pixels: Tensor, targets: Sequence[Target]) -> Tensor:
        """Heatmaps (N, H, W) of a changed version of the image, from the evaluated method.

        Args:
            pixels: (C, H, W), with the size and range of `MetricImage.pixels`.
            targets: N targets.

        Raises:
            ValueError: the method is missing, or returns heatmaps of another shape.
        """
        if self.source.method is None:
            raise ValueError("the call has no method: pass method=, and add 'method' to the needs of the metric")
        images = pixels[None] if self.normalized else [pixels]
        heatmaps = torch.as_tensor(self.source.method(self.adapter, images, [list(targets)])[0]).detach().cpu()
        expected = (len(targets), *pixels.shape[-2:])
        if tuple(heatmaps.shape) != expected:
            got = tuple(heatmaps.shape)
            raise ValueError(f"expected method to return heatmaps of shape {expected}, one per target; got {got}")
        return heatmaps


@dataclass
class MetricInput:
    """The checked input of a metric.

    Attributes:
        heatmaps: per image (N_i, H_i, W_i) float32 or float64, image pixels, on the CPU; NaN is possible.
        adapter: the adapter of the model, or None in a call without model and images.
        request: images and targets, or None likewise.
        truth: per image the annotated regions, or None.
        method: the method that made the heatmaps, or None.
        probability: whether class logits are scored as probabilities.
    """

    heatmaps: list[Tensor]
    adapter: Adapter | None = None
    request: Request | None = None
    truth: list[TargetRegions] | None = None
    method: Explainer | None = None
    probability: bool = True
    _scored: dict[int, ScoredImage] = field(default_factory=dict, repr=False)
    _scored_with: tuple[Protocol, int, bool] | None = None

    @property
    def model_call(self) -> tuple[Adapter, Request]:
        """The adapter and the request.

        Raises:
            ValueError: the call has none.
        """
        if self.adapter is None or self.request is None:
            raise ValueError(
                "the call has no model: pass a model and images, and add 'model' to the needs of the metric"
            )
        return self.adapter, self.request

    def evaluate(self, function: Callable[[MetricImage], Tensor], *shape: int) -> Tensor:
        """Values of all heatmaps, image by image.

        Args:
            function: returns values ``(n, *shape)`` for the n heatmaps of an image.
            *shape: shape of one heatmap's value; none for a scalar.

        Returns:
            ``(N, *shape)`` float64 on the CPU, N heatmaps in the order of the images; NaN for heatmaps with NaN or
            infinity, which the function does not receive.
        """
        values = [torch.zeros(0, *shape, dtype=torch.float64)]
        for index, maps in enumerate(self.heatmaps):
            rows = self.finite_rows(index)
            part = torch.full((len(maps), *shape), float("nan"), dtype=torch.float64)
            if rows:
                result = torch.as_tensor(function(MetricImage(maps[rows], index, rows, self)))
                if tuple(result.shape) != (len(rows), *shape):
                    got, expected = tuple(result.shape), (len(rows), *shape)
                    raise ValueError(
                        f"expected values of shape {expected} for {plural(len(rows), 'heatmap')}; got {got}"
                    )
                part[rows] = result.detach().cpu().double()
            values.append(part)
        return torch.cat(values)

    def finite_rows(self, index: int) -> list[int]:
        """Positions of an image's heatmaps without NaN and infinity."""
        return torch.nonzero(self.heatmaps[index].flatten(1).isfinite().all(1))[:, 0].tolist()

    def scored(self, index: int, protocol: Protocol, batch_size: int | None, probability: bool) -> ScoredImage:
        """One image at the network's input; the images of a batch share a forward pass. See `MetricImage.scored`."""
        adapter, request = self.model_call
        settings = (protocol, batch_size or default_batch_size(adapter.device), probability)
        if self._scored_with != settings or index not in self._scored:
            group = next(group for group in request.groups(adapter, settings[1]) if index in group)
            rows = [self.finite_rows(image) for image in group]
            maps = [self.heatmaps[image] for image in group]
            images = score_images(adapter, request, group, maps, rows, *settings)
            pairs = zip(group, images, strict=True)
            self._scored = {image: scored for image, scored in pairs if scored is not None}
            self._scored_with = settings
        return self._scored[index]


def read_metric_input(
    model: ModelLike | None,
    images: Images | None,
    targets: Targets,
    heatmaps: Heatmaps,
    *,
    truth: Truth | None = None,
    method: Explainer | None = None,
    probability: bool = True,
) -> MetricInput:
    """Check the input of a metric. See `Metric.measure` for the arguments.

    Model and images may both be None for metrics that need neither.

    Raises:
        TypeError, ValueError: an argument is not as described; the message says what was expected.
    """
    if targets is None and isinstance(heatmaps, (list, tuple)):
        results = [entry for entry in heatmaps if isinstance(entry, ImageHeatmaps)]
        if results and len(results) == len(heatmaps):
            targets = [list(result.targets) for result in results]
    masks = None if truth is None else _read_masks(truth)
    adapter, request = None, None
    if model is not None and images is not None:
        whole_network = [""]  # a metric uses no target layer, so none is searched for
        adapter = model if isinstance(model, Adapter) else adapt(model, target_layers=whole_network)
        request = read_request(adapter, images, targets, None)
        sizes = image_sizes(request)
    elif masks is not None:
        sizes = [(mask.shape[-2], mask.shape[-1]) for mask in masks]
    else:
        sizes = [_map_size(entry) for entry in _per_image(heatmaps)]
    maps = read_heatmaps(heatmaps, sizes)
    if request is not None and request.targets is not None:
        for position, (entry, row) in enumerate(zip(maps, request.targets, strict=True)):
            if len(entry) != len(row):
                raise ValueError(f"image {position}: expected one heatmap per target, {len(row)}; got {len(entry)}")
    regions = None if masks is None or truth is None else _read_regions(truth, masks, maps)
    return MetricInput(maps, adapter, request, regions, method, probability)


def image_sizes(request: Request) -> list[tuple[int, int]]:
    """Height and width of each image of a request."""
    if request.tensor is not None:
        return [(request.tensor.shape[-2], request.tensor.shape[-1])] * len(request.tensor)
    return [(image.shape[-2], image.shape[-1]) for image in request.images]


def read_heatmaps(heatmaps: Heatmaps, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Heatmaps per image, (N_i, H_i, W_i) float32 or float64 on the CPU, for images of the given sizes.

    Raises:
        TypeError, ValueError: the heatmaps differ from the images in number or size, or are not real numbers.
    """
    entries = _per_image(heatmaps)
    if len(entries) != len(sizes):
        raise ValueError(
            f"expected heatmaps for {plural(len(sizes), 'image')}, one entry per image; got {len(entries)}"
        )
    return [_maps_of(entry, size, index) for index, (entry, size) in enumerate(zip(entries, sizes, strict=True))]


def _per_image(heatmaps: Heatmaps) -> Sequence[MapArray | ImageHeatmaps]:
    """Heatmaps as a sequence with one entry per image."""
    if isinstance(heatmaps, (Tensor, np.ndarray)):
        stacked = heatmaps[None] if heatmaps.ndim == 2 else heatmaps
        if stacked.ndim != 3:
            raise ValueError(
                f"expected heatmaps of shape (B, H, W), one per image, or a list of (N, H, W); got shape "
                f"{tuple(heatmaps.shape)}"
            )
        return list(stacked)
    if not isinstance(heatmaps, (list, tuple)):
        raise TypeError(f"expected heatmaps as a tensor, an array or a list of them; got {type(heatmaps).__name__}")
    return heatmaps


def _map_size(entry: MapArray | ImageHeatmaps) -> tuple[int, int]:
    """Height and width of an image's heatmaps."""
    shape = tuple(getattr(entry.heatmaps if isinstance(entry, ImageHeatmaps) else entry, "shape", ()))
    return (shape[-2], shape[-1]) if len(shape) >= 2 else (0, 0)


def _maps_of(entry: MapArray | ImageHeatmaps, size_hw: tuple[int, int], position: int) -> Tensor:
    """One image's heatmaps (N, H, W)."""
    if isinstance(entry, ImageHeatmaps):
        entry = entry.heatmaps
    if not isinstance(entry, (Tensor, np.ndarray)):
        raise TypeError(f"image {position}: expected heatmaps as a tensor or an array; got {type(entry).__name__}")
    maps = torch.as_tensor(entry).detach().cpu()
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or tuple(maps.shape[-2:]) != tuple(size_hw):
        raise ValueError(
            f"image {position}: expected heatmaps of shape (N, {size_hw[0]}, {size_hw[1]}) in image pixels; "
            f"got {tuple(maps.shape)}. Resize a map of a layer with Geometry.to_image first"
        )
    if maps.is_complex():
        raise TypeError(f"image {position}: expected real heatmaps; got {maps.dtype}")
    return maps if maps.dtype in (torch.float32, torch.float64) else maps.float()


def _read_masks(truth: Truth) -> list[Tensor]:
    """The objects' masks per image, (N_i, H_i, W_i)."""
    if not isinstance(truth, (list, tuple)):
        raise ValueError(f"expected truth as a list with one entry per image; got {type(truth).__name__}")
    masks = []
    for position, entry in enumerate(truth):
        mask = entry.objects if isinstance(entry, TargetRegions) else torch.as_tensor(entry).detach().cpu()
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.ndim != 3:
            raise ValueError(f"image {position}: expected truth of shape (N, H, W); got {tuple(mask.shape)}")
        masks.append(mask)
    return masks


def _read_regions(truth: Truth, masks: Sequence[Tensor], heatmaps: Sequence[Tensor]) -> list[TargetRegions]:
    """The annotated regions per image, one for each heatmap."""
    if len(masks) != len(heatmaps):
        raise ValueError(f"expected truth as a list with {len(heatmaps)} entries, one per image; got {len(masks)}")
    for position, (mask, maps) in enumerate(zip(masks, heatmaps, strict=True)):
        if mask.shape != maps.shape:
            raise ValueError(f"image {position}: expected truth of shape {tuple(maps.shape)}; got {tuple(mask.shape)}")
    return [
        entry if isinstance(entry, TargetRegions) else TargetRegions.from_masks(mask.bool())
        for entry, mask in zip(truth, masks, strict=True)
    ]
