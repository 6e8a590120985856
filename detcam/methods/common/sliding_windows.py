"""Sliding windows over an image at several scales, and the fusion of their maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.outputs import DetectionTarget, Target, as_target
from detcam.targets import MaskTarget
from detcam.utils.precision import work_dtype

Pool: TypeAlias = Literal["mean", "max"]

MIN_BOX_FRACTION = 0.9
"""Minimum fraction of a box's area inside a window that contains the box."""


@dataclass(frozen=True)
class Window:
    """A window of the enlarged image, of the image's size on the network's input.

    Attributes:
        scaled_hw: height and width of the whole image at the window's scale, input pixels.
        corner_xy: top left corner of the window in the scaled image, input pixels.
        size_hw: height and width of the window, equal to those of the image on the network's input.
    """

    scaled_hw: tuple[int, int]
    corner_xy: tuple[int, int]
    size_hw: tuple[int, int]

    def crop(self, images: Tensor) -> Tensor:
        """Crop images (K, C, H, W) at the window's scale to the window."""
        (left, top), (height, width) = self.corner_xy, self.size_hw
        return images[..., top : top + height, left : left + width]

    def target(self, target: Target, image_size_hw: tuple[int, int]) -> Target | None:
        """Map a target into the window, as an image of the same size; None if the window does not contain it."""
        if self.scaled_hw == self.size_hw:
            return target
        if isinstance(target, DetectionTarget):
            return self._box(target, image_size_hw)
        if isinstance(target, MaskTarget):
            return target if target.mask is None else self._mask(target)
        if as_target(target).has_position:
            raise TypeError(
                f"SESS cannot map {type(target).__name__} into a window of the image; give a BoxTarget, "
                "an InstanceMaskTarget or a MaskTarget, or use another method"
            )
        return target

    def _box(self, target: DetectionTarget, image_size_hw: tuple[int, int]) -> DetectionTarget | None:
        height, width = image_size_hw
        factors = (self.scaled_hw[1] / self.size_hw[1], self.scaled_hw[0] / self.size_hw[0])
        shifts = (self.corner_xy[0] / self.size_hw[1] * width, self.corner_xy[1] / self.size_hw[0] * height)
        moved = [value * factors[i % 2] - shifts[i % 2] for i, value in enumerate(target.box_xyxy)]
        clipped = [min(max(value, 0.0), float((width, height)[i % 2])) for i, value in enumerate(moved)]
        area = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1])
        if area <= 0 or area < MIN_BOX_FRACTION * (moved[2] - moved[0]) * (moved[3] - moved[1]):
            return None
        return replace(target, box_xyxy=(clipped[0], clipped[1], clipped[2], clipped[3]), source=None)

    def _mask(self, target: MaskTarget) -> MaskTarget | None:
        height, width = target.mask.shape
        (scaled_h, scaled_w), (left, top) = self.scaled_hw, self.corner_xy
        rows = (((torch.arange(height) + 0.5) / height * self.size_hw[0] + top) / scaled_h * height).long()
        columns = (((torch.arange(width) + 0.5) / width * self.size_hw[1] + left) / scaled_w * width).long()
        visible = target.mask[rows.clamp(max=height - 1)][:, columns.clamp(max=width - 1)]
        return replace(target, mask=visible) if visible.any() else None


def sliding_windows(size_hw: tuple[int, int], scales: int, step: float) -> Iterator[Window]:
    """Yield the windows that cover an image of the given size at each scale; one window at the first scale."""
    height, width = size_hw
    for scale in range(scales):
        scaled_hw = (round(height * (1 + scale * step)), round(width * (1 + scale * step)))
        for top in _starts(scaled_hw[0], height):
            for left in _starts(scaled_hw[1], width):
                yield Window(scaled_hw, (left, top), (height, width))


def _starts(length: int, window: int) -> list[int]:
    """Start positions of windows that cover a length; the last window ends with it."""
    return [min(start * window, length - window) for start in range(math.ceil(length / window))]


class MapFusion:
    """Accumulates maps of windows at their positions in the image.

    Args:
        targets: number of maps.
        size_hw: height and width of the image on the network's input.
        pool: mean over the windows with saliency, or maximum.
        theta: saliency up to this value does not count in the mean.
        like: tensor that determines the device and the minimum dtype.
    """

    def __init__(self, targets: int, size_hw: tuple[int, int], pool: Pool, theta: float, like: Tensor) -> None:
        self.pool, self.theta, self.size_hw = pool, theta, size_hw
        self.total = like.new_zeros((targets, *size_hw), dtype=work_dtype(like))
        self.count = torch.zeros_like(self.total)

    def add(self, targets: Sequence[int], weights: Tensor, heatmaps: Tensor, window: Window) -> None:
        """Add a window's maps (K, h, w) of some targets, with weights (K,)."""
        (height, width), (left, top) = window.scaled_hw, window.corner_xy
        padding = (left, width - left - window.size_hw[1], top, height - top - window.size_hw[0])
        placed = F.pad(heatmaps.to(self.total), padding)[None]
        placed = F.interpolate(placed, self.size_hw, mode="bilinear")[0] if any(padding) else placed[0]
        salient = placed > self.theta
        weighted = placed * weights.to(placed)[:, None, None] * salient
        if self.pool == "max":
            self.total[targets] = torch.maximum(self.total[targets], weighted)
        else:
            self.total[targets] += weighted
            self.count[targets] += salient

    def result(self) -> Tensor:
        """The fused maps (targets, H, W)."""
        return self.total if self.pool == "max" else self.total / self.count.clamp(min=1)
