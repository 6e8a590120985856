"""Normalization of the image inside a network: before its first layer, or before the network that it wraps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from detcam.layers import probe_image, probe_sizes
from detcam.trace import flatten_tensors, guarded
from detcam.utils.hooks import active_hooks

logger = logging.getLogger("detcam")

MeanAndStd: TypeAlias = tuple[Sequence[float], Sequence[float]]

MAX_DEVIATION = 1e-3
"""Maximum deviation from a line per channel, as a share of the range of values, of an image that is normalized."""

MIN_BYTE_STD = 10.0
"""A module that divides by more than this takes pixels in 0..255."""


class UnknownChangeError(Exception):
    """A module changes the image by more than a normalization."""


@dataclass(frozen=True)
class Normalization:
    """What a module subtracts from its input per channel, and then divides by.

    Attributes:
        mean: per channel of the module's input.
        std: as `mean`, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_std(self) -> float:
        """What pixels in [0, 1] are divided by before they go into the module: 1, or 1/255 if it takes bytes."""
        return 1 / 255 if min(self.std) > MIN_BYTE_STD else 1.0

    def apply(self, batch: Tensor) -> Tensor:
        """Normalize a (B, C, ...) tensor."""
        mean, std = (batch.new_tensor(values).reshape(-1, *[1] * (batch.ndim - 2)) for values in (self.mean, self.std))
        return (batch - mean) / std

    def after(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, tuple[float, ...]]:
        """Return `mean` and `std`, of pixels in [0, 1], of this normalization after one that the user gives."""
        first_mean = mean or (0.0,) * len(self.mean)
        first_std = std or (self.input_std,) * len(self.mean)
        inner = list(zip(first_mean, first_std, self.mean, self.std, strict=True))
        return {"mean": tuple(m + s * own for m, s, own, _ in inner), "std": tuple(s * own for _, s, _, own in inner)}


def normalization_between(image: Any, changed: Any) -> Normalization | None:
    """Return the normalization that turns one input into another, or None if they are the same.

    Args:
        image: noise, a (B, C, ...) tensor, or a list of (C, ...) tensors.
        changed: as `image`.

    Raises:
        UnknownChangeError: another change.
    """
    before, after = _images(image), _images(changed)
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        raise UnknownChangeError
    if all(torch.equal(x, y) for x, y in zip(before, after, strict=True)):
        return None
    x, y = (torch.cat([one.detach().double().cpu().flatten(1) for one in images], 1) for images in (before, after))
    center_x, center_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    slope = ((x - center_x) * (y - center_y)).mean(1, keepdim=True) / (x - center_x).square().mean(1, keepdim=True)
    deviation = (center_y + slope * (x - center_x) - y).abs().amax(1)
    if not (slope > 0).all() or (deviation > MAX_DEVIATION * (y.amax(1) - y.amin(1))).any():
        raise UnknownChangeError
    mean = center_x - center_y / slope
    return Normalization(tuple(map(float, mean.flatten())), tuple(map(float, 1 / slope.flatten())))


def _images(batch: Any) -> list[Tensor]:
    return [image for tensor in flatten_tensors(batch) for image in (tensor if isinstance(batch, Tensor) else [tensor])]


class _ReachedError(Exception):
    """The first layer with weights was called."""


def normalization_inside(model: nn.Module, image_size_hw: tuple[int, int]) -> Normalization | None:
    """Return how a network normalizes the image before its first layer with weights; None if it does not."""
    for size_hw in probe_sizes(image_size_hw):
        noise = noise_for(model, size_hw)
        reached = _first_layer_input(model, noise)
        if reached is not None:
            try:
                return normalization_between(noise, reached)
            except UnknownChangeError:
                continue  # such as a resize to the network's own size
    return None


def _first_layer_input(model: nn.Module, noise: Tensor) -> Any:
    """What the first layer with weights gets; None if the network takes another size, or several inputs."""
    seen: list[Any] = []

    def stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.extend(inputs[:1])
        raise _ReachedError

    layers = [module for module in model.modules() if module._parameters]
    with guarded(model, gradients=False, quiet=True), active_hooks(before=[(layer, stop) for layer in layers]):
        try:
            model(noise)
        except _ReachedError:
            pass
        except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError):
            return None
    return seen[0] if seen else None


def noise_for(network: nn.Module, image_size_hw: tuple[int, int]) -> Tensor:
    """Return noise (1, C, H, W) that a network takes, in its precision and on its device."""
    first = next(network.parameters(), torch.zeros(()))
    dtype = first.dtype if first.is_floating_point() else torch.float32
    return probe_image(network, image_size_hw, first.device, dtype).detach()


def probed_normalization(model: nn.Module, image_size_hw: tuple[int, int], default: MeanAndStd) -> MeanAndStd:
    """Return the mean and standard deviation for a network's input where the user gives none.

    Args:
        model: the network.
        image_size_hw: a size that it takes.
        default: what a network that does not normalize images itself gets.
    """
    inside = normalization_inside(model, image_size_hw)
    if inside is None:
        return default
    logger.info("%s normalizes images itself: mean %s, std %s", type(model).__name__, inside.mean, inside.std)
    return (0.0,) * len(inside.mean), (inside.input_std,) * len(inside.mean)
