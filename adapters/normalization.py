"""The mean and standard deviation per channel of a network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Channels: TypeAlias = "tuple[float, ...]"
"""One value per channel of the network's input."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def fit_normalization(
    channels: int,
    given: tuple[Sequence[float] | None, Sequence[float] | None],
    default: tuple[Sequence[float], Sequence[float]],
) -> tuple[Channels, Channels, bool]:
    """Return the user's mean and standard deviation, or default ones that fit the channels of a network's input.

    A network of one channel gets the mean of RGB defaults. For other numbers of channels, defaults of another number
    are unknown: pixels stay as they are.

    Args:
        channels: number of channels of the input.
        given: the user's mean and standard deviation of pixels in [0, 1]; None for the default.
        default: the mean and standard deviation that the model was trained with.

    Returns:
        Mean, standard deviation, and whether both are known.

    Raises:
        ValueError: the user's values do not have one entry per channel, or a standard deviation is not positive.
    """
    for name, values in zip(("mean", "std"), given, strict=True):
        if values is not None and (len(values) != channels or (name == "std" and min(values) <= 0)):
            raise ValueError(
                f"expected {name} with one value per channel of the network's input, {channels}"
                f"{', above 0' if name == 'std' else ''}; got {tuple(values)}"
            )
    is_known = len(default[0]) == channels or channels == 1 or None not in given
    if len(default[0]) != channels:
        default = (
            ([sum(default[0]) / len(default[0])], [sum(default[1]) / len(default[1])])
            if channels == 1
            else ([0.0] * channels, [1.0] * channels)
        )
    mean, std = (tuple(own if values is None else values) for values, own in zip(given, default, strict=True))
    return mean, std, is_known
