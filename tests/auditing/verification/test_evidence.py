"""Regions, their location, and controls of the same size."""

from __future__ import annotations

import pytest
import torch

from detcam.auditing.verification.evidence import (
    StrongestPixels,
    box_region,
    location_regions,
    location_shares,
    move_region,
    region_beside,
)


def test_strongest_pixels_cover_the_given_fractions() -> None:
    heat = torch.zeros(40, 50)
    heat[10:20, 30:40] = 1
    pixels = StrongestPixels(heat, 0.5)
    small, large, most = (pixels.region(fraction) for fraction in (0.01, 0.05, 0.5))
    assert int(small.sum()) == 20 and int(large.sum()) == 100
    assert bool(heat[small].all()) and float(heat[large].mean()) > 0.9
    assert 100 < int(most.sum()) < 14 * 14, "no more than the map points to, smoothed by less than half a pixel"
    assert not StrongestPixels(torch.zeros(40, 50), 0.1).region(0.1).any(), "a zero map has no evidence"


def test_location_regions_partition_the_image() -> None:
    truth = box_region((20, 0, 40, 10), (40, 60))
    other = box_region((50, 30, 60, 40), (40, 60))
    found = location_regions((40, 60), (10, 0, 30, 20), truth, other)
    total = torch.stack(list(found.values())).sum(0)
    assert bool((total == 1).all())
    # By hand: the truth has 20 x 10; the box 20 x 20 less the 10 x 10 that the truth has of it; the ring reaches 10
    # pixels further and is cut by the image, 40 x 30 less 400 less the 10 x 10 of the truth beyond the box.
    sizes = {name: int(region.sum()) for name, region in found.items()}
    assert sizes == {
        "ground truth": 200, "predicted box": 300, "same class": 100, "ring": 700, "scene": 2400 - 1300
    }  # fmt: skip
    strength = torch.zeros(40, 60)
    strength[0, 0], strength[5, 15], strength[35, 55] = 1.0, 2.0, 5.0
    assert location_shares(strength, found) == pytest.approx(
        {"predicted box": 0.25, "ground truth": 0.0, "same class": 0.625, "ring": 0.125, "scene": 0.0}
    )


def test_controls_have_the_size_of_the_evidence_and_do_not_overlap_it() -> None:
    region = torch.zeros(40, 60, dtype=torch.bool)
    region[5:12, 8:20] = True
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        moved = move_region(region, generator)
        assert moved is not None and int(moved.sum()) == int(region.sum())
        assert int((moved & region).sum()) <= 0.1 * int(region.sum())
    box = box_region((0, 0, 30, 20), (40, 60))
    beside = region_beside(region, box, generator)
    assert beside is not None and int(beside.sum()) == int(region.sum())
    assert not (beside & region).any() and not (beside & ~box).any()
    assert move_region(torch.ones(4, 4, dtype=torch.bool), generator) is None
    assert region_beside(region, box_region((8, 5, 20, 13), (40, 60)), generator) is None, "no free pixels"
