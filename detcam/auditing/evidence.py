"""Regions of an image: where evidence is strongest, where it lies, and others of its size to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detcam.auditing.case import EVIDENCE_LOCATIONS, Box, EvidenceLocation
from detcam.utils.filters import blur

SMOOTHING = 0.008
"""Standard deviation of the smoothing of a map before it is cut, as a share of the image's longer side."""
FAINT = 0.01
"""Share of a map's maximum below which nothing is called evidence."""
TRIES = 48
"""Places that are tried for a control region."""
OVERLAP = 0.1
"""Greatest share of a control region that may lie on the evidence."""
RING = 0.5
"""How far the ring around a box reaches, as a share of the box's sides."""


def strongest(heatmap: Tensor, shares: Sequence[float]) -> Tensor:
    """The pixels where a map is greatest, so many that they are a share of the image.

    Args:
        heatmap: (h, w), not negative; it is smoothed a little, so that regions are whole rather than scattered.
        shares: of the image, in (0, 1).

    Returns:
        (len(shares), h, w) bool; fewer pixels where the rest of the map is faint, nothing where it is zero.
    """
    smooth = blur(heatmap[None].double(), max(SMOOTHING * max(heatmap.shape), 0.1))[0]
    order = smooth.flatten().argsort(descending=True, stable=True)
    positive = int((smooth > FAINT * smooth.amax().clamp(min=1e-30)).sum())
    found = torch.zeros((len(shares), smooth.numel()), dtype=torch.bool)
    for row, share in zip(found, shares, strict=True):
        row[order[: min(max(round(share * smooth.numel()), 1), positive)]] = True
    return found.view(-1, *heatmap.shape)


def box_region(box: Box, size_hw: tuple[int, int]) -> Tensor:
    """The pixels (H, W) bool of a box, at least one wherever it touches the image."""
    height, width = size_hw
    x1, y1, x2, y2 = box
    left, top = min(max(int(x1), 0), width - 1), min(max(int(y1), 0), height - 1)
    right, bottom = max(min(round(x2), width), left + 1), max(min(round(y2), height), top + 1)
    region = torch.zeros(size_hw, dtype=torch.bool)
    region[top:bottom, left:right] = True
    return region


def places(
    size_hw: tuple[int, int], predicted: Box, truth: Tensor | None, same_class: Tensor
) -> dict[EvidenceLocation, Tensor]:
    """Each place's pixels (H, W) bool, without overlap, as `EvidenceLocation` orders them.

    Args:
        size_hw: of the image.
        predicted: the detection's box.
        truth: (H, W) bool, the true object concerned, or None.
        same_class: (H, W) bool, the other objects of the predicted class.
    """
    x1, y1, x2, y2 = predicted
    dx, dy = RING * (x2 - x1), RING * (y2 - y1)
    nothing = torch.zeros(size_hw, dtype=torch.bool)
    layers: list[tuple[EvidenceLocation, Tensor]] = [
        ("ground truth", nothing if truth is None else truth),
        ("same class", same_class),
        ("predicted box", box_region(predicted, size_hw)),
        ("ring", box_region((x1 - dx, y1 - dy, x2 + dx, y2 + dy), size_hw)),
        ("scene", ~nothing),
    ]
    free = ~nothing
    found: dict[EvidenceLocation, Tensor] = {}
    for name, region in layers:
        found[name] = region & free
        free = free & ~region
    return {place: found[place] for place in EVIDENCE_LOCATIONS}


def shares(strength: Tensor, where: Mapping[EvidenceLocation, Tensor]) -> dict[EvidenceLocation, float]:
    """Share of a map (H, W), not negative, at each place; all 0 where the map is."""
    total = float(strength.sum())
    return {place: float(strength[region].sum()) / total if total > 0 else 0.0 for place, region in where.items()}


def elsewhere(region: Tensor, generator: torch.Generator, inside: Tensor | None = None) -> Tensor | None:
    """A region of the same size and shape at another place: moved, and perhaps mirrored.

    What leaves the image on one side enters on the other, so that the size stays.

    Args:
        region: (h, w) bool.
        generator: draws the places that are tried.
        inside: (h, w) bool, where it must lie instead; then it is a round spot of the same size, off the region.

    Returns:
        (h, w) bool; None where no place is free enough of the region itself.
    """
    if inside is not None:
        return _beside(region, inside, generator)
    for _ in range(TRIES):
        shift = [int(torch.randint(side, (), generator=generator)) for side in region.shape]
        flips = [axis for axis in (0, 1) if bool(torch.randint(2, (), generator=generator))]
        moved = region.flip(flips).roll(shift, (0, 1))
        if float((moved & region).sum()) <= OVERLAP * float(region.sum()):
            return moved
    return None


def _beside(region: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor | None:
    """As many pixels as a region has, off it but inside another one, those nearest to a random one of them."""
    free = inside & ~region
    size = int(region.sum())
    if int(free.sum()) < size or not size:
        return None
    rows, columns = torch.nonzero(free, as_tuple=True)
    seed = int(torch.randint(len(rows), (), generator=generator))
    distance = (rows - rows[seed]).square() + (columns - columns[seed]).square()
    chosen = distance.argsort(stable=True)[:size]
    found = torch.zeros_like(region)
    found[rows[chosen], columns[chosen]] = True
    return found
