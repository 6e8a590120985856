"""Results of a call: the explanation of one image, the raw maps of one forward pass, and their combination."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detcam.detections import Detections
from detcam.geometry import Geometry
from detcam.rendering import DeferredHeatmaps, HeatmapArray, mean_of_views
from detcam.trace import Trace

if TYPE_CHECKING:
    from detcam.adapters.base import Adapter, Batch, Target


@dataclass(frozen=True)
class ImageHeatmaps:
    """The explanation of one image.

    Attributes:
        heatmaps: (N, H, W) float32 array in [0, 1], original image pixels, one per target.
        saliency: per target layer and level, (N, h, w) raw signed saliency over the whole network input, on the CPU.
        targets: the N targets.
        scores: (N,) float32, each target's value.
        reach: per target, the part of the image that its gradient can come from; None for methods without gradients.
        convergence_delta: (N, layers) float32, per layer the difference between the sum of each target's saliency and
            the score difference that it approximates, relative to the latter; None for methods without that property.
        detections: the predictions that the targets stand for, or None.
        geometry: position of the image on the network's input.
        sampling: number of perturbed images and their agreement, for methods that sample.
    """

    maps: HeatmapArray | DeferredHeatmaps
    saliency: tuple[Tensor, ...]
    targets: tuple[Target, ...]
    scores: Tensor
    reach: tuple[Reach, ...] | None
    detections: Detections | None
    geometry: Geometry
    convergence_delta: Tensor | None = None
    sampling: Sampling | None = None

    @property
    def heatmaps(self) -> HeatmapArray:
        """The heatmaps as one array (N, H, W) in [0, 1]; of a large image, ``maps[i]`` computes one alone."""
        return np.asarray(self.maps)

    def count_empty(self) -> int:
        """Return the number of heatmaps that are zero everywhere."""
        if isinstance(self.maps, DeferredHeatmaps):
            return self.maps.count_empty()
        return int((self.maps.reshape(len(self.maps), -1).max(1) == 0).sum()) if len(self.maps) else 0


@dataclass(frozen=True)
class Pass:
    """One forward pass and its targets.

    Attributes:
        adapter: the model's adapter.
        batch: the network's input.
        trace: activations and gradients of the target layers.
        outputs: per image, the argument of targets.
        targets: per image, the targets in this view.
        eigen_smooth: whether the first principal component over channels replaces their sum.
        source_images: function that returns, per image, (C, H, W) in [0, 1] in this view.
        recorded: the value of the context that `BaseCAM.recording` opened around the pass.
    """

    adapter: Adapter
    batch: Batch
    trace: Trace
    outputs: Sequence[Any]
    targets: list[list[Target]]
    eigen_smooth: bool
    source_images: Callable[[], Sequence[Tensor]]
    recorded: Any = None

    def score(self) -> list[list[Tensor]]:
        """The scalar of every target, per image."""
        return self.adapter.score(self.outputs, self.targets) if any(self.targets) else [[] for _ in self.targets]


@dataclass(frozen=True)
class Measured:
    """Raw maps of a pass.

    Attributes:
        maps: per level, per image, (N_i, h, w) signed saliency over the network's input.
        values: per image, each target's value.
        reach: per image, each target's reach; None for methods without gradients.
        convergence_delta: per image, (N_i, layers) as in `ImageHeatmaps`; None for methods without that property.
        sampling: per image, how it was sampled; None for methods that do not sample.
    """

    maps: list[list[Tensor]]
    values: list[list[float]]
    reach: list[list[Reach]] | None
    convergence_delta: list[Tensor] | None = None
    sampling: list[Sampling | None] | None = None

    def of_levels(self, levels: Sequence[int]) -> Measured:
        """Return the measurement of some of the levels alone."""
        return replace(self, maps=[self.maps[level] for level in levels])

    def image_heatmaps(
        self,
        index: int,
        heatmaps: Tensor | DeferredHeatmaps,
        targets: Sequence[Target],
        detections: Detections | None,
        geometry: Geometry,
    ) -> ImageHeatmaps:
        """Return the explanation of one image of the pass.

        Args:
            index: index of the image in the batch.
            heatmaps: (N, H, W) in [0, 1], original image pixels.
            targets: the N targets.
            detections: the predictions that the targets stand for, or None.
            geometry: position of the image on the network's input.
        """
        delta = None if self.convergence_delta is None else self.convergence_delta[index].float().cpu()
        return ImageHeatmaps(
            maps=heatmaps.float().cpu().numpy() if isinstance(heatmaps, Tensor) else heatmaps,
            saliency=tuple(level[index].cpu() for level in self.maps),
            targets=tuple(targets),
            scores=torch.tensor(self.values[index], dtype=torch.float32),
            reach=None if self.reach is None else tuple(self.reach[index]),
            detections=detections,
            geometry=geometry,
            convergence_delta=delta,
            sampling=None if self.sampling is None else self.sampling[index],
        )


@dataclass(frozen=True)
class Reach:
    """The part of the image that the gradient at the target layers covers.

    Attributes:
        fraction: fraction of the image, in [0, 1], that can appear on the map.
        box_xyxy: bounding box of that part, original image pixels; all zero if it is empty.
    """

    fraction: float
    box_xyxy: tuple[float, float, float, float]

    @classmethod
    def measure(cls, supports: Sequence[Tensor], geometry: Geometry) -> Reach:
        """Measure the support of one target's gradient.

        Args:
            supports: per level, (h, w) bool over the network's input, True where any channel's gradient is not 0.
            geometry: position of the image on that input.
        """
        fraction, corners = 0.0, []
        for support in supports:
            rows, columns = geometry.valid_cells((support.shape[-2], support.shape[-1]))
            inside = support[rows, columns]
            cells = torch.nonzero(inside)
            if not len(cells):
                continue
            fraction = max(fraction, float(inside.float().mean()))
            top, left = cells.amin(0).tolist()
            bottom, right = cells.amax(0).tolist()
            cell_h = geometry.input_size_hw[0] / support.shape[-2]
            cell_w = geometry.input_size_hw[1] / support.shape[-1]
            corners.append(
                [
                    (columns.start + left) * cell_w,
                    (rows.start + top) * cell_h,
                    (columns.start + right + 1) * cell_w,
                    (rows.start + bottom + 1) * cell_h,
                ]
            )
        if not corners:
            return cls(0.0, (0.0, 0.0, 0.0, 0.0))
        boxes = torch.tensor(corners)
        box = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
        x1, y1, x2, y2 = geometry.clip(geometry.boxes_to_image(box)).tolist()
        return cls(fraction, (x1, y1, x2, y2))

    def fraction_outside(self, box_xyxy: Sequence[float], image_size_hw: tuple[int, int]) -> float:
        """Return the fraction of the image outside a box, in [0, 1], that `box_xyxy` of the reach covers."""
        height, width = image_size_hw
        x1, y1, x2, y2 = box_xyxy
        rx1, ry1, rx2, ry2 = self.box_xyxy
        reach = max(0.0, rx2 - rx1) * max(0.0, ry2 - ry1)
        shared = max(0.0, min(x2, rx2) - max(x1, rx1)) * max(0.0, min(y2, ry2) - max(y1, ry1))
        box = max(0.0, min(x2, width) - max(x1, 0)) * max(0.0, min(y2, height) - max(y1, 0))
        outside = width * height - box
        return 1.0 if outside <= 0 else (reach - shared) / outside


@dataclass(frozen=True)
class Sampling:
    """Number of perturbed images of an explanation, and its stability.

    Attributes:
        passes: number of perturbed images that were scored.
        seed: seed of the random perturbations; None for fixed ones.
        agreement: per target, `peak_rank_correlation` of the maps of even and odd samples, in [-1, 1]; None for fixed
            perturbations.
    """

    passes: int
    seed: int | None = None
    agreement: tuple[float, ...] | None = None


def levels_of(trace: Trace, images: int) -> list[Tensor]:
    """Return all levels of all layers, each (B, C, h, w).

    Raises:
        RuntimeError: a layer returned another number of items than images, NaN or infinity.
    """
    levels = []
    for name, layer in zip(trace.names, trace.activations(), strict=True):
        for level in layer:
            if len(level) != images:
                raise RuntimeError(
                    f"target layer {name} returned {len(level)} items for {images} images; choose a layer that "
                    "processes whole images, not regions of them"
                )
            # A finite sum rules out NaN and infinity cheaply; else every value is checked, since a sum may overflow.
            if not torch.isfinite(level.sum()) and not torch.isfinite(level).all():
                raise RuntimeError(
                    f"target layer {name} returned NaN or infinity; check the model's weights and its input range"
                    + (", or use float32 instead of half precision" if level.dtype == torch.float16 else "")
                )
            levels.append(level)
    return levels


def value_of(scalar: object) -> float:
    """Return a target's scalar as a float.

    Raises:
        ValueError: not a tensor with one element.
    """
    if not isinstance(scalar, Tensor) or scalar.numel() != 1:
        got = tuple(scalar.shape) if isinstance(scalar, Tensor) else type(scalar).__name__
        raise ValueError(f"expected a target to return one number (a tensor with one element); got {got}")
    return float(scalar.detach())


def values_of(scalars: Sequence[Sequence[Tensor]]) -> list[list[float]]:
    """Return every target's scalar as a float, per image."""
    return [[value_of(scalar) for scalar in row] for row in scalars]


def mean_of_results(results: Sequence[ImageHeatmaps]) -> ImageHeatmaps:
    """Return the first view's result with the mean of all views' heatmaps; raw saliency stays that of the first."""
    return replace(results[0], maps=mean_of_views([result.maps for result in results]))
