"""Metrics of a heatmap against a certified cause: peak, energy, rank and parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_RANK = 10
"""Number of local maxima that are searched for the cause."""
MIN_PEAK_DISTANCE = 0.08
"""Smallest distance of two local maxima, as a share of the image's longer side."""


@dataclass(frozen=True)
class MapHit:
    """The metrics of one heatmap against one cause.

    Attributes:
        peak: whether the maximum lies on the cause.
        energy: share of the heatmap's sum on the cause, in [0, 1].
        rank: rank of the first local maximum on the cause, from 1; MAX_RANK + 1 if there is none.
        parts: whether each part of the cause has one of the first local maxima, as many as there are parts.
    """

    peak: bool
    energy: float
    rank: int
    parts: bool


def measure_hit(heatmap: Tensor, *parts: Tensor) -> MapHit:
    """Measure a heatmap against the cause.

    Args:
        heatmap: (H, W), non-negative.
        *parts: masks (H, W) bool of the parts of the cause, at least one.
    """
    total = float(heatmap.sum())
    if total <= 0:
        return MapHit(False, 0.0, MAX_RANK + 1, False)
    cause = torch.stack(parts).any(0)
    maxima = local_maxima(heatmap, MAX_RANK)
    on_cause = [bool(cause.flatten()[index]) for index in maxima]
    rank = on_cause.index(True) + 1 if any(on_cause) else MAX_RANK + 1
    on_parts = all(bool(part.flatten()[maxima[: len(parts)]].any()) for part in parts)
    return MapHit(rank == 1, float(heatmap[cause].sum()) / total, rank, on_parts)


def local_maxima(heatmap: Tensor, max_count: int) -> list[int]:
    """Find the local maxima of a heatmap, greatest first, with a minimum distance; the first is the peak.

    Of several pixels with the greatest value, such as those of an occluding window, the one nearest to their mean
    position is the peak.

    Args:
        heatmap: (H, W), non-negative.
        max_count: maximum number of maxima; zeros are not maxima.

    Returns:
        Indices into the flattened heatmap.
    """
    radius = max(1, round(MIN_PEAK_DISTANCE * max(heatmap.shape)))
    neighborhood = F.max_pool2d(heatmap[None, None].float(), 2 * radius + 1, 1, radius)[0, 0]
    values = torch.where((heatmap >= neighborhood) & (heatmap > 0), heatmap, torch.zeros(())).flatten()
    columns = heatmap.shape[1]
    if not bool((values > 0).any()):
        return []
    ties = torch.nonzero(values == values.max())[:, 0]
    positions = torch.stack([ties // columns, ties % columns], 1).float()
    maxima = [int(ties[(positions - positions.mean(0)).square().sum(1).argmin()])]
    for index in values.argsort(descending=True, stable=True).tolist():
        if values[index] <= 0 or len(maxima) == max_count:
            break
        row, column = divmod(index, columns)
        distances = [max(abs(row - other // columns), abs(column - other % columns)) for other in maxima]
        if all(distance > radius for distance in distances):
            maxima.append(index)
    return maxima


@dataclass(frozen=True)
class HitSummary:
    """The mean metrics of a method over cases.

    Attributes:
        cases: number of cases.
        peak: share of the cases with the peak on the cause.
        energy: mean share of the energy on the cause.
        rank: mean rank.
        parts: share of the cases with a maximum on each part of the cause.
        passes: computing work per case, in units of one prediction; work shared by the cases of an image is divided.
    """

    cases: int
    peak: float
    energy: float
    rank: float
    parts: float
    passes: float


def summarize_hits(hits: Sequence[MapHit], passes: float) -> HitSummary:
    """Average metrics over cases; NaN without cases."""
    return HitSummary(
        len(hits),
        mean_or_nan([hit.peak for hit in hits]),
        mean_or_nan([hit.energy for hit in hits]),
        mean_or_nan([hit.rank for hit in hits]),
        mean_or_nan([hit.parts for hit in hits]),
        passes,
    )


def mean_or_nan(values: Sequence[float]) -> float:
    """The mean of numbers; NaN without numbers."""
    return sum(values) / len(values) if values else float("nan")
