"""Search for the smallest region of an image whose removal ends an error, among the proposals of several maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from torch import Tensor

from detcam.auditing.case import PERSISTING, Trial
from detcam.auditing.verification.evidence import StrongestPixels
from detcam.auditing.verification.interventions import Investigation, Removal
from detcam.utils.components import overlap_exceeds

REGION_SIZES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)
"""Fractions of the image that are removed, strongest evidence of a map first."""
START_FRACTION = 0.4
"""Fraction of the box at which the search starts."""
START_RANGE = (0.002, 0.032)
"""Smallest and largest fraction of the image at which the search starts."""
MIN_SAME_IOU = 0.8
"""Minimum IoU of two regions that count as the same."""
MAX_NEXT_TRIES = 2
"""Maximum number of maps that are tried at the next size: the most effective ones so far."""
MAX_STEPS = 2
"""Maximum number of larger sizes at which the most effective maps only are tried first."""
Ending: TypeAlias = Callable[[Trial], bool]
"""Whether a trial ends the error."""
RegionKey: TypeAlias = tuple[int, int]
"""A region: index of its map, and index of its size."""


@dataclass(frozen=True)
class TriedRegion:
    """A region that was removed.

    Attributes:
        map_index: index of the map that proposed it.
        region: (h, w) bool.
        trials: one trial per fill that was tried.
        ends: whether the error ends with every fill.
        first: index of the first trial's fill; the others follow in order, fill 0 after the last one.
    """

    map_index: int
    region: Tensor
    trials: tuple[Trial, ...]
    ends: bool
    first: int = 0

    @property
    def score(self) -> float:
        """The highest score of the detection without the region."""
        return max(trial.score for trial in self.trials)

    @property
    def strictest_fill(self) -> int:
        """Index of the fill with which a region that ends the error has the least effect."""
        return min(range(len(self.trials)), key=lambda fill: _effect(self.trials[fill]))


def _effect(trial: Trial) -> float:
    """How near a trial is to the end of the error: the score of a missed object, or the loss of a detection's score."""
    return trial.score if trial.outcome in ("appeared", "absent") else -trial.score


def ends_error(trial: Trial) -> bool:
    """Whether the error does not persist in a perturbed image."""
    return trial.outcome not in PERSISTING


