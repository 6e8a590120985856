"""The light around a box: what counts as a detail, and the regions that are evened."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from detcam.auditing.verification.surroundings import propose_light


def regions_of(image: Tensor, box: tuple[slice, slice]) -> list[Tensor]:
    region = torch.zeros(image.shape[1:], dtype=torch.bool)
    region[box] = True
    return propose_light(SimpleNamespace(box=region), image)[1]  # type: ignore[arg-type]


@pytest.mark.parametrize("color", [0.0, 0.02, 1.0])
def test_no_pixel_inside_a_large_object_counts_as_light(color: float) -> None:
    """The blur of the ground does not reach its middle, whatever its color."""
    ground = 0.5 + 0.02 * torch.rand(3, 120, 160, generator=torch.Generator().manual_seed(0))
    box = slice(6, 114), slice(6, 154)
    ground[:, box[0], box[1]] = color
    for region in regions_of(ground, box):
        assert bool(region.any()) and not bool(region[box].any())


def test_the_narrow_region_is_a_part_of_the_wide_one() -> None:
    """The ground is larger near the box, the sky farther away."""
    image = 0.2 + 0.01 * torch.rand(3, 120, 160, generator=torch.Generator().manual_seed(0))
    image[:, :40] += 0.6
    wide, narrow = regions_of(image, (slice(50, 100), slice(60, 90)))
    assert bool(narrow.any()) and not bool((narrow & ~wide).any())
