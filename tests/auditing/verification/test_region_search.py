"""The region-size search."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.auditing.verification.region_search import RegionSearch
from tests.auditing.verification.driven import disc, drive


def test_the_smallest_region_of_any_map_is_found() -> None:
    """Removing more does not remove more: the misleading map ends the error only at one large size."""
    cause = disc(30, 30, 3)
    right, misleading = torch.zeros(100, 100), torch.zeros(100, 100)
    right[disc(30, 30, 12)] = torch.linspace(1, 0.5, int(disc(30, 30, 12).sum()))
    right += cause
    misleading[60:90, 60:90] = 1
    search = RegionSearch([misleading, right], disc(50, 50, 20), fill_count=2)

    def ends(region: Tensor, fill: int) -> bool:
        covers = float((region & cause).sum()) >= 0.9 * float(cause.sum())
        return covers or int((region & ~cause).sum()) == 900  # with nothing but the misleading map at 6.4 %

    found, _ = drive(search.next_region(), ends)
    assert found is not None and found.map_index == 1 and found.ends and len(found.trials) == 2
    assert int(found.region.sum()) == 40, "0.4 % of the image; 0.2 % does not cover the cause"
    following, _ = drive(search.next_region(), ends)
    assert following is not None and int(following.region.sum()) > 40, "the next one is not smaller"


def test_a_region_must_end_the_error_with_every_fill() -> None:
    heat = torch.zeros(100, 100)
    heat[disc(30, 30, 20)] = torch.linspace(1, 0.5, int(disc(30, 30, 20).sum()))
    search = RegionSearch([heat], disc(50, 50, 20), fill_count=2)
    found, _ = drive(search.next_region(), lambda region, fill: int(region.sum()) >= (40, 160)[fill])
    assert found is not None and int(found.region.sum()) == 160
    never = RegionSearch([heat], disc(50, 50, 20), fill_count=2)
    nothing, count = drive(never.next_region(), lambda region, fill: False)
    attempt = never.strongest_attempt()
    assert nothing is None and attempt is not None and not attempt.ends and count <= 10
    empty = RegionSearch([torch.zeros(100, 100)], disc(50, 50, 20), fill_count=2)
    assert drive(empty.next_region(), lambda region, fill: True) == (None, 0)


def test_few_maps_are_tried_at_a_smaller_size() -> None:
    maps = []
    for column in (20, 40, 60, 80):
        maps.append(disc(30, column, 8) * torch.linspace(1, 0.5, 10000).view(100, 100))
    search = RegionSearch(maps, disc(50, 50, 8), fill_count=1)  # starts at 0.8 % of the image
    found, count = drive(search.next_region(), lambda region, fill: int(region.sum()) >= 80)
    assert found is not None and int(found.region.sum()) == 80 and found.map_index == 0
    assert count == 1 + 2, "the first map at its size, and two maps at half of it"
