"""What takes the place of removed pixels: a blurred image, the mean colour, or noisy linear imputation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.outputs import work_dtype
from detcam.perturbation.harmonic_solver import harmonic_fill
from detcam.utils.filters import blur

BLUR = 0.045
"""Standard deviation of the blur as a share of the image's longer side: 10 pixels of 224."""
COARSE = 160
"""Longer side in pixels at which a blur of the surroundings is computed."""


class Fill(ABC):
    """Fills removed pixels. All fills follow a change of each channel's scale, so they may work on normalised input."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        """Images without some of their pixels.

        Args:
            images: (K, C, h, w), or (1, C, h, w) for one that is shared.
            removed: (K, h, w) bool.

        Returns:
            (K, C, h, w): the images' own pixels where nothing was removed, the fill elsewhere.

        Raises:
            ValueError: the shapes do not go together.
        """

    def of(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        """The fill of one image (1, C, h, w): from removed (K, h, w) to images, as when called.

        What does not depend on the removed pixels is computed once.
        """
        return lambda removed: self(image, removed)


class UniformFill(Fill):
    """A fill that looks at the image alone, not at which of its pixels are removed."""

    @abstractmethod
    def backdrop(self, images: Tensor) -> Tensor:
        """What shows where pixels of images (K, C, h, w) are removed; broadcasts to them."""

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        check_masks(images, removed)
        return torch.where(removed[:, None], self.backdrop(images), images)

    def of(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        behind = self.backdrop(image)

        def fill(removed: Tensor) -> Tensor:
            check_masks(image, removed)
            return torch.where(removed[:, None], behind, image)

        return fill


class BlurFill(UniformFill):
    """The image, blurred.

    Args:
        sigma: standard deviation of the Gaussian, pixels; None takes `BLUR` of the longer side.
    """

    name = "blur"

    def __init__(self, sigma: float | None = None) -> None:
        if sigma is not None and not sigma > 0:
            raise ValueError(f"expected sigma above 0 pixels; got {sigma}")
        self.sigma = sigma

    def backdrop(self, images: Tensor) -> Tensor:
        sigma = self.sigma or BLUR * max(images.shape[-2:])
        return blur(images.flatten(0, 1).to(work_dtype(images)), sigma).view_as(images).to(images.dtype)


class SurroundingsFill(Fill):
    """A blur of what is left around: unlike in `BlurFill`, the removed pixels' own colours have no part in it.

    The blur is as wide as it must be for every removed pixel to get a tenth of the weight from pixels that are left:
    `BLUR` of the image's longer side, or 2, 4, 8, ... times as much. Being that wide, it is computed on the image
    at `COARSE` pixels at most. Where nothing is left it is the mean colour.
    """

    name = "blur"

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        check_masks(images, removed)
        images = images.expand(len(removed), -1, -1, -1)
        filled = images.clone()
        for row, (image, gone) in enumerate(zip(images.to(work_dtype(images)), removed, strict=True)):
            if bool(gone.all()):
                filled[row] = MeanFill()(images[row : row + 1], gone[None])[0]
            elif bool(gone.any()):
                filled[row] = torch.where(gone, _around(image, gone).to(filled), filled[row])
        return filled


def _around(image: Tensor, gone: Tensor) -> Tensor:
    """A blur (C, h, w) of what is left of an image (C, h, w)."""
    height, width = gone.shape
    factor = min(1.0, COARSE / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    left = (~gone)[None].to(image)
    both = F.interpolate(torch.cat([image * left, left])[None], size, mode="area")[0]  # colours, and what they weigh
    touched = both[-1] < 1
    sigma = BLUR * max(size)
    blurred = blur(both, sigma)
    while float(blurred[-1, touched].min()) < 0.1 and sigma < max(size):
        sigma *= 2
        blurred = blur(both, sigma)
    colours = blurred[:-1] / blurred[-1:]
    return F.interpolate(colours[None], (height, width), mode="bilinear", align_corners=False)[0]


class MeanFill(UniformFill):
    """The image's mean colour."""

    name = "mean"

    def backdrop(self, images: Tensor) -> Tensor:
        return images.to(work_dtype(images)).mean((-2, -1), keepdim=True).to(images.dtype)


class LinearFill(Fill):
    r"""Noisy linear imputation: each removed pixel is the weighted mean of its neighbours, plus noise.

    .. math:: x_p = \frac{\sum_{q \in N(p)} w_{pq} x_q}{\sum_{q \in N(p)} w_{pq}} + \varepsilon_p, \quad
        w = 1/6 \text{ direct}, 1/12 \text{ diagonal},\ \varepsilon \sim \mathcal{N}(0, \sigma^2)

    over the up to eight neighbours in the image, removed ones too, so that all removed pixels of an image are the
    solution of one linear system; the noise is added to the solution. Of an image of which nothing is left, every
    constant is a solution; it takes its mean colour.

    Rong et al., *A Consistent and Efficient Evaluation Strategy for Attribution Methods*, ICML 2022,
    https://arxiv.org/abs/2202.00449.

    Args:
        noise: standard deviation, in the network input's units.
        seed: of the noise, which is the same for each image.
    """

    name = "linear"

    def __init__(self, noise: float = 0.01, seed: int = 0) -> None:
        if not noise >= 0:
            raise ValueError(f"expected noise of at least 0; got {noise}")
        self.noise = noise
        self.seed = seed

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        check_masks(images, removed)
        whole = removed.flatten(1).all(1)
        filled = harmonic_fill(images, removed & ~whole[:, None, None])
        if whole.any():
            filled[whole] = MeanFill()(images.expand(len(removed), -1, -1, -1)[whole], removed[whole])
        if not self.noise:
            return filled
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(filled.shape[1:], generator=generator, dtype=work_dtype(filled)).to(filled)
        return torch.where(removed[:, None], filled + self.noise * noise, filled)


FILLS: dict[str, type[Fill]] = {fill.name: fill for fill in (BlurFill, MeanFill, LinearFill)}
"""Every fill by name."""


def fill_of(fill: str | Fill) -> Fill:
    """A fill from its name, or as it is.

    Raises:
        ValueError: no fill has that name.
        TypeError: neither a name nor a fill.
    """
    if isinstance(fill, Fill):
        return fill
    if not isinstance(fill, str):
        raise TypeError(f"expected a fill or its name; got {type(fill).__name__}")
    if fill not in FILLS:
        raise ValueError(f"expected fill to be one of {', '.join(FILLS)}; got {fill!r}")
    return FILLS[fill]()


def check_masks(images: Tensor, removed: Tensor) -> None:
    """Raise where images and masks of removed pixels do not go together."""
    if images.ndim != 4 or removed.ndim != 3 or len(images) not in (1, len(removed)):
        raise ValueError(
            f"expected images (K, C, h, w) and removed (K, h, w); got {tuple(images.shape)} and {tuple(removed.shape)}"
        )
    if images.shape[-2:] != removed.shape[-2:]:
        raise ValueError(f"expected masks of size {tuple(images.shape[-2:])}; got {tuple(removed.shape[-2:])}")
    if removed.dtype != torch.bool:
        raise TypeError(f"expected removed as bool, True where a pixel is taken away; got {removed.dtype}")
