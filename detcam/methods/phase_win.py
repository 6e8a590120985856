"""PhaseWin."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

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

DEFERRAL_PROBABILITY = 0.5
"""Probability that a candidate is put back once in a phase before it enters the window."""


class PhaseWin(SuperpixelSearchCAM):
    r"""Superpixels ranked by a search in phases, which approximates the greedy search of `VPS` with fewer passes.

    .. math:: F(S) = y(S) + 1 - y(V \setminus S),\quad
        C_t = \{r : F(S_t \cup \{r\}) \ge \alpha\, G_t\},\quad
        G_t = \max_r F(S_t \cup \{r\}),\quad
        \alpha_i = \sum_{j \ge i} |F(S_j) - F(S_{j-1})|

    with V the regions of the image, y and F as in `VPS`, and :math:`\alpha_i` the saliency of the i-th chosen region.
    A phase chooses the best region of all, evaluates the others once more, sets those with
    :math:`F(S_t \cup \{r\}) < \beta G_t` (``prune``) aside until the end, and takes the candidates :math:`C_t`
    (``accept``), best first. From then on only a window of the first candidates is evaluated: every region of the
    window whose F reaches ``batch`` times the window's maximum (and :math:`\alpha G_t`) is chosen, and the window is
    filled up; a candidate that waits is put back once with probability 1/2. The phase ends if the window holds no such
    region, or if the values fall off: with :math:`f` the values of the last three choices, if
    :math:`f_{t-1} / f_t - f_{t-2} / f_{t-1}` exceeds ``exit_change``, the region is still chosen if
    :math:`f_t \ge` ``exit_ratio`` :math:`f_{t-1}`, and the next phase starts. Regions that are left are ranked by
    their F at the end, those set aside last.

    Gu et al., *PhaseWin Search Framework Enable Efficient Object-Level Interpretation*, CVPR 2026,
    https://arxiv.org/abs/2511.10914. The search and its defaults follow the authors' published code
    (https://github.com/Qihuai27/phasewin-va), whose thresholds compare F itself, not its increase, and whose
    probability of deferral is 1/2 at every temperature.

    Use it in place of `VPS` if that takes too long. With K regions and a window of w it takes at most
    2 K (K + 1 + 2 w) passes, usually a fraction of those of `VPS`; every pass is read for all targets of an image.
    Their number is in `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted for interchangeability; the map does not depend on it.
        reshape_transform: likewise.
        regions: approximate number of superpixels, as in `VPS`; 100 in the authors' code for detectors.
        select: number of regions to choose; the others have saliency 0. None ranks all regions.
        window: number of regions in the window; None takes 0.3 times the number of regions.
        prune: fraction of the best value below which a region is set aside.
        accept: fraction of the best value that a candidate of the phase reaches.
        batch: fraction of the window's maximum from which a region is chosen.
        exit_change: change of the ratio of successive values that ends a phase; None never ends it.
        exit_ratio: fraction of the value before that a region must reach to be chosen at the end of a phase.
        pinned: if True, score a box at its source instead of the candidate that fits best.
        own_gain: if True, a region's saliency includes its own gain.
        seed: seed of the deferrals.
    """

    name = "phasewin"
    paper = "Gu et al., PhaseWin, CVPR 2026, https://arxiv.org/abs/2511.10914"
    cost = "hundreds to thousands of forwards per target"
    use = "as `vps`, with a fraction of its passes"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        regions: int = 100,
        select: int | None = None,
        window: int | None = None,
        prune: float = 0.05,
        accept: float = 0.6,
        batch: float = 0.99,
        exit_change: float | None = 0.02,
        exit_ratio: float = 0.98,
        pinned: bool = False,
        own_gain: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        check_region_counts(regions, select)
        if window is not None and window < 1:
            raise ValueError(f"expected window of at least 1, or None for 0.3 times the regions; got {window}")
        for name, value in {"prune": prune, "accept": accept, "batch": batch}.items():
            if not 0 < value <= 1:
                raise ValueError(f"expected {name} greater than 0 and at most 1; got {value}")
        self.regions, self.select, self.window, self.pinned, self.own_gain = regions, select, window, pinned, own_gain
        self.prune, self.accept, self.batch, self.seed = prune, accept, batch, seed
        self.exit_change, self.exit_ratio = exit_change, exit_ratio

    def rank(self, sets: RegionSets, targets: int) -> Tensor:
        return torch.stack([self._rank_for(sets, target) for target in range(targets)])

    def _rank_for(self, sets: RegionSets, target: int) -> Tensor:
        """Saliency (regions,) for one target."""

        def values(shown: Sequence[int]) -> list[float]:
            exact = sets.clue_and_collaboration(shown)[:, target]
            return ((exact / TIE_TOLERANCE).round() * TIE_TOLERANCE).tolist()  # ties do not depend on the batch size

        count = sets.regions
        search = PhaseSearch(
            values,
            count,
            window=max(1, int(0.3 * count)) if self.window is None else self.window,
            prune=self.prune,
            accept=self.accept,
            batch=self.batch,
            exit_change=self.exit_change,
            exit_ratio=self.exit_ratio,
            seed=self.seed,
        )
        order = search.run(count if self.select is None else min(self.select, count))
        prefixes = [0]
        for region in order:
            prefixes.append(prefixes[-1] | 1 << region)
        along = sets.clue_and_collaboration(prefixes)[:, target]
        return saliency_of_order(count, order, along.diff().tolist(), own_gain=self.own_gain)


class PhaseSearch:
    """Ranks the regions of one target; see `PhaseWin`.

    Args:
        values: from sets of regions, ints with one bit per region, to their F.
        regions: number of regions.
        window: number of regions in the window.
        prune, accept, batch, exit_change, exit_ratio, seed: as in `PhaseWin`.

    Attributes:
        order: the regions in the order of their choice.
    """

    def __init__(
        self,
        values: Callable[[Sequence[int]], list[float]],
        regions: int,
        *,
        window: int,
        prune: float,
        accept: float,
        batch: float,
        exit_change: float | None,
        exit_ratio: float,
        seed: int,
    ) -> None:
        self.values, self.regions, self.window = values, regions, window
        self.prune, self.accept, self.batch = prune, accept, batch
        self.exit_change, self.exit_ratio = exit_change, exit_ratio
        self.random = random.Random(seed)
        self.order: list[int] = []
        self._chosen = 0
        self._steps = 0

    def run(self, steps: int) -> list[int]:
        """Choose `steps` regions and return them in order."""
        self._steps = steps
        remaining = list(range(self.regions))
        pruned: list[int] = []
        while remaining and not self._is_done:
            values = self._evaluate(remaining)
            best = max(values)
            if best <= 0:
                break
            self._choose(remaining.pop(values.index(best)))
            if self._is_done or not remaining:
                break
            values = self._evaluate(remaining)
            top = max(values)
            if top <= 0:
                continue
            pruned += [region for region, value in zip(remaining, values, strict=True) if value < self.prune * top]
            kept = [pair for pair in zip(remaining, values, strict=True) if pair[1] >= self.prune * top]
            middle = [region for region, value in kept if value < self.accept * top]
            candidates = sorted((pair for pair in kept if pair[1] >= self.accept * top), key=lambda pair: -pair[1])
            remaining = self._run_window([region for region, _ in candidates], self.accept * top, best) + middle
        for rest in (remaining, pruned):
            if rest and not self._is_done:
                ranked = sorted(zip(rest, self._evaluate(rest), strict=True), key=lambda pair: -pair[1])
                for region, _ in ranked[: steps - len(self.order)]:
                    self._choose(region)
        return self.order

    @property
    def _is_done(self) -> bool:
        return len(self.order) >= self._steps

    def _evaluate(self, regions: Sequence[int]) -> list[float]:
        """F of the chosen regions with each of some others."""
        return self.values([self._chosen | 1 << region for region in regions])

    def _choose(self, region: int) -> None:
        self.order.append(region)
        self._chosen |= 1 << region

    def _run_window(self, candidates: list[int], threshold: float, last: float) -> list[int]:
        """Choose among the candidates until the phase ends; return those that were not chosen.

        Args:
            candidates: regions, best first.
            threshold: value that a chosen region reaches.
            last: value of the region that was chosen before.
        """
        window, tail = candidates[: self.window], deque(candidates[self.window :])
        deferred: set[int] = set()
        earlier: float | None = None
        while (window or tail) and not self._is_done:
            self._refill(window, tail, deferred)
            values = self._evaluate(window)
            least = max(threshold, self.batch * max(values))
            if max(values) < least:
                break
            left: list[int] = []
            for index, (region, value) in enumerate(zip(window, values, strict=True)):
                if value < least or self._is_done:
                    left.append(region)
                    continue
                falls_off = self._falls_off(earlier, last, value)
                if falls_off and value < self.exit_ratio * last:
                    return [*left, *window[index:], *tail]
                self._choose(region)
                earlier, last = last, value
                if falls_off:
                    return [*left, *window[index + 1 :], *tail]
            window = left
        return [*window, *tail]

    def _refill(self, window: list[int], tail: deque[int], deferred: set[int]) -> None:
        """Move candidates from the tail to the window; each may be put back once."""
        while len(window) < self.window and tail:
            region = tail.popleft()
            if self.random.random() < DEFERRAL_PROBABILITY and region not in deferred:
                deferred.add(region)
                tail.append(region)
            else:
                window.append(region)

    def _falls_off(self, earlier: float | None, last: float, value: float) -> bool:
        """Whether the ratio of successive values changes by more than `exit_change`."""
        if self.exit_change is None or earlier is None:
            return False
        return last / max(value, 1e-12) - earlier / max(last, 1e-12) > self.exit_change
