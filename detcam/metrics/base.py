"""The protocol of metrics: one call for all of them, values per heatmap, and how values are averaged."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from detcam.adapters import adapt
from detcam.adapters.base import Adapter, Target
from detcam.inputs import Request, read_request
from detcam.results import ImageHeatmaps

Need = Literal["model", "truth", "method"]
"""What a metric needs besides heatmaps: passes of the model; annotations; the method, to explain again."""

Explainer: TypeAlias = Callable[[Adapter, Any, list[list[Target]]], list[Tensor]]
"""A method: from an adapter, images and each image's targets to heatmaps, per image (N_i, H_i, W_i)."""


class MetricWarning(UserWarning):
    """Some heatmaps have no value: they are NaN in the answer, and left out of means."""


class Metric(ABC):
    """A number for each heatmap.

    A class describes itself by its attributes; an object holds the settings, all of which have defaults. Every metric
    is asked by the same call, `measure`, and answers (N,) float64 on the CPU, N being the heatmaps of all images in
    order. A heatmap for which the metric has no meaning (NaN in it; no order among its pixels, for a metric that
    removes them in order; no annotation) has the value NaN, and `MetricWarning` says how many there are.
    """

    name: ClassVar[str]
    """The metric's name in the registry, lower case, words joined by an underscore."""
    paper: ClassVar[str]
    """Title, venue and link."""
    higher_is_better: ClassVar[bool]
    range: ClassVar[tuple[float, float]]
    """Least and greatest value, for scores in [0, 1]; of other scores (logits, boxes' edges) the scale is theirs."""
    tasks: ClassVar[tuple[str, ...]] = ("class", "box", "mask", "embedding")
    """What kinds of targets it judges: a subset of "class", "box", "mask", "embedding"."""
    needs: ClassVar[frozenset[Need]] = frozenset({"model"})

    @abstractmethod
    def measure(
        self,
        adapter: Any,
        images: Any,
        targets: Any,
        heatmaps: Any,
        *,
        truth: Sequence[Any] | None = None,
        method: Explainer | None = None,
    ) -> Tensor:
        """The value of each heatmap.

        Args:
            adapter: an `Adapter`, or a model, which is adapted.
            images: as for a method: images of any size, or an already normalised (B, C, H, W) tensor.
            targets: as for a method: what the heatmaps explain; None where `heatmaps` says so itself
                (`ImageHeatmaps`), or for the model's own findings.
            heatmaps: per image (N_i, H_i, W_i) in its pixels, tensors or arrays; or (B, H, W), one an image; or
                what ``cam.explain`` gave.
            truth: per image (N_i, H_i, W_i) bool, where each heatmap should be hot; for metrics that need "truth".
            method: for metrics that need "method".

        Returns:
            (N,) float64, N = sum of N_i in the order of the images.

        Raises:
            TypeError, ValueError: something is not as described.
        """


@dataclass(frozen=True)
class MetricSummary:
    """Values of a metric, averaged.

    Attributes:
        mean: over the values that are not NaN; NaN where there are none.
        std: standard deviation over them; NaN for fewer than two.
        count: how many there are.
        skipped: how many heatmaps had no value.
    """

    mean: float
    std: float
    count: int
    skipped: int


def summarize(values: Tensor) -> MetricSummary:
    """The mean of (N,) values without those that are NaN, which are counted."""
    known = values[~values.isnan()].double()
    return MetricSummary(
        float(known.mean()) if len(known) else float("nan"),
        float(known.std()) if len(known) > 1 else float("nan"),
        len(known),
        len(values) - len(known),
    )


