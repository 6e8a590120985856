"""How well a map finds a certified cause: its peak, its energy, and at which rank the cause is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

RANKS = 10
"""Places of a map that are looked at, the hottest first."""
APART = 0.08
"""Least distance of two of them, as a share of the image's longer side."""


@dataclass(frozen=True)
class MapHit:
    """What one map says of one certified cause.

    Attributes:
        peak: whether the map's greatest pixel lies on the cause.
        energy: share of the map's sum that does, in [0, 1].
        rank: the first of the map's hottest places that lies on the cause, from 1; RANKS + 1 where none of them does.
    """

    peak: bool
    energy: float
    rank: int


def judge_map(heatmap: Tensor, cause: Tensor) -> MapHit:
    """Judge a map (H, W), not negative, against the pixels (H, W) bool of a cause."""
    total = float(heatmap.sum())
    if total <= 0:
        return MapHit(False, 0.0, RANKS + 1)
    places = hottest_places(heatmap, RANKS)
    rank = next((number for number, at in enumerate(places, 1) if bool(cause.flatten()[at])), RANKS + 1)
    return MapHit(rank == 1, float(heatmap[cause].sum()) / total, rank)


def hottest_places(heatmap: Tensor, most: int) -> list[int]:
    """Flat indices of a map's local maxima, the hottest first, no two of them close; the peak is the first.

    Args:
        heatmap: (H, W), not negative.
        most: at most so many; zeros are no places.
    """
    radius = max(1, round(APART * max(heatmap.shape)))
    around = F.max_pool2d(heatmap[None, None].float(), 2 * radius + 1, 1, radius)[0, 0]
    values = torch.where((heatmap >= around) & (heatmap > 0), heatmap, torch.zeros(())).flatten()
    columns = heatmap.shape[1]
    found: list[int] = []
    for index in values.argsort(descending=True, stable=True).tolist():
        if values[index] <= 0 or len(found) == most:
            break
        row, column = divmod(index, columns)
        if all(max(abs(row - at // columns), abs(column - at % columns)) > radius for at in found):
            found.append(index)
    return found


@dataclass(frozen=True)
class HitSummary:
    """Findings of one method on some cases.

    Attributes:
        cases: how many.
        peak: share of the cases whose peak lies on the cause.
        energy: mean share of the energy on it.
        rank: mean rank.
        passes: forward passes of the whole network that a case took, those shared with other cases counted in part.
    """

    cases: int
    peak: float
    energy: float
    rank: float
    passes: float


def summarize(findings: Sequence[MapHit], passes: float) -> HitSummary:
    """The means of some findings; of none, NaN."""
    count = len(findings)

    def mean(values: list[float]) -> float:
        return sum(values) / count if count else float("nan")

    return HitSummary(
        count,
        mean([float(one.peak) for one in findings]),
        mean([one.energy for one in findings]),
        mean([float(one.rank) for one in findings]),
        passes,
    )
