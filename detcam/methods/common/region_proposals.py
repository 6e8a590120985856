"""Region proposals: color segments and spots of an image that may contain the evidence for a target."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import chain, zip_longest

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.utils.components import overlap_exceeds
from detcam.utils.filters import blur
from detcam.utils.precision import to_float64

MAX_SEGMENTATION_SIDE = 256
"""Maximum longer side at which images are segmented, pixels."""
SCALE, SIGMA, MIN_SEGMENT_FRACTION = 600, 0.6, 0.0013
"""Parameters of the segmentation: scale, smoothing in pixels, and minimum area as a fraction of the image. With these,
an object of one color in the package's synthetic scenes is one segment at any size."""
SPOT_RADIUS = 0.035
"""Radius of a spot as a fraction of the image's longer side."""
MAX_PROPOSAL_IOU = 0.6
"""Maximum IoU of two proposals; a proposal that overlaps more is a duplicate."""
MAX_REGION_FRACTION = 0.5
"""Maximum area of a proposal as a fraction of the image."""
MAX_SPOTS = 3
"""Maximum number of spots of the product of all maps."""


def color_segments(image: Tensor) -> Tensor:
    """Segment an image into regions of uniform color.

    Felzenszwalb and Huttenlocher, *Efficient Graph-Based Image Segmentation*, IJCV 2004.

    Args:
        image: (C, h, w), of any range and number of channels.

    Returns:
        (h, w) int64, labels from 0.
    """
    from skimage.segmentation import felzenszwalb  # slow to import

    height, width = image.shape[-2:]
    factor = min(1.0, MAX_SEGMENTATION_SIDE / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    small = F.interpolate(image[None].cpu().double(), size, mode="area")[0]
    low, high = small.amin(), small.amax()
    small = ((small - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0)
    min_size = max(1, round(MIN_SEGMENT_FRACTION * size[0] * size[1]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Got image with third dimension")  # it may have any number of bands
        labels = felzenszwalb(small.numpy(), scale=SCALE, sigma=SIGMA, min_size=min_size, channel_axis=-1)
    return F.interpolate(torch.from_numpy(labels).float()[None, None], (height, width), mode="nearest")[0, 0].long()


def propose_regions(levels: Tensor, labels: Tensor, count: int) -> Tensor:
    """Propose regions that the maps of one target highlight.

    Proposals are, in turn: the segment with the largest sum of the maps' product, the maximum of the product or of a
    single map, and the segment with the largest sum of their mean. Duplicates are left out.

    Args:
        levels: (L, h, w) maps, not negative.
        labels: (h, w) labels of `color_segments`.
        count: maximum number of proposals.

    Returns:
        (k, h, w) bool, with k from 0 to `count`.
    """
    # Rounding makes the ranks independent of the last bits, which depend on the batch size.
    levels = torch.round(to_float64(levels) * 1e4)
    product = blur(levels, 1.0).prod(0)
    spots = [*find_spots(product, MAX_SPOTS), *chain.from_iterable(find_spots(level, 1) for level in levels)]
    return merge_regions(
        (heaviest_segments(product, labels, count), spots, heaviest_segments(levels.mean(0), labels, count)),
        count,
        labels,
    )


def merge_regions(queues: Sequence[Sequence[Tensor]], count: int, labels: Tensor) -> Tensor:
    """Take regions (h, w) bool from several queues in turn; duplicates and large regions are left out.

    Returns:
        (k, h, w) bool, with k from 0 to `count`.
    """
    regions: list[Tensor] = []
    for region in chain.from_iterable(zip_longest(*queues)):
        if len(regions) == count:
            break
        if region is None or float(region.float().mean()) > MAX_REGION_FRACTION or _is_duplicate(region, regions):
            continue
        regions.append(region)
    return torch.stack(regions) if regions else torch.zeros((0, *labels.shape), dtype=torch.bool)


def _is_duplicate(region: Tensor, others: Sequence[Tensor]) -> bool:
    return any(overlap_exceeds(region.numpy(), other.numpy(), MAX_PROPOSAL_IOU) for other in others)


def heaviest_segments(values: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    """The segments with the largest positive sums of a map (h, w), in descending order."""
    sums = torch.zeros(int(labels.max()) + 1, dtype=values.dtype)
    sums.index_add_(0, labels.flatten(), values.flatten())
    order = sums.argsort(descending=True, stable=True)[:count]
    return [labels == label for label in order.tolist() if sums[label] > 0]


def find_spots(values: Tensor, count: int) -> list[Tensor]:
    """Disjoint discs around the maxima of a map (h, w), in descending order."""
    height, width = values.shape
    radius = max(2.0, SPOT_RADIUS * max(height, width))
    remaining = blur(values[None], radius / 3)[0].clone()
    spots = []
    for _ in range(count):
        row, column = divmod(int(remaining.argmax()), width)
        if remaining[row, column] <= 0:
            break
        around = tuple(slice(max(each - int(2 * radius), 0), each + int(2 * radius) + 1) for each in (row, column))
        rows, columns = torch.arange(height)[around[0], None], torch.arange(width)[None, around[1]]
        squared_distance = (rows - row).square() + (columns - column).square()
        spots.append(torch.zeros(height, width, dtype=torch.bool))
        spots[-1][around] = squared_distance <= radius**2
        remaining[around].masked_fill_(squared_distance <= (2 * radius) ** 2, 0)
    return spots
