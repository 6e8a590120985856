"""Segments and region proposals."""

from __future__ import annotations

import torch

from detcam.methods.common.region_proposals import MAX_REGION_FRACTION, color_segments, propose_regions
from detcam.synthetic.shortcut_scenarios import FIRST_SCENARIOS, SHORTCUTS
from detcam.synthetic.shortcuts import draw_shortcut_scene


def test_an_object_of_one_color_is_one_segment() -> None:
    image = torch.zeros(3, 60, 80)
    image[0, 10:30, 10:30] = 1
    image[1, 30:50, 50:70] = 1
    labels = color_segments(image)
    assert labels.shape == (60, 80) and labels.dtype == torch.int64
    own = [int(labels[pixel]) for pixel in ((20, 20), (40, 60), (5, 40))]
    assert len(set(own)) == 3
    assert bool((labels[12:28, 12:28] == own[0]).all()) and bool((labels[32:48, 52:68] == own[1]).all())
    assert int((labels == own[0]).sum()) < 24 * 24 and int((labels == own[2]).sum()) > 3000
    assert torch.equal(color_segments(image * 7 - 3), labels), "the range does not matter"


def test_planted_objects_are_segments() -> None:
    for scenario in FIRST_SCENARIOS:
        (kind,) = SHORTCUTS[scenario].cues
        covered, own = [], []
        for seed in range(6):
            scene = draw_shortcut_scene(scenario, seed, "test")
            labels = color_segments(torch.from_numpy(scene.image).permute(2, 0, 1).float())
            for thing in scene.of_kind(kind):
                mask = torch.from_numpy(thing.mask)
                segment = labels == labels[mask].mode().values
                covered.append(float((segment & mask).sum() / mask.sum()))
                own.append(float((segment & mask).sum() / segment.sum()))
        # A cart's wheels and a lamp's post may be segments of their own; what a pond surrounds must not be part of it.
        assert sum(covered) / len(covered) > (0.6 if kind in ("cart", "lamp") else 0.8), kind
        assert sum(own) / len(own) > (0.95 if kind == "pond" else 0.7), kind


def test_large_images_are_segmented_at_a_smaller_size() -> None:
    image = torch.zeros(3, 600, 800)
    image[:, 100:300, 100:300] = 1
    labels = color_segments(image)
    assert labels.shape == (600, 800)
    assert bool((labels[115:285, 115:285] == labels[200, 200]).all())
    assert int(labels[200, 200]) != int(labels[500, 700])


def test_candidates_in_order() -> None:
    labels = torch.zeros(40, 60, dtype=torch.int64)
    labels[5:15, 5:15], labels[25:35, 45:55], labels[:3] = 1, 2, 3
    one, other = torch.zeros(40, 60), torch.zeros(40, 60)
    one[5:15, 5:15], other[5:15, 5:15] = 0.4, 0.4
    one[25:35, 45:55], other[25:35, 45:55] = 1.0, 0.1
    found = propose_regions(torch.stack([one, other]), labels, 10)
    assert torch.equal(found[0], labels == 1), "the product is greatest where both are hot"
    assert any(torch.equal(region, labels == 2) for region in found)
    assert all(0 < float(region.float().mean()) <= MAX_REGION_FRACTION for region in found)
    for index, region in enumerate(found):
        for before in found[:index]:
            assert int((region & before).sum()) <= 0.6 * int((region | before).sum())
    assert torch.equal(propose_regions(torch.stack([one, other]), labels, 2), found[:2])
    assert propose_regions(torch.zeros(2, 40, 60), labels, 3).shape == (0, 40, 60)
