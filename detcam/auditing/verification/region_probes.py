"""Removal of proposed regions one by one, and of several together, which ranks them by their cost to the detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from detcam.auditing.case import PERSISTING
from detcam.auditing.verification.interventions import Investigation, Removal
from detcam.auditing.verification.region_search import Ending, TriedRegion, ends_error
from detcam.auditing.verification.verdict import remaining_score
from detcam.methods.common.region_proposals import find_spots, heaviest_segments, merge_regions
from detcam.methods.probe_cam import render_regions
from detcam.utils.filters import blur
from detcam.utils.opencv import cv2
from detcam.utils.precision import to_float64

MAX_PROBES = 5
"""Maximum number of regions that are removed one by one."""
MAX_JOINED = 9
"""Maximum number of regions that are removed together, if no region ends the error alone."""
MAX_INSIDE = 0.2
"""Maximum share, in the box, of a region that counts as outside."""
MAX_SPOTS = 4
"""Maximum number of spots of each map."""
MAX_SPOTS_OUTSIDE = 6
"""Maximum number of spots outside the box that are removed together with the regions there."""
MAX_SPOT_OVERLAP = 0.2
"""Maximum share of such a spot that lies in the box or on a region outside it."""
MARGIN = 1
"""Pixels around a proposed region that are removed with it; spots outside the box are removed without a margin."""


@dataclass(frozen=True)
class RegionProbes:
    """Regions to remove one by one.

    Attributes:
        levels: (L, h, w) maps, >= 0, of layers whose gradients cover the scene.
        regions: (k, h, w) bool, color segments and spots that the maps highlight, the most promising first.
        sensitivity: (h, w) map, >= 0, whose maxima are spots.
    """

    levels: Tensor
    regions: Tensor
    sensitivity: Tensor

    @classmethod
    def propose(cls, levels: Sequence[Tensor], sensitivity: Sequence[Tensor], segments: Tensor) -> RegionProbes:
        """Propose regions.

        Gradients times activations have the sign of the effect, but are small where the score is saturated; the
        product of their norms is not. Regions are, in turn: spots of both, segments and spots of each.

        Args:
            levels: maps (h, w), >= 0, of gradients times activations.
            sensitivity: maps (h, w), >= 0, of the norm of gradients times that of activations.
            segments: (h, w) int64, labels of segments.
        """
        # Rounding makes the ranks independent of the last bits, which depend on the batch size.
        signed, unsigned = (
            blur(torch.round(to_float64(torch.stack(list(each))) * 1e4), 1.0).prod(0) for each in (levels, sensitivity)
        )
        both = signed.sqrt() * unsigned.sqrt()
        queues = (
            find_spots(both, MAX_SPOTS),
            heaviest_segments(signed, segments, MAX_JOINED),
            find_spots(unsigned, MAX_SPOTS),
            find_spots(signed, MAX_SPOTS),
        )
        return cls(torch.stack(list(levels)), merge_regions(queues, MAX_JOINED, segments), both)

    def following(self) -> RegionProbes:
        """The probes after the first `MAX_PROBES`."""
        return replace(self, regions=self.regions[MAX_PROBES:])

    def split(self, found: Tensor) -> tuple[RegionProbes, list[Tensor]]:
        """The probes with a higher `density` than a region (h, w) bool of at least twice their size; and the others."""
        density, dilated = self.density(found), dilated_regions(self.regions)
        kept = [
            self.density(region) > density and 2 * int(removed.sum()) <= int(found.sum())
            for region, removed in zip(self.regions, dilated, strict=True)
        ]
        is_kept = torch.tensor(kept, dtype=torch.bool)
        return replace(self, regions=self.regions[is_kept]), list(dilated[~is_kept])

    def outside(self, box: Tensor) -> RegionProbes:
        """The probes outside a box (h, w) bool: regions, without their pixels in the box, and spots."""
        kept = [region & ~box for region in self.regions if _is_outside(region, box)]
        regions = [*kept, *self.spots_outside(box)][:MAX_JOINED]
        stacked = torch.stack(regions) if regions else self.regions[:0]
        return RegionProbes(self.levels * ~box, stacked, self.sensitivity * ~box)

    def spots_outside(self, box: Tensor) -> list[Tensor]:
        """Spots (h, w) bool outside a box (h, w) bool, the most promising first, each without its pixels in the box.

        Spots of which more than `MAX_SPOT_OVERLAP` lies in the box or on a region outside it are left out.
        """
        known = (self.regions & ~box).any(0) | box
        spots = find_spots(self.sensitivity * ~box, MAX_SPOTS_OUTSIDE)
        return [spot & ~box for spot in spots if int((spot & known).sum()) <= MAX_SPOT_OVERLAP * int(spot.sum())]

    def density(self, region: Tensor) -> float:
        """The mean of the levels' product over a region (h, w) bool."""
        return float(self._product[region].mean())

    @cached_property
    def _product(self) -> Tensor:
        """(h, w), the levels' product."""
        return self.levels.prod(0)


