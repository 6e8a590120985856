"""Places of an image that may hold a cause: segments of one colour, and spots where maps are hottest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.utils.filters import blur

LONGEST = 256
"""Images are cut into segments at this length of their longer side, pixels."""
SCALE, SIGMA, LEAST = 600, 0.6, 0.0013
"""Of the segmentation: how readily segments grow, smoothing in pixels, and the least share of the image. With these a
thing of one colour is one segment in the package's drawn scenes, whatever its size."""
SPOT = 0.035
"""Radius of a spot, as a share of the image's longer side."""
ALIKE = 0.6
"""Least overlap of two places that count as one."""
LARGEST = 0.5
"""Greatest share of the image that is a place in it."""
SPOTS = 3


def segments(image: Tensor) -> Tensor:
    """Cut an image into regions of one colour.

    Felzenszwalb and Huttenlocher, *Efficient Graph-Based Image Segmentation*, IJCV 2004.

    Args:
        image: (3, h, w), of any range; more or fewer channels will do.

    Returns:
        (h, w) int64, labels from 0.
    """
    from skimage.segmentation import felzenszwalb  # slow to import

    height, width = image.shape[-2:]
    factor = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    small = F.interpolate(image[None].double().cpu(), size, mode="area")[0]
    low, high = small.amin(), small.amax()
    small = ((small - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0)
    least = max(1, round(LEAST * size[0] * size[1]))
    found = felzenszwalb(small.numpy(), scale=SCALE, sigma=SIGMA, min_size=least, channel_axis=-1)
    return F.interpolate(torch.from_numpy(found).double()[None, None], (height, width), mode="nearest")[0, 0].long()


def candidate_places(levels: Tensor, labels: Tensor, most: int) -> Tensor:
    """Where maps of one target point to.

    In turn: the segment that holds most of the maps' product, the hottest spot of the product or of a map of its own,
    and the segment that holds most of their mean. A place like one that is there already is left out.

    Args:
        levels: (L, h, w) maps, not negative.
        labels: (h, w), as `segments` returns them.
        most: at most so many places.

    Returns:
        (k, h, w) bool, k from 0 to `most`.
    """
    # Ranks must not hang on the last bits, which batches of other sizes round otherwise.
    levels = torch.round(levels.double() * 1e4)
    product = blur(levels, 1.0).prod(0)
    spots = [*_spots(product, SPOTS), *chain.from_iterable(_spots(level, 1) for level in levels)]
    queues = (_heaviest(product, labels, most), spots, _heaviest(levels.mean(0), labels, most))
    found: list[Tensor] = []
    for place in chain.from_iterable(zip_longest(*queues)):
        if len(found) == most:
            break
        if place is not None and float(place.float().mean()) <= LARGEST and not _known(place, found):
            found.append(place)
    return torch.stack(found) if found else torch.zeros((0, *labels.shape), dtype=torch.bool)


def _known(place: Tensor, others: Sequence[Tensor]) -> bool:
    return any(int((place & other).sum()) > ALIKE * int((place | other).sum()) for other in others)


def _heaviest(values: Tensor, labels: Tensor, most: int) -> list[Tensor]:
    """The segments with the greatest sums of a map (h, w), the heaviest first; those without any are left out."""
    sums = torch.zeros(int(labels.max()) + 1, dtype=values.dtype)
    sums.index_add_(0, labels.flatten(), values.flatten())
    order = sums.argsort(descending=True, stable=True)[:most]
    return [labels == label for label in order.tolist() if sums[label] > 0]


def _spots(values: Tensor, most: int) -> list[Tensor]:
    """Discs around the hottest pixels of a map (h, w), the hottest first, no two of which overlap."""
    height, width = values.shape
    radius = max(2.0, SPOT * max(height, width))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    left = blur(values[None], radius / 3)[0].clone()
    found = []
    for _ in range(most):
        at = int(left.argmax())
        if left.flatten()[at] <= 0:
            break
        distance = (rows - at // width).square() + (columns - at % width).square()
        found.append(distance <= radius**2)
        left[distance <= (2 * radius) ** 2] = 0
    return found
