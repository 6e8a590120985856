"""Coarse-to-fine removal: a map from groups of segments whose removal lowers a detection's score."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detcam.auditing.case import Trial
from detcam.auditing.verification.interventions import Investigation, Removal
from detcam.auditing.verification.verdict import remaining_score

MAX_REMOVALS = 28
"""Maximum number of groups that are removed."""
MAX_OUTSIDE_REMOVALS = 14
"""The same if nothing in the box is removed."""
MIN_DROP = 0.05
"""Minimum drop, relative to the score, of a group that is split further."""
MAX_GROUP_FRACTION = 0.3
"""Maximum fraction of the image that a group covers."""
MIN_GROUP_FRACTION = 0.0005
"""Minimum fraction of the image that a group of a split covers."""


@dataclass(frozen=True)
class _Cells:
    """Cells of an image: segments, cut by a grid, with areas and centers.

    Attributes:
        labels: (h, w) int64, cell of each pixel.
        areas: (K,) pixels.
        centers: (K, 2) row and column.
    """

    labels: Tensor
    areas: Tensor
    centers: Tensor


def removal_map(
    segments: Tensor,
    box: Tensor,
    score: float,
    counts: Callable[[Trial], bool] = lambda trial: True,
    *,
    keeps_box: bool = False,
) -> Investigation[Tensor]:
    """Build a map by removing groups of segments, and splitting the groups that cost the most.

    The first groups are the box and the four quarters of the rest. The group with the largest drop is split in two
    along its longer side, by segments, and both halves are removed; and so on. A pixel's value is the sum over its
    groups of the drop divided by the square root of the group's area.

    Args:
        segments: (h, w) int64, labels of segments.
        box: (h, w) bool, the predicted box.
        score: the detection's score, in [0, 1].
        counts: whether the drop of a trial counts; of others it is 0.
        keeps_box: whether nothing in the box is removed.

    Returns:
        (h, w) float32, >= 0.
    """
    cells = _cells(segments, box)
    heatmap = torch.zeros(segments.shape)
    queue: list[tuple[float, int, Tensor]] = []
    pending = _first_groups(cells, box, keeps_box)
    count, limit = 0, MAX_OUTSIDE_REMOVALS if keeps_box else MAX_REMOVALS
    while pending and count < limit:
        pending = pending[: limit - count]
        regions = [group[cells.labels] for group in pending]
        trials = yield [Removal("without part", region) for region in regions]
        for group, region, trial in zip(pending, regions, trials, strict=True):
            count += 1
            drop = max(score - remaining_score(trial), 0.0) / max(score, 1e-9) if counts(trial) else 0.0
            area = float(region.float().mean())
            heatmap += region * drop / max(area, 1e-9) ** 0.5
            if drop >= MIN_DROP and int(group.sum()) > 1 and area > 2 * MIN_GROUP_FRACTION:
                heapq.heappush(queue, (-drop / area**0.25, count, group))
        pending = _split(heapq.heappop(queue)[2], cells) if queue else []
    return heatmap


def quarters_outside(segments: Tensor, box: Tensor) -> list[Tensor]:
    """The first groups of `removal_map` if nothing in the box is removed: regions (h, w) bool that cover the rest."""
    cells = _cells(segments, box)
    return [group[cells.labels] for group in _first_groups(cells, box, keeps_box=True)]


def _cells(segments: Tensor, box: Tensor) -> _Cells:
    """Cut segments by the box, and by a grid of an eighth of the box's and the image's sides."""
    height, width = segments.shape
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows, inside_columns = torch.nonzero(box.any(1))[:, 0], torch.nonzero(box.any(0))[:, 0]
    box_step = max(len(inside_rows), len(inside_columns), 8) / 8
    step = max(height, width) / 8
    coarse = (rows / step).long()[:, None] * 8 + (columns / step).long()
    fine = (rows / box_step).long()[:, None] * 4096 + (columns / box_step).long()
    key = torch.where(box, fine * 2 + 1, coarse * 2)
    combined = segments * (int(key.max()) + 1) + key
    labels = torch.unique(combined, return_inverse=True)[1].view(height, width)
    count = int(labels.max()) + 1
    flat = labels.flatten()
    areas = torch.bincount(flat, minlength=count).float()
    row_sums = torch.bincount(flat, rows[:, None].expand(height, width).flatten().double(), count)
    column_sums = torch.bincount(flat, columns[None].expand(height, width).flatten().double(), count)
    centers = torch.stack([row_sums, column_sums], 1) / areas[:, None]
    return _Cells(labels, areas, centers)


def _first_groups(cells: _Cells, box: Tensor, keeps_box: bool) -> list[Tensor]:
    """The cells of the box, unless it is kept, and of the four quarters of the rest, as (K,) bool."""
    count = len(cells.areas)
    inside = torch.zeros(count, dtype=torch.bool)
    inside[cells.labels[box]] = True
    groups = [] if keeps_box else [inside]
    halves = _split(~inside, cells)
    groups += [quarter for half in halves for quarter in _split(half, cells)]
    limit = MAX_GROUP_FRACTION * float(cells.areas.sum())
    small: list[Tensor] = []
    for group in groups:
        small += [group] if float(cells.areas[group].sum()) <= limit else _split(group, cells)
    return [group for group in small if bool(group.any())]


def _split(group: Tensor, cells: _Cells) -> list[Tensor]:
    """Split a group (K,) bool in halves of equal area along the longer side of its extent."""
    members = torch.nonzero(group)[:, 0]
    if len(members) < 2:
        return [group] if len(members) else []
    centers = cells.centers[members]
    axis = int((centers.amax(0) - centers.amin(0)).argmax())
    order = members[centers[:, axis].argsort(stable=True)]
    areas = cells.areas[order].cumsum(0)
    cut = min(max(int((areas <= areas[-1] / 2).sum()), 1), len(order) - 1)
    return [_group(order[:cut], len(group)), _group(order[cut:], len(group))]


def _group(members: Tensor | Sequence[int], count: int) -> Tensor:
    group = torch.zeros(count, dtype=torch.bool)
    group[members] = True
    return group