class RegionSearch:
    """Finds regions whose removal ends an error with every fill, smallest first.

    All maps are tried at one size. If a region of that size ends the error, smaller sizes are tried, else larger ones;
    no outcome is inferred from another size. Regions that two maps share are tried once.

    Args:
        maps: maps (h, w), >= 0, the most promising first.
        box: (h, w) bool, the predicted box.
        fill_count: number of fills.
        ends: whether a trial ends the error.
        max_trials: number of perturbed images from which on no further region is tried; None sets no limit.

    Attributes:
        tried: the regions tried so far.
    """

    def __init__(
        self,
        maps: Sequence[Tensor],
        box: Tensor,
        fill_count: int,
        *,
        ends: Ending = ends_error,
        max_trials: int | None = None,
    ) -> None:
        self.ends = ends
        self.maps, self.fill_count, self.max_trials = list(maps), fill_count, max_trials
        self.tried: dict[RegionKey, TriedRegion] = {}
        self._pixels: dict[int, StrongestPixels] = {}
        self._regions: dict[RegionKey, Tensor] = {}
        size = min(max(START_FRACTION * float(box.float().mean()), START_RANGE[0]), START_RANGE[1])
        self._level = min(range(len(REGION_SIZES)), key=lambda level: abs(np.log(REGION_SIZES[level] / size)))
        self._returned: set[RegionKey] = set()
        self._first = 0  # the fill that decided last: without it, most regions need no second one

    def next_region(self) -> Investigation[TriedRegion | None]:
        """Find the smallest region that ends the error; later calls find the next ones of at least its size."""
        found: RegionKey | None = None
        if not self._returned:
            found = yield from self._smallest()
        while found is None:
            found = yield from self._first_ending(self._level, self._by_effect(self._level))
            if found is None:
                if self._level + 1 == len(REGION_SIZES):
                    return None
                self._level += 1
        self._returned.add(found)
        return self.tried[found]

    def _smallest(self) -> Investigation[RegionKey | None]:
        """Try all maps at the first size, and the most effective ones at the next larger, then at smaller sizes.

        With a maximum number of trials, larger sizes are left to the search of all maps.
        If nothing ends the error, the level stays, so that all maps are tried from there on.
        """
        level = self._level
        found = yield from self._first_ending(level, range(len(self.maps)))
        steps = MAX_STEPS if self.max_trials is None else 0
        for larger in range(level + 1, min(level + steps, len(REGION_SIZES) - 1) + 1):
            if found is None:
                found = yield from self._first_ending(larger, self._by_effect(larger - 1)[:MAX_NEXT_TRIES])
        while found is not None and found[1] > 0:
            self._level = found[1]
            maps = list(dict.fromkeys([found[0], *self._by_effect(self._level)]))[:MAX_NEXT_TRIES]
            smaller = yield from self._first_ending(self._level - 1, maps)
            if smaller is None:
                break
            found = smaller
        self._level = level if found is None else found[1]
        return found

    def _by_effect(self, level: int) -> list[int]:
        """The maps, those first whose region of a size has the largest effect; those without a trial come last."""
        effects = {index: min(map(_effect, each.trials)) for (index, size), each in self.tried.items() if size == level}
        return sorted(range(len(self.maps)), key=lambda index: -effects.get(index, -1.0))

    def first_regions(self) -> list[Tensor]:
        """The regions of the maps at the first size, without empty ones and duplicates."""
        found: list[Tensor] = []
        for index in range(len(self.maps)):
            region = self._region((index, self._level))
            if bool(region.any()) and not any(is_same(region, other) for other in found):
                found.append(region)
        return found

    def strongest_attempt(self) -> TriedRegion | None:
        """The tried region that costs the most score; None if the maps are empty."""
        return min(self.tried.values(), key=lambda each: each.score, default=None)

    def regions_outside(self, excluded: Tensor, count: int) -> list[Tensor]:
        """Per map, the strongest region of `count` pixels outside the pixels `excluded`; duplicates are left out."""
        found: list[Tensor] = []
        for each in self.maps:
            fraction = count / excluded.numel()
            region = StrongestPixels(each * ~excluded, fraction).region(fraction) & ~excluded
            if int(region.sum()) >= count // 2 and not any(is_same(region, other) for other in found):
                found.append(region)
        return found

    def _first_ending(self, level: int, maps: Iterable[int]) -> Investigation[RegionKey | None]:
        """The first map whose region of a size ends the error, and was not returned before."""
        for index in dict.fromkeys(maps):
            key = (index, level)
            if key not in self.tried and not self._is_finished() and not self._is_duplicate(key):
                tried = yield from try_region(self._region(key), self.fill_count, index, self.ends, first=self._first)
                self.tried[key] = tried
                if tried.ends:
                    self._first = tried.strictest_fill
                else:  # the last fill that was tried
                    self._first = (self._first + len(tried.trials) - 1) % self.fill_count
            if key in self.tried and self.tried[key].ends and key not in self._returned:
                return key
        return None

    def _region(self, key: RegionKey) -> Tensor:
        """The region (h, w) bool of a map and a size."""
        index, level = key
        if key not in self._regions:
            if index not in self._pixels:
                self._pixels[index] = StrongestPixels(self.maps[index], REGION_SIZES[-1])
            self._regions[key] = self._pixels[index].region(REGION_SIZES[level])
        return self._regions[key]

    def _is_finished(self) -> bool:
        """Whether the maximum number of trials is reached."""
        count = sum(len(each.trials) for each in self.tried.values())
        return self.max_trials is not None and count >= self.max_trials

    def _is_duplicate(self, key: RegionKey) -> bool:
        region = self._region(key)
        if not bool(region.any()):
            return True
        return any(is_same(region, each.region) for each in self.tried.values())


def try_region(
    region: Tensor, fill_count: int, map_index: int = -1, ends: Ending = ends_error, first: int = 0
) -> Investigation[TriedRegion]:
    """Remove a region with one fill after another, until the error persists.

    Args:
        region: (h, w) bool.
        fill_count: number of fills.
        map_index: index of the map that proposed it.
        ends: whether a trial ends the error.
        first: index of the fill that is tried first.

    Returns:
        The region; its trials are in the order of the fills if all were tried.
    """
    return (yield from try_other_fills(TriedRegion(map_index, region, (), ends=False, first=first), fill_count, ends))


def try_other_fills(tried: TriedRegion, fill_count: int, ends: Ending = ends_error) -> Investigation[TriedRegion]:
    """Remove a region with the fills that were not tried, until the error persists; see `try_region`."""
    made, first = list(tried.trials), tried.first
    while len(made) < fill_count and all(ends(each) for each in made):
        made += yield [Removal("without evidence", tried.region, (first + len(made)) % fill_count)]
    if len(made) == fill_count:
        made, first = made[fill_count - first :] + made[: fill_count - first], 0
    return TriedRegion(tried.map_index, tried.region, tuple(made), all(ends(each) for each in made), first)


def is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two regions (h, w) bool are nearly the same."""
    return overlap_exceeds(first.numpy(), second.numpy(), MIN_SAME_IOU)