@dataclass(frozen=True)
class MetricInput:
    """A checked call of a metric.

    Attributes:
        adapter: says what the model's output means.
        request: images and targets.
        heatmaps: per image (N_i, H_i, W_i) floating point, that image's pixels, on the CPU; NaN is possible.
    """

    adapter: Adapter
    request: Request
    heatmaps: tuple[Tensor, ...]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image."""
        return image_sizes(self.request)


def read_metric_input(model: Any, images: Any, targets: Any, heatmaps: Any) -> MetricInput:
    """Check what a metric is asked.

    Raises:
        TypeError, ValueError: what was expected, what came, and the remedy.
    """
    if targets is None and isinstance(heatmaps, (list, tuple)):
        explained = [entry for entry in heatmaps if isinstance(entry, ImageHeatmaps)]
        if explained and len(explained) == len(heatmaps):
            targets = [list(entry.targets) for entry in explained]
    whole = [""]  # the network itself: no layer is looked for, so none has to be found
    adapter = model if isinstance(model, Adapter) else adapt(model, target_layers=whole)
    request = read_request(adapter, images, targets, None)
    maps = read_heatmaps(heatmaps, image_sizes(request))
    if request.targets is not None:
        for position, (own, asked) in enumerate(zip(maps, request.targets, strict=True)):
            if len(own) != len(asked):
                raise ValueError(
                    f"image {position}: expected a heatmap for each of {len(asked)} targets; got {len(own)}"
                )
    return MetricInput(adapter, request, tuple(maps))


def image_sizes(request: Request) -> list[tuple[int, int]]:
    """Height and width of each image of a request."""
    if request.tensor is not None:
        return [(request.tensor.shape[-2], request.tensor.shape[-1])] * len(request.tensor)
    return [(image.shape[-2], image.shape[-1]) for image in request.images]


def read_heatmaps(heatmaps: Any, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Heatmaps per image, (N_i, H_i, W_i) floating point on the CPU, for images of given sizes.

    Raises:
        TypeError, ValueError: not that many, not of that size, or not numbers.
    """
    if isinstance(heatmaps, (Tensor, np.ndarray)):
        if heatmaps.ndim == 2:
            heatmaps = heatmaps[None]
        if heatmaps.ndim != 3:
            raise ValueError(
                f"expected heatmaps of shape (B, H, W), one an image, or a list of (N, H, W); got shape "
                f"{tuple(heatmaps.shape)}"
            )
    elif not isinstance(heatmaps, (list, tuple)):
        raise TypeError(f"expected heatmaps as a tensor, an array or a list of them; got {type(heatmaps).__name__}")
    if len(heatmaps) != len(sizes):
        raise ValueError(f"expected heatmaps for {len(sizes)} images, one entry per image; got {len(heatmaps)}")
    return [_maps_of(entry, size, index) for index, (entry, size) in enumerate(zip(heatmaps, sizes, strict=True))]


def _maps_of(entry: Any, size_hw: tuple[int, int], position: int) -> Tensor:
    """One image's heatmaps (N, H, W)."""
    if isinstance(entry, ImageHeatmaps):
        entry = entry.heatmaps
    if not isinstance(entry, (Tensor, np.ndarray)):
        raise TypeError(f"image {position}: expected heatmaps as a tensor or an array; got {type(entry).__name__}")
    maps = torch.as_tensor(entry).detach().cpu()
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or tuple(maps.shape[-2:]) != tuple(size_hw):
        raise ValueError(
            f"image {position}: expected heatmaps of shape (N, {size_hw[0]}, {size_hw[1]}), the image's own pixels; "
            f"got {tuple(maps.shape)}. A map of a layer goes through Geometry.to_image first"
        )
    if maps.is_complex():
        raise TypeError(f"image {position}: expected real heatmaps; got {maps.dtype}")
    return maps if maps.dtype in (torch.float32, torch.float64) else maps.float()


def read_truth(truth: Any, heatmaps: Sequence[Tensor]) -> list[Tensor]:
    """Annotations per image, (N_i, H_i, W_i) bool, one for each heatmap.

    Raises:
        TypeError, ValueError: missing, or not of the heatmaps' shapes.
    """
    if truth is None:
        raise ValueError("this metric needs truth=: per image (N, H, W) bool, where each heatmap should be hot")
    if not isinstance(truth, (list, tuple)) or len(truth) != len(heatmaps):
        got = f"{len(truth)} entries" if isinstance(truth, (list, tuple)) else type(truth).__name__
        raise ValueError(f"expected truth as a list with {len(heatmaps)} entries, one per image; got {got}")
    masks = []
    for position, (entry, maps) in enumerate(zip(truth, heatmaps, strict=True)):
        mask = torch.as_tensor(entry).detach().cpu()
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.shape != maps.shape:
            raise ValueError(f"image {position}: expected truth of shape {tuple(maps.shape)}; got {tuple(mask.shape)}")
        masks.append(mask.bool())
    return masks


def warn_about_skipped(name: str, values: Tensor) -> Tensor:
    """The values, after a warning that says how many of them are NaN."""
    skipped = int(values.isnan().sum())
    if skipped:
        warnings.warn(
            f"{name}: {skipped} of {len(values)} heatmaps have no value (NaN): they hold NaN, are constant, or nothing "
            "says what is right; means leave them out",
            MetricWarning,
            stacklevel=3,
        )
    return values
