"""The mean and standard deviation per channel of a network's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import Self

MIN_BYTE_STD = 10.0
"""A module that divides by more than this takes pixels in 0..255."""


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from an image per channel, and what it is then divided by.

    Attributes:
        mean: per channel of the image.
        std: as `mean`, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def constant(cls, channels: int, std: float = 1.0) -> Self:
        """Return the normalization that divides every channel by one number."""
        return cls((0.0,) * channels, (std,) * channels)

    @property
    def input_std(self) -> float:
        """What pixels in [0, 1] are divided by before they are normalized: 1, or 1/255 if these are bytes."""
        return 1 / 255 if min(self.std) > MIN_BYTE_STD else 1.0

    def apply(self, batch: Tensor) -> Tensor:
        """Normalize a (B, C, ...) tensor."""
        mean, std = (batch.new_tensor(values).reshape(-1, *[1] * (batch.ndim - 2)) for values in (self.mean, self.std))
        return (batch - mean) / std

    def after(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalization:
        """Return the normalization of pixels in [0, 1] by the user's `mean` and `std` and then by this one.

        Raises:
            ValueError: as `fit_normalization`.
        """
        channels = len(self.mean)
        first, _ = fit_normalization(channels, (mean, std), lambda: self.constant(channels, self.input_std))
        inner = list(zip(first.mean, first.std, self.mean, self.std, strict=True))
        return Normalization(tuple(m + s * own for m, s, own, _ in inner), tuple(s * own for _, s, _, own in inner))


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def fit_normalization(
    channels: int,
    given: tuple[Sequence[float] | None, Sequence[float] | None],
    default: Callable[[], Normalization],
) -> tuple[Normalization, bool]:
    """Return the user's mean and standard deviation, or default ones that fit the channels of a network's input.

    A network of one channel gets the mean of RGB defaults. For other numbers of channels, defaults of another number
    are unknown: pixels stay as they are.

    Args:
        channels: number of channels of the input.
        given: the user's mean and standard deviation of pixels in [0, 1]; None for the default.
        default: returns the normalization that the model was trained with; called if one of them is None.

    Returns:
        The normalization, and whether it is known.

    Raises:
        ValueError: the user's values do not have one entry per channel, or a standard deviation is not positive.
    """
    own = [None if values is None else tuple(map(float, values)) for values in given]
    for name, values in zip(("mean", "std"), own, strict=True):
        if values is not None and (len(values) != channels or (name == "std" and min(values) <= 0)):
            raise ValueError(
                f"expected {name} with one value per channel of the network's input, {channels}"
                f"{', above 0' if name == 'std' else ''}; got {values}"
            )
    mean, std = own
    if mean is not None and std is not None:
        return Normalization(mean, std), True
    stored = default()
    is_known = len(stored.mean) == channels or channels == 1
    if len(stored.mean) != channels:
        stored = (
            Normalization(*((sum(values) / len(values),) for values in (stored.mean, stored.std)))
            if channels == 1
            else Normalization.constant(channels)
        )
    return Normalization(mean or stored.mean, std or stored.std), is_known
