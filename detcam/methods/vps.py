"""Visual Precision Search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.layers import LayersLike
from detcam.methods.common.region_search import (
    TIE_TOLERANCE,
    RegionSets,
    SuperpixelSearchCAM,
    check_region_counts,
    saliency_of_order,
)
from detcam.trace import ReshapeTransform

LAZY_BATCH = 4
"""Number of regions that a lazy search evaluates at a time, so that passes come in batches."""


class VPS(SuperpixelSearchCAM):
    r"""Superpixels ranked by a greedy search for the regions that produce the target.

    .. math:: F(S) = y(S) + 1 - y(V \setminus S),\quad s_i = \arg\max_r F(S_{i-1} \cup \{r\}),\quad
        \alpha_i = \sum_{j \ge i} |F(S_j) - F(S_{j-1})|

    with V the regions of the image, y(S) the target's score in the image that shows only the regions S (the clue
    score), 1 - y(V \\ S) the loss without them (the collaboration score), :math:`s_i` the i-th chosen region,
    :math:`S_i` the first i of them, and :math:`\alpha_i` the saliency of :math:`s_i`. Hidden pixels become 0 in the
    network's input: the mean color if the input is normalized, else black. (The authors' code does so for Grounding
    DINO, and uses black for the detectors of MMDetection; its superpixels are OpenCV's.)

    For a box, y is the maximum over raw candidates (before NMS) of IoU with the box times score of its class; with
    `pinned`, that product at the box's source. For every other target, y is its score.

    In the paper the sum for :math:`\alpha_i` starts at i + 1 (``own_gain=False``): the order is the same, but the last
    region that matters ties with the regions without effect.

    Chen et al., *Interpreting Object-level Foundation Models via Visual Precision Search*, CVPR 2025,
    https://arxiv.org/abs/2411.16198.

    Use it to find the smallest set of sufficient regions of a black-box model. With K regions, the paper's search takes
    K (K + 1) passes less repeated ones; every pass is read for all targets of an image. Their number is in
    `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted for interchangeability; the map does not depend on it.
        reshape_transform: likewise.
        regions: approximate number of superpixels (SLIC with adaptive compactness); 50 to 100 in the paper.
        select: number of regions to choose; the others have saliency 0. None ranks all regions.
        lazy: if True, evaluate only regions whose last known gain may be the best, which takes a fraction of the
            passes. The order is the same if gains never increase. The gain in the collaboration score may increase,
            and the order may then differ from the paper's. False evaluates all remaining regions in every step.
        pinned: if True, score a box at its source instead of the candidate that fits best.
        own_gain: if True, a region's saliency includes its own gain.
    """

    name = "vps"
    paper = "Chen et al., Visual Precision Search, CVPR 2025, https://arxiv.org/abs/2411.16198"
    cost = "hundreds to thousands of forwards per target"
    use = "the few regions that suffice, ranked; for any black box"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        regions: int = 50,
        select: int | None = None,
        lazy: bool = False,
        pinned: bool = False,
        own_gain: bool = True,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        check_region_counts(regions, select)
        self.regions, self.select, self.lazy, self.pinned, self.own_gain = regions, select, lazy, pinned, own_gain

    def rank(self, sets: RegionSets, targets: int) -> Tensor:
        search = GreedySearch(sets, targets, lazy=self.lazy)
        search.run(sets.regions if self.select is None else min(self.select, sets.regions))
        return search.saliency(own_gain=self.own_gain)


class GreedySearch:
    """Ranks regions by their gain, for several targets that share the evaluated images.

    Args:
        sets: the scores of sets of regions.
        targets: number of targets.
        lazy: if True, gains are evaluated again only for regions that may be chosen.

    Attributes:
        order: per target, its regions in the order of their choice.
        gains: per target, the increase of F by each of them.
    """

    def __init__(self, sets: RegionSets, targets: int, *, lazy: bool) -> None:
        self.sets = sets
        self.lazy = lazy
        self.order: list[list[int]] = [[] for _ in range(targets)]
        self.gains: list[list[float]] = [[] for _ in range(targets)]
        self._bounds = torch.full((targets, sets.regions), torch.inf, dtype=torch.float64)

    def run(self, steps: int) -> None:
        """Choose `steps` regions for each target."""
        chosen = [0] * len(self.order)
        current = self.values([0])[0]
        for _ in range(steps):
            if not self.lazy:
                self._bounds[self._bounds > -torch.inf] = torch.inf
            self._update_gains(chosen, current)
            for target, bounds in enumerate(self._bounds):
                best = float(bounds.max())
                region = int((bounds >= best - TIE_TOLERANCE * (1 + abs(best))).nonzero()[0])
                self.order[target].append(region)
                self.gains[target].append(float(bounds[region]))
                chosen[target] |= 1 << region
                bounds[region] = -torch.inf
            current = torch.stack([row[n] for n, row in enumerate(self.values(chosen))])

    def _update_gains(self, chosen: list[int], current: Tensor) -> None:
        """Evaluate gains until the best one of each target is known."""
        stale = self._bounds > -torch.inf
        pending = list(range(len(chosen)))
        while pending:
            requests: list[tuple[int, int]] = []
            for target in pending:
                bounds = self._bounds[target].masked_fill(~stale[target], -torch.inf)
                unknown = (bounds == torch.inf).nonzero()[:, 0]
                best = bounds.argsort(descending=True, stable=True)[: min(LAZY_BATCH, int(stale[target].sum()))]
                requests += [(target, region) for region in (unknown if len(unknown) else best).tolist()]
            values = self.values([chosen[target] | 1 << region for target, region in requests])
            for (target, region), row in zip(requests, values, strict=True):
                self._bounds[target, region] = row[target] - current[target]
                stale[target, region] = False
            pending = [target for target in pending if self._may_be_beaten(target, stale[target])]

    def _may_be_beaten(self, target: int, stale: Tensor) -> bool:
        """Whether a region with a stale gain may be better than all regions with a current one."""
        bounds = self._bounds[target]
        known = bounds.masked_fill(stale, -torch.inf).max()
        return bool(stale.any()) and bool(bounds[stale].max() > known)

    def values(self, sets: Sequence[int]) -> Tensor:
        """F (K, targets) of K sets of regions."""
        return self.sets.clue_and_collaboration(sets)

    def saliency(self, *, own_gain: bool) -> Tensor:
        """(targets, regions): sum of the magnitudes of the gains from a region (or the next) on; 0 if not chosen."""
        regions = self.sets.regions
        rows = zip(self.order, self.gains, strict=True)
        return torch.stack([saliency_of_order(regions, order, gains, own_gain=own_gain) for order, gains in rows])
