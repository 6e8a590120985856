"""Probes of the normalization inside a network: before its first layer, or before the network that it wraps."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from detcam.adapters.normalization import Normalization
from detcam.adapters.stored_config import is_known_classifier
from detcam.layers import input_channels, probe_image, probe_sizes
from detcam.trace import flatten_tensors, guarded
from detcam.utils.hooks import active_hooks
from detcam.utils.warnings import warn

logger = logging.getLogger("detcam")

MAX_DEVIATION = 1e-3
"""Maximum deviation from a line per channel, as a share of the range of values, of an image that is normalized."""

MAX_ROUNDINGS = 4
"""Maximum deviation in half precision, in units of the relative precision of its numbers."""

PROBES = ((1.0, 0.0), (0.3, 0.5), (255.0, 0.0))
"""Factors and summands of the noise images: usual ones, others of another mean and range, and bytes."""

ImageTensors: TypeAlias = "list[Tensor]"
"""The images of a batch, (C, ...) each."""


class UnknownChangeError(Exception):
    """A module changes the image by more than a normalization."""


class ContentDependentError(UnknownChangeError):
    """A module normalizes each image by its own values."""


def images_of(batch: Any) -> ImageTensors:
    """Return the images of a (B, C, ...) tensor, or the (C, ...) tensors of a list, as copies."""
    images = [image for one in flatten_tensors(batch) for image in (one if isinstance(batch, Tensor) else [one])]
    return [image.detach().clone() for image in images]


def normalization_between(pairs: Iterable[tuple[ImageTensors, ImageTensors]]) -> Normalization | None:
    """Return the normalization that turns inputs into others, or None if they are the same.

    Args:
        pairs: for each of `PROBES`, the images before and after the change.

    Raises:
        ContentDependentError: images are normalized by values of their own.
        UnknownChangeError: another change.
    """
    first: Normalization | None = None
    for (factor, _), (before, after) in zip(PROBES, pairs, strict=False):
        try:
            line = _line(before, after)
        except UnknownChangeError:
            if factor <= 1:
                raise
            break  # a module may clip pixels above 1
        first = first or line
        if _deviates(first, before, after):
            raise ContentDependentError
    return None if first is None or first == Normalization.constant(len(first.mean)) else first


def _line(before: ImageTensors, after: ImageTensors) -> Normalization:
    """Fit a normalization to the images before and after a change."""
    if [image.shape for image in before] != [image.shape for image in after]:
        raise UnknownChangeError
    if all(torch.equal(x, y) for x, y in zip(before, after, strict=True)):
        return Normalization.constant(len(before[0]))
    x, y = _by_channel(before), _by_channel(after)
    center_x, center_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    slope = ((x - center_x) * (y - center_y)).mean(1, keepdim=True) / (x - center_x).square().mean(1, keepdim=True)
    if not (slope > 0).all():
        raise UnknownChangeError
    mean = center_x - center_y / slope
    line = Normalization(tuple(map(float, mean.flatten())), tuple(map(float, 1 / slope.flatten())))
    if _deviates(line, before, after):
        raise UnknownChangeError
    return line


def _deviates(line: Normalization, before: ImageTensors, after: ImageTensors) -> bool:
    x, y = _by_channel(before), _by_channel(after)
    deviation = (line.apply(x.T).T - y).abs().amax(1)
    tolerance = max(MAX_DEVIATION, MAX_ROUNDINGS * max(torch.finfo(image.dtype).eps for image in (*before, *after)))
    return bool((deviation > tolerance * (y.amax(1) - y.amin(1))).any())


def _by_channel(images: ImageTensors) -> Tensor:
    return torch.cat([image.double().cpu().flatten(1) for image in images], 1)


class _ReachedError(Exception):
    """The first layer with weights was called."""


def normalization_inside(model: nn.Module, image_size_hw: tuple[int, int]) -> Normalization | None:
    """Return how a network normalizes the image before its first layer with weights; None if it is not known to.

    Raises:
        ContentDependentError: it normalizes each image by its own values.
    """
    for size_hw in probe_sizes(image_size_hw):
        noises = noise_images(model, size_hw)
        try:
            return normalization_between((images_of(x), images_of(_first_layer_input(model, x))) for x in noises)
        except ContentDependentError:
            raise
        except UnknownChangeError:
            continue  # such as a resize to the network's own size
    return None


def _first_layer_input(model: nn.Module, noise: Tensor) -> Any:
    """What the first layer with weights gets; None if the network takes another size, or several inputs."""
    seen: list[Any] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.extend([*args, *kwargs.values()][:1])
        raise _ReachedError

    hooks = [(module, stop) for module in model.modules() if _is_layer(module)]
    with guarded(model, gradients=False, quiet=True, float32=True), active_hooks(before_with_kwargs=hooks):
        try:
            model(noise)
        except _ReachedError:
            pass
        except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError):
            return None
    return seen[0] if seen else None


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is one layer with weights, and no network with parameters beside its layers."""
    children = [name for name, _ in module.named_children() if name != "parametrizations"]
    return not children and next(module.parameters(), None) is not None


def noise_images(network: nn.Module, image_size_hw: tuple[int, int]) -> list[Tensor]:
    """Return the noise images (1, C, H, W) of `PROBES`, float32 or float64, on a network's device.

    Half precision is too coarse where a module divides by 255.
    """
    first = next(network.parameters(), torch.zeros(()))
    dtype = first.dtype if first.dtype == torch.float64 else torch.float32
    noise = probe_image(network, image_size_hw, first.device, dtype).detach()
    return [factor * noise + summand for factor, summand in PROBES]


def probed_normalization(model: nn.Module, image_size_hw: tuple[int, int], stored: Normalization) -> Normalization:
    """Return the normalization of a network's input where the user gives none.

    This is the stored one, unless the network is found to normalize images itself, by passes on noise up to its first
    layer. Networks that timm and torchvision publish do not.

    Args:
        model: the network.
        image_size_hw: a size that it takes.
        stored: the normalization that is stored with it, or ImageNet's.
    """
    if is_known_classifier(model):
        return stored
    name = type(model).__name__
    try:
        inside = normalization_inside(model, image_size_hw)
    except ContentDependentError:
        warn(
            f"{name} normalizes each image by its own values, so pixels in [0, 1] go in as they are. Pass mean= and "
            "std= (--mean, --std) if it was trained otherwise",
            UserWarning,
        )
        return Normalization.constant(input_channels(model))
    if inside is None:
        return stored
    logger.info("%s normalizes images itself: mean %s, std %s", name, inside.mean, inside.std)
    return Normalization.constant(len(inside.mean), inside.input_std)
