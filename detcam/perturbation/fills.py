"""Fills for removed pixels: blur, mean color, noisy linear imputation, and evened light."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.perturbation.harmonic_solver import harmonic_fill
from detcam.utils.components import Extent, components, with_margin
from detcam.utils.filters import blur
from detcam.utils.opencv import cv2
from detcam.utils.precision import work_dtype

DEFAULT_BLUR = 0.045
"""Standard deviation of the blur as a fraction of the image's longer side: 10 pixels of 224."""
RING_WIDTH = 0.35
"""Width of the ring whose mean color fills a region, relative to the square root of the region's area."""
MAX_BLUR_SIDE = 160
"""Maximum longer side, in pixels, at which the blur of the surroundings is computed."""
LIGHT_BLUR = 0.02
"""Standard deviation of the blur that separates light from details, as a fraction of the image's longer side."""
MIN_VARIANCE = 1e-8
"""Minimum variance of a channel that tells pixels apart, relative to the largest variance of a channel."""


class Fill(ABC):
    """Replaces removed pixels of images.

    All fills are equivariant to a scale and shift per channel, so they apply to normalized inputs.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        """Fill the removed pixels of images.

        Args:
            images: (K, C, h, w), or (1, C, h, w) for one shared image.
            removed: (K, h, w) bool, True for removed pixels.

        Returns:
            (K, C, h, w): the fill at removed pixels, the images elsewhere.

        Raises:
            ValueError: the shapes do not match.
        """

    def for_image(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        """Bind the fill to one image (1, C, h, w): returns a function from removed (K, h, w) to filled images.

        Values that do not depend on the removed pixels are computed once.
        """
        return lambda removed: self(image, removed)


class UniformFill(Fill):
    """Base class of fills that depend on the image alone, not on the removed pixels."""

    @abstractmethod
    def baseline(self, images: Tensor) -> Tensor:
        """The baseline of images (K, C, h, w), shown at removed pixels; broadcasts to their shape."""

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        check_masks(images, removed)
        return torch.where(removed[:, None], self.baseline(images), images)

    def for_image(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        baseline = self.baseline(image)

        def fill(removed: Tensor) -> Tensor:
            check_masks(image, removed)
            return torch.where(removed[:, None], baseline, image)

        return fill


class BlurFill(UniformFill):
    """A blurred copy of the image.

    Args:
        sigma: standard deviation of the Gaussian, pixels; None takes `DEFAULT_BLUR` of the longer side.
    """

    name = "blur"

    def __init__(self, sigma: float | None = None) -> None:
        if sigma is not None and not sigma > 0:
            raise ValueError(f"expected sigma above 0 pixels; got {sigma}")
        self.sigma = sigma

    def baseline(self, images: Tensor) -> Tensor:
        sigma = self.sigma or DEFAULT_BLUR * max(images.shape[-2:])
        return blur(images.flatten(0, 1).to(work_dtype(images)), sigma).view_as(images).to(images.dtype)


def _fill_each(images: Tensor, removed: Tensor, fill: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Fill images one by one: `fill` gives the fill of an image (C, h, w), in work precision, at a mask (h, w) bool."""
    check_masks(images, removed)
    images = images.expand(len(removed), -1, -1, -1)
    filled = images.clone()
    for row, (image, mask) in enumerate(zip(images.to(work_dtype(images)), removed, strict=True)):
        if bool(mask.any()):
            filled[row] = torch.where(mask, fill(image, mask).to(filled), filled[row])
    return filled


class SurroundingsFill(Fill):
    """A blur of the remaining pixels; unlike in `BlurFill`, the removed pixels' colors do not contribute.

    The standard deviation is the smallest one, `DEFAULT_BLUR` of the image's longer side times a power of 2, at which
    every removed pixel gets at least a tenth of its weight from remaining pixels. The blur is computed at a longer
    side of at most `MAX_BLUR_SIDE` pixels. If no pixel remains, the fill is the mean color.
    """

    name = "blur"

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        return _fill_each(images, removed, _blurred_surroundings)


