"""Removal of proposed regions one by one, and of pairs, which ranks them by what each costs the detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.auditing.case import PERSISTING
from detcam.auditing.verification.interventions import Investigation, Removal
from detcam.auditing.verification.region_search import TriedRegion
from detcam.auditing.verification.verdict import remaining_score
from detcam.methods.common.region_proposals import propose_regions
from detcam.methods.probe_cam import render_regions

MAX_PROBES = 5
"""Maximum number of regions that are removed one by one."""
MAX_PAIRED = 3
"""Number of regions of which pairs are removed, if no region ends the error alone."""
MARGIN = 1
"""Pixels around a region that are removed with it."""


@dataclass(frozen=True)
class RegionProbes:
    """Regions to remove one by one.

    Attributes:
        levels: (L, h, w) maps, >= 0, of layers whose gradients cover the scene.
        regions: (k, h, w) bool, color segments and spots that the maps highlight.
    """

    levels: Tensor
    regions: Tensor

    @classmethod
    def propose(cls, levels: Sequence[Tensor], segments: Tensor) -> RegionProbes:
        """Propose regions.

        Args:
            levels: maps (h, w), >= 0.
            segments: (h, w) int64, labels of segments.
        """
        stacked = torch.stack(list(levels))
        return cls(stacked, propose_regions(stacked, segments, MAX_PROBES))

    def split(self, found: Tensor) -> tuple[RegionProbes, list[Tensor]]:
        """The probes with a higher `density` than a region (h, w) bool of at least twice their size; and the others."""
        density, dilated = self.density(found), _dilated(self.regions)
        kept = [
            self.density(region) > density and 2 * int(removed.sum()) <= int(found.sum())
            for region, removed in zip(self.regions, dilated, strict=True)
        ]
        is_kept = torch.tensor(kept, dtype=torch.bool)
        return replace(self, regions=self.regions[is_kept]), list(dilated[~is_kept])

    def density(self, region: Tensor) -> float:
        """The mean of the levels' product over a region (h, w) bool."""
        return float(self.levels.prod(0)[region].mean())


def probe_regions(probes: RegionProbes, score: float) -> Investigation[tuple[Tensor, list[TriedRegion]]]:
    """Remove the regions one by one, and render them with the drops of the score, as `ProbeCAM` does.

    If no region ends the error alone, pairs of the regions with the largest saliency are removed: causes that replace
    one another cost nothing one at a time.

    Args:
        probes: the regions.
        score: the detection's score, in [0, 1].

    Returns:
        (h, w) float32, >= 0, zero if nothing costs the detection any score; and the regions that end the error with the
        first fill, the densest saliency first, each with its trial.
    """
    regions = probes.regions
    if not len(regions):
        return torch.zeros(regions.shape[1:]), []
    tried = yield from _remove(regions)
    if len(regions) > 1 and not any(each.ends for each in tried):
        sums = torch.stack([(probes.levels.prod(0) * region).sum() for region in regions])
        strongest = sums.argsort(descending=True, stable=True)[:MAX_PAIRED].tolist()
        pairs = torch.stack([regions[first] | regions[second] for first, second in combinations(strongest, 2)])
        paired = yield from _remove(pairs)
        if any(each.ends for each in paired):
            regions, tried = pairs, paired
    drops = torch.tensor([max(score - remaining_score(each.trials[0]), 0.0) for each in tried])
    ending = [each for each in tried if each.ends]
    ending.sort(key=lambda each: -probes.density(each.region))
    return render_regions(probes.levels, regions, drops).float(), ending


def _remove(regions: Tensor) -> Investigation[list[TriedRegion]]:
    """Remove each region, with a margin, with the first fill."""
    dilated = _dilated(regions)
    trials = yield [Removal("without evidence", region) for region in dilated]
    return [
        TriedRegion(0, region, (trial,), trial.outcome not in PERSISTING)
        for region, trial in zip(dilated, trials, strict=True)
    ]


def _dilated(regions: Tensor) -> Tensor:
    """Regions (k, h, w) bool with their margin."""
    return F.max_pool2d(regions[:, None].float(), 2 * MARGIN + 1, 1, MARGIN)[:, 0] > 0 if len(regions) else regions
