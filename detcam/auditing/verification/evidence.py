"""Regions of an image: the strongest evidence, its location, and control regions of the same size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.auditing.case import EVIDENCE_LOCATIONS, Box, EvidenceLocation
from detcam.data.ground_truth import GroundTruth
from detcam.utils.filters import blur

EVIDENCE_SMOOTHING = 0.008
"""Standard deviation of the smoothing of a heatmap before thresholding, relative to the image's longer side."""
MAX_REGION_SIDE = 208
"""Maximum longer side, in cells, of the grid on which regions are selected."""
MIN_STRENGTH = 0.01
"""Minimum strength of evidence, relative to the heatmap's maximum."""
RANDOM_CONTROLS = 2
"""Number of random control regions."""
MAX_TRIES = 48
"""Maximum number of positions tried for a control region."""
MAX_CONTROL_OVERLAP = 0.1
"""Maximum fraction of a control region that overlaps the evidence."""
RING_WIDTH = 0.5
"""Width of the ring around a box, relative to the box's sides."""
MIN_OBJECT_SHARE = 0.5
"""Minimum share of a region in the box of an object on which it is said to lie."""


class StrongestPixels:
    """The pixels of a heatmap in the order of their strength, from which regions of several sizes are made.

    Args:
        heatmap: (h, w), >= 0. It is smoothed slightly, which keeps the regions connected.
        max_fraction: the largest fraction of the image that a region covers, in (0, 1).
    """

    def __init__(self, heatmap: Tensor, max_fraction: float) -> None:
        self._size_hw = height, width = (heatmap.shape[0], heatmap.shape[1])
        factor = min(1.0, MAX_REGION_SIDE / max(height, width))
        self._grid_hw = size = (max(1, round(height * factor)), max(1, round(width * factor)))
        small = heatmap[None] if factor == 1 else F.interpolate(heatmap[None, None].float(), size, mode="area")[0]
        smooth = blur(small.double(), max(EVIDENCE_SMOOTHING * max(size), 0.1))[0]
        flat = smooth.flatten()
        strong = torch.nonzero(flat > MIN_STRENGTH * flat.amax().clamp(min=1e-30))[:, 0]
        largest = max(round(max_fraction * smooth.numel()), 1)
        if len(strong) > largest:  # the order of the others does not matter
            weakest = len(strong) - largest
            strong = strong[flat[strong] >= float(np.partition(flat[strong].numpy(), weakest)[weakest])]
        self._order = strong[flat[strong].argsort(descending=True, stable=True)]

    def region(self, fraction: float) -> Tensor:
        """The region (h, w) bool of the strongest pixels that cover a fraction of the image.

        It has fewer pixels if the rest of the map is below `MIN_STRENGTH`, and none if the map is zero.
        """
        region = torch.zeros(self._grid_hw)
        count = max(round(fraction * region.numel()), 1)
        region.view(-1)[self._order[:count]] = 1.0
        if self._grid_hw != self._size_hw:
            region = F.interpolate(region[None, None], self._size_hw, mode="nearest")[0, 0]
        return region > 0


def box_region(box: Box, size_hw: tuple[int, int]) -> Tensor:
    """The pixels (H, W) bool of a box, at least one if it touches the image."""
    height, width = size_hw
    x1, y1, x2, y2 = box
    left, top = min(max(int(x1), 0), width - 1), min(max(int(y1), 0), height - 1)
    right, bottom = max(min(round(x2), width), left + 1), max(min(round(y2), height), top + 1)
    region = torch.zeros(size_hw, dtype=torch.bool)
    region[top:bottom, left:right] = True
    return region


def location_regions(
    size_hw: tuple[int, int], predicted_box: Box, ground_truth: Tensor | None, same_class: Tensor
) -> dict[EvidenceLocation, Tensor]:
    """Partition an image into the regions of `EvidenceLocation`.

    Args:
        size_hw: size of the image.
        predicted_box: box of the detection, pixels of the image.
        ground_truth: (H, W) bool, the object concerned, or None.
        same_class: (H, W) bool, the other objects of the predicted class.

    Returns:
        (H, W) bool by location, disjoint, covering the image.
    """
    x1, y1, x2, y2 = predicted_box
    dx, dy = RING_WIDTH * (x2 - x1), RING_WIDTH * (y2 - y1)
    empty = torch.zeros(size_hw, dtype=torch.bool)
    by_priority: list[tuple[EvidenceLocation, Tensor]] = [
        ("ground truth", empty if ground_truth is None else ground_truth),
        ("same class", same_class),
        ("predicted box", box_region(predicted_box, size_hw)),
        ("ring", box_region((x1 - dx, y1 - dy, x2 + dx, y2 + dy), size_hw)),
        ("scene", ~empty),
    ]
    free = ~empty
    regions: dict[EvidenceLocation, Tensor] = {}
    for location, region in by_priority:
        regions[location] = region & free
        free = free & ~region
    return {location: regions[location] for location in EVIDENCE_LOCATIONS}