def probe_regions(
    probes: RegionProbes, score: float, box: Tensor, ends: Ending = ends_error
) -> Investigation[tuple[Tensor, list[TriedRegion]]]:
    """Remove the first `MAX_PROBES` regions one by one, and render them with their drops of the score, like `ProbeCAM`.

    If no region ends the error alone, those outside the box are removed together, since causes that replace one another
    cost nothing one at a time, then those inside as well; of regions that end the error together, the fewest are
    searched. Regions that end the error in another way alone are left out.

    Args:
        probes: the regions.
        score: the detection's score, in [0, 1].
        box: (h, w) bool, the predicted box.
        ends: whether a trial ends the error.

    Returns:
        (h, w) float32, >= 0, zero if nothing costs the detection any score; and the regions that end the error with the
        first fill, each with its trial: single ones, the densest saliency first, or several together, the fewest
        first.
    """
    regions = probes.regions
    if not len(regions):
        return torch.zeros(regions.shape[1:]), []
    dilated = dilated_regions(regions)
    tried = yield from _remove(dilated[:MAX_PROBES], ends)
    drops = [max(score - remaining_score(each.trials[0]), 0.0) for each in tried]
    ending = [each for each in tried if each.ends]
    ending.sort(key=lambda each: -probes.density(each.region))
    if not ending:
        # Without parts of the object its detection ends, whatever the cause is.
        left = [number for number, each in enumerate(tried) if each.trials[0].outcome in PERSISTING]
        left.sort(key=lambda number: -drops[number])
        outside = [number for number in [*left, *range(len(tried), len(regions))] if _is_outside(regions[number], box)]
        spots = probes.spots_outside(box)
        ending = yield from fewest_regions([*(dilated[number] for number in outside), *spots], ends)
        if not ending and not set(left) <= set(outside):
            ending = yield from fewest_regions([dilated[number] for number in left], ends)
        if ending:
            joint = ending[0]
            inside = ~(dilated & ~joint.region).flatten(1).any(1)
            regions, drops = regions[inside], [score - remaining_score(joint.trials[0])] * int(inside.sum())
    return render_regions(probes.levels, regions[: len(drops)], torch.tensor(drops)).float(), ending


def _is_outside(region: Tensor, box: Tensor) -> bool:
    """Whether most of a region lies outside the box."""
    return int((region & box).sum()) <= MAX_INSIDE * int(region.sum())


def fewest_regions(
    regions: Sequence[Tensor], ends: Ending, max_removals: int | None = None
) -> Investigation[list[TriedRegion]]:
    """Search for the fewest of some regions (h, w) bool that end the error together.

    The shortest sequence of the first regions that ends the error is found by bisection. Its last region is needed; the
    others are searched likewise, together with those that are known to be needed.

    Args:
        regions: the regions.
        ends: whether a trial ends the error.
        max_removals: number of perturbed images from which on no fewer regions are searched; None sets no limit.

    Returns:
        The fewest regions, and the larger sets of them that end the error as well, which may be needed with other
        fills; empty if all regions together do not end it.
    """
    if len(regions) < 2:
        return []
    (best,) = yield from _remove(torch.stack(list(regions)).any(0)[None], ends)
    if not best.ends:
        return []
    found, count = [best], 1
    needed, rest = torch.zeros_like(best.region), list(regions)
    while True:
        shortest, longest = 0, len(rest)
        while shortest < longest:
            middle = (shortest + longest) // 2
            region = torch.stack([needed, *rest[:middle]]).any(0)
            if not bool(region.any()):
                shortest = middle + 1
                continue
            if count == max_removals:
                return found
            (tried,) = yield from _remove(region[None], ends)
            count += 1
            if tried.ends:
                found.insert(0, tried)
                longest = middle
            else:
                shortest = middle + 1
        if not longest:
            return found
        needed, rest = needed | rest[longest - 1], rest[: longest - 1]


def _remove(regions: Tensor, ends: Ending) -> Investigation[list[TriedRegion]]:
    """Remove each region (k, h, w) bool with the first fill."""
    trials = yield [Removal("without evidence", region) for region in regions]
    return [TriedRegion(0, region, (trial,), ends(trial)) for region, trial in zip(regions, trials, strict=True)]


def dilated_regions(regions: Tensor) -> Tensor:
    """Regions (k, h, w) bool with their margin."""
    kernel = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
    grown = [torch.from_numpy(cv2.dilate(region.numpy().view(np.uint8), kernel)).bool() for region in regions]
    return torch.stack(grown) if grown else regions
