"""Removal of proposed regions one by one."""

from __future__ import annotations

import torch

from detcam.auditing.verification.region_probes import RegionProbes, probe_regions
from tests.auditing.verification.driven import disc, drive

STRONG, WEAK, LARGE = disc(20, 20, 3), disc(20, 80, 3), disc(70, 50, 20)


def probes() -> RegionProbes:
    """Three regions with saliency 0.5, 1 and 0.1, in this order."""
    level = torch.zeros(100, 100)
    level[STRONG], level[WEAK], level[LARGE] = 1.0, 0.5, 0.1
    return RegionProbes(level[None], torch.stack([WEAK, STRONG, LARGE]), torch.zeros(100, 100))


def test_regions_that_end_the_error_come_in_the_order_of_their_density() -> None:
    (heatmap, ending), count = drive(
        probe_regions(probes(), 0.9, disc(70, 50, 20)), lambda region, fill: not bool((region & LARGE).any())
    )
    assert count == 3 and [bool(each.region[20, 20]) for each in ending] == [True, False]
    assert all(each.ends and len(each.trials) == 1 for each in ending)
    assert bool((ending[0].region & STRONG == STRONG).all()) and int(ending[0].region.sum()) > int(STRONG.sum())
    assert bool((heatmap[STRONG] > 0).any()) and not bool(heatmap[LARGE].any())


def test_pairs_are_removed_if_no_region_ends_the_error_alone() -> None:
    (_, ending), count = drive(
        probe_regions(probes(), 0.9, disc(70, 50, 20)),
        lambda region, fill: bool(region[20, 20]) and bool(region[20, 80]),
    )
    assert count == 3 + 3 and bool(ending[0].region[20, 20] & ending[0].region[20, 80])


def test_the_fewest_of_many_regions_are_found_and_regions_in_the_box_are_left_out() -> None:
    """Three of eight regions end the error together; with the one in the box it does not end."""
    discs = [disc(10, 10 + 10 * number, 3) for number in range(8)]
    inside = disc(70, 50, 3)
    level = torch.full((100, 100), 0.1)
    causes = torch.stack([discs[1], discs[4], discs[6]])
    box = disc(70, 50, 10)
    (heatmap, ending), count = drive(
        probe_regions(RegionProbes(level[None], torch.stack([inside, *discs]), torch.zeros(100, 100)), 0.9, box),
        lambda region, fill: all(bool((region & each).any()) for each in causes) and not bool((region & box).any()),
    )
    found = ending[0]
    assert all(int(each.region.sum()) > int(found.region.sum()) for each in ending[1:]), "larger sets follow"
    assert [bool((found.region & each).any()) for each in discs] == [number in (1, 4, 6) for number in range(8)]
    assert count <= 5 + 1 + 3 * 3, "one by one, all together, and a bisection for each"
    assert all(bool((heatmap[each] > 0).any()) for each in causes) and not bool(heatmap[discs[0]].any())


def test_only_denser_and_smaller_regions_are_better_than_a_region() -> None:
    better, others = probes().split(disc(70, 50, 10))
    assert len(better.regions) == 2 and len(others) == 1, "the two small ones are denser"
    better, others = probes().split(STRONG)
    assert len(better.regions) == 0 and len(others) == 3
    (heatmap, ending), count = drive(probe_regions(better, 0.9, disc(70, 50, 20)), lambda region, fill: True)
    assert (count, ending) == (0, []) and not bool(heatmap.any())


def test_causes_that_replace_one_another_outside_the_box_need_not_be_among_the_regions() -> None:
    """The regions lie on the object; a map has its maxima on the object, and smaller ones at the causes."""
    box, hull, first, second = disc(50, 50, 12), disc(50, 50, 6), disc(50, 20, 3), disc(50, 80, 3)
    sensitivity = 5.0 * hull + 2.0 * first + second
    (_, ending), _ = drive(
        probe_regions(RegionProbes(hull[None].float(), hull[None], sensitivity), 0.9, box),
        lambda region, fill: bool((region & first).any()) and bool((region & second).any()),
    )
    found = ending[0].region
    assert bool((found & first == first).all() & (found & second == second).all()) and not bool((found & box).any())


def test_spots_outside_the_box_may_overlap_the_box_and_the_regions_a_little() -> None:
    """Of four spots one is clear, one touches a region, one lies on the region in half, and one touches the box."""
    clear, touching, half, cut = disc(80, 80, 3), disc(20, 20, 3), disc(20, 80, 3), disc(80, 20, 3)
    region, box = torch.zeros(2, 100, 100, dtype=torch.bool)
    region[:40, :18] = region[:40, 80:] = True
    box[60:, :18] = True
    sensitivity = 4.0 * clear + 3.0 * touching + 2.0 * half + cut
    found = RegionProbes(sensitivity[None], region[None], sensitivity).spots_outside(box)
    centers = (80, 80), (20, 20), (20, 80), (80, 20)
    at_centers = [[bool(spot[row, column]) for row, column in centers] for spot in found]
    assert [row.index(True) for row in at_centers if any(row)] == [0, 1, 3]
    assert bool((found[1] & region).any()) and not any(bool((spot & box).any()) for spot in found)