def location_shares(strength: Tensor, regions: Mapping[EvidenceLocation, Tensor]) -> dict[EvidenceLocation, float]:
    """Share of a map (H, W), >= 0, in each region; all 0 if the map is zero."""
    total = float(strength.sum())
    return {
        location: float((strength * region).sum()) / total if total > 0 else 0.0 for location, region in regions.items()
    }


def object_under(region: Tensor, ground_truth: GroundTruth, excluded: int | None) -> int | None:
    """Index of the object in whose box most of a region lies, the smallest one if there are several.

    Args:
        region: (H, W) bool.
        ground_truth: the objects.
        excluded: index of an object that does not count, or None.

    Returns:
        None if no object has at least `MIN_OBJECT_SHARE` of the region.
    """
    size = int(region.sum())
    found = []
    for index, box in enumerate(ground_truth.boxes_xyxy.tolist()):
        if index != excluded and not bool(ground_truth.crowd[index]) and size:
            x1, y1, x2, y2 = (max(round(side), 0) for side in box)
            if int(region[y1:y2, x1:x2].sum()) >= MIN_OBJECT_SHARE * size:
                found.append(((x2 - x1) * (y2 - y1), index))
    return min(found)[1] if found else None


def control_generator(case_id: str) -> torch.Generator:
    """The generator that draws the controls of a case; its seed is a digest of the case's id."""
    seed = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


def random_controls(
    region: Tensor, generator: torch.Generator, excluded: Tensor, kept: Tensor | None = None
) -> list[Tensor]:
    """Draw up to `RANDOM_CONTROLS` regions of a region's size and shape, as `move_region` does."""
    drawn = [move_region(region, generator, excluded, kept) for _ in range(RANDOM_CONTROLS)]
    return [each for each in drawn if each is not None]


def move_region(
    region: Tensor, generator: torch.Generator, excluded: Tensor | None = None, kept: Tensor | None = None
) -> Tensor | None:
    """Move a region to a random position that barely overlaps it, possibly mirrored.

    Pixels that leave the image on one side enter on the other, which keeps the size.

    Args:
        region: (h, w) bool.
        generator: draws the positions.
        excluded: (h, w) bool, pixels that the new position must barely overlap; None takes the region.
        kept: (h, w) bool, pixels that the new position must not overlap, since they are never removed; None has none.

    Returns:
        (h, w) bool; None if no tried position overlaps the excluded pixels by less than `MAX_CONTROL_OVERLAP` of the
        region, and none of the kept ones.
    """
    excluded = region if excluded is None else excluded
    for _ in range(MAX_TRIES):
        shift = [int(torch.randint(side, (), generator=generator)) for side in region.shape]
        flips = [axis for axis in (0, 1) if bool(torch.randint(2, (), generator=generator))]
        moved = region.flip(flips).roll(shift, (0, 1))
        is_free = float((moved & excluded).sum()) <= MAX_CONTROL_OVERLAP * float(region.sum())
        if is_free and (kept is None or not bool((moved & kept).any())):
            return moved
    return None


def region_beside(
    region: Tensor, inside: Tensor, generator: torch.Generator, excluded: Tensor | None = None
) -> Tensor | None:
    """Draw a compact region of the same size that lies inside another region and does not overlap the first.

    Args:
        region: (h, w) bool.
        inside: (h, w) bool, the region to stay in.
        generator: draws the center.
        excluded: (h, w) bool, pixels to stay off; None takes the region.

    Returns:
        (h, w) bool, the free pixels nearest to the center; None if there are fewer than the region has.
    """
    free = inside & ~(region if excluded is None else excluded)
    size = int(region.sum())
    if int(free.sum()) < size or not size:
        return None
    rows, columns = torch.nonzero(free, as_tuple=True)
    seed = int(torch.randint(len(rows), (), generator=generator))
    distance = (rows - rows[seed]).square() + (columns - columns[seed]).square()
    nearest = distance.argsort(stable=True)[:size]
    beside = torch.zeros_like(region)
    beside[rows[nearest], columns[nearest]] = True
    return beside