def _blurred_surroundings(image: Tensor, mask: Tensor) -> Tensor:
    """A blur (C, h, w) of the remaining pixels of an image (C, h, w); its mean color if none remain."""
    if bool(mask.all()):
        return image.mean((1, 2), keepdim=True)
    weighted = _small_and_weighted(image, ~mask)
    has_removed = weighted[-1] < 1
    size = weighted.shape[1:]
    sigma = DEFAULT_BLUR * max(size)
    blurred = blur(weighted, sigma)
    while float(blurred[-1, has_removed].min()) < 0.1 and sigma < max(size):
        sigma *= 2
        blurred = blur(weighted, sigma)
    return _colors(blurred, mask)


def _small_and_weighted(image: Tensor, kept: Tensor) -> Tensor:
    """An image (C, h, w) times a mask (h, w) bool, and the mask, (C + 1, h', w') of at most `MAX_BLUR_SIDE` pixels."""
    height, width = kept.shape
    factor = min(1.0, MAX_BLUR_SIDE / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    weights = kept[None].to(image)
    return F.interpolate(torch.cat([image * weights, weights])[None], size, mode="area")[0]


def _colors(weighted: Tensor, mask: Tensor) -> Tensor:
    """Colors (C, h, w) of the size of a mask from colors times weights and weights (C + 1, h', w')."""
    colors = weighted[:-1] / weighted[-1:].clamp(min=1e-12)
    size = [mask.shape[0], mask.shape[1]]
    return F.interpolate(colors[None], size, mode="bilinear", align_corners=False)[0]


class RingFill(Fill):
    """The mean color of a ring around each connected part of the removed pixels.

    The ring's width is `RING_WIDTH` of the square root of the part's area. If no pixel of the ring remains, the fill is
    the mean color of all remaining pixels; if none remains, of the image.
    """

    name = "ring"

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        check_masks(images, removed)
        images = images.expand(len(removed), -1, -1, -1)
        filled = images.clone()
        for image, original, mask in zip(filled, images, removed, strict=True):
            for (rows, columns), part, ring in _parts_with_rings(mask.cpu().numpy()):
                source, pixels = torch.from_numpy(ring).to(mask.device), original[:, rows, columns]
                if not ring.any():
                    source, pixels = (mask if bool(mask.all()) else ~mask), original
                mean = pixels[:, source].to(work_dtype(original)).mean(1, keepdim=True)
                image[:, rows, columns][:, torch.from_numpy(part).to(mask.device)] = mean.to(image.dtype)
        return filled


def _parts_with_rings(mask: np.ndarray) -> Iterator[tuple[Extent, np.ndarray, np.ndarray]]:
    """Each connected part of a mask (h, w) bool: a window, and in it the part and the free pixels around it, bool."""
    for extent, inner, area in components(mask):
        margin = max(2, round(RING_WIDTH * area**0.5))
        window = rows, columns = with_margin(extent, margin, mask.shape)
        top, left = extent[0].start - rows.start, extent[1].start - columns.start
        part = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=np.uint8)
        part[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        distance = cv2.distanceTransform(1 - part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        yield window, part > 0, (distance <= margin) & ~mask[window]


class MeanFill(UniformFill):
    """The mean color of the image."""

    name = "mean"

    def baseline(self, images: Tensor) -> Tensor:
        return images.to(work_dtype(images)).mean((-2, -1), keepdim=True).to(images.dtype)


class LinearFill(Fill):
    r"""Noisy linear imputation: each removed pixel is the weighted mean of its neighbors, plus noise.

    .. math:: x_p = \frac{\sum_{q \in N(p)} w_{pq} x_q}{\sum_{q \in N(p)} w_{pq}} + \varepsilon_p, \quad
        w = 1/6 \text{ direct}, 1/12 \text{ diagonal},\ \varepsilon \sim \mathcal{N}(0, \sigma^2)

    with :math:`N(p)` the up to eight neighbors of pixel p in the image, removed ones included, so the removed pixels
    are the solution of one linear system; the noise is added to the solution. If no pixel of an image remains, every
    constant is a solution, and the fill is the mean color.

    Rong et al., *A Consistent and Efficient Evaluation Strategy for Attribution Methods*, ICML 2022,
    https://arxiv.org/abs/2202.00449.

    Args:
        noise: standard deviation of the noise, in units of the network's input.
        seed: seed of the noise, which is the same for every image.
    """

    name = "linear"

    def __init__(self, noise: float = 0.01, seed: int = 0) -> None:
        if not noise >= 0:
            raise ValueError(f"expected noise of at least 0; got {noise}")
        self.noise = noise
        self.seed = seed

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        return self._fill(images, removed, self._noise(images))

    def for_image(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        noise = self._noise(image)
        return lambda removed: self._fill(image, removed, noise)

    def _noise(self, images: Tensor) -> Tensor | None:
        """The noise (C, h, w), which is the same for every image; None if there is none."""
        if not self.noise:
            return None
        generator = torch.Generator().manual_seed(self.seed)
        return self.noise * torch.randn(images.shape[1:], generator=generator, dtype=work_dtype(images)).to(images)

    def _fill(self, images: Tensor, removed: Tensor, noise: Tensor | None) -> Tensor:
        check_masks(images, removed)
        whole = torch.from_numpy(removed.cpu().numpy().all((1, 2))).to(removed.device)
        filled = harmonic_fill(images, removed & ~whole[:, None, None] if bool(whole.any()) else removed)
        if bool(whole.any()):
            filled[whole] = MeanFill()(images.expand(len(removed), -1, -1, -1)[whole], removed[whole])
        return filled if noise is None else filled.addcmul_(removed[:, None].to(filled), noise)


class EvenLightFill(Fill):
    r"""The removed pixels in the light of other pixels: their details stay.

    .. math:: x'_p = x_p - \bar{x}_p + c

    with :math:`\bar{x}` a Gaussian blur of the removed pixels alone, whose standard deviation is `LIGHT_BLUR` of the
    image's longer side, and c the median color of the other pixels that are least like the removed ones: the `share`
    of them with the lowest projections on the difference of the two mean colors, each channel in units of its variance.
    If all pixels are removed, c is the mean color.
    """

    name = "even light"
    share: ClassVar[float] = 0.25

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        return _fill_each(images, removed, self._evened)

    def _evened(self, image: Tensor, mask: Tensor) -> Tensor:
        """An image (C, h, w) in another light, valid in the mask (h, w) bool."""
        return image - light_of(image, mask) + self._other_color(image, mask)[:, None, None]

    def _other_color(self, image: Tensor, mask: Tensor) -> Tensor:
        """The color (C,) of the pixels of an image (C, h, w) outside a mask (h, w) that are least like those in it."""
        own, others = image[:, mask], image[:, ~mask]
        if not others.shape[1]:
            return own.mean(1)
        difference = own.mean(1) - others.mean(1)
        variance = others.var(1, correction=0)
        # A channel without variance does not tell the other pixels apart.
        is_constant = variance <= MIN_VARIANCE * variance.max()
        projection = (difference / variance.clamp(min=1e-12)).masked_fill(is_constant, 0) @ others
        count = max(1, round(self.share * len(projection)))
        return others[:, projection <= projection.kthvalue(count).values].median(1).values


class HalfLightFill(EvenLightFill):
    """The same, with the color of the half of the other pixels that is least like the removed ones."""

    name = "even light, half"
    share = 0.5


def light_of(image: Tensor, region: Tensor) -> Tensor:
    """A blur (C, h, w) of the pixels of an image (C, h, w) in a region (h, w) bool alone, valid in the region."""
    weighted = _small_and_weighted(image, region)
    return _colors(blur(weighted, LIGHT_BLUR * max(weighted.shape[1:])), region)


FILLS: dict[str, type[Fill]] = {fill.name: fill for fill in (BlurFill, MeanFill, LinearFill)}
"""All fills by name."""


def fill_of(fill: str | Fill) -> Fill:
    """Return a fill from its name; a fill is returned unchanged.

    Raises:
        ValueError: unknown name.
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
    """Check that images and masks of removed pixels match.

    Raises:
        ValueError: the shapes do not match.
        TypeError: the masks are not bool.
    """
    if images.ndim != 4 or removed.ndim != 3 or len(images) not in (1, len(removed)):
        raise ValueError(
            f"expected images (K, C, h, w) and removed (K, h, w); got {tuple(images.shape)} and {tuple(removed.shape)}"
        )
    if images.shape[-2:] != removed.shape[-2:]:
        raise ValueError(f"expected masks of size {tuple(images.shape[-2:])}; got {tuple(removed.shape[-2:])}")
    if removed.dtype != torch.bool:
        raise TypeError(f"expected removed as bool, True for removed pixels; got {removed.dtype}")
