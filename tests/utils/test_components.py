"""Connected components of masks."""

from __future__ import annotations

import numpy as np

from detcam.utils.components import components, overlap_exceeds


def test_components_are_found_with_their_windows_and_an_empty_mask_has_none() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 1:3] = mask[4, 5:8] = mask[3, 3] = True
    found = list(components(mask))
    assert [(window, area) for window, _, area in found] == [
        ((slice(1, 4), slice(1, 4)), 5), ((slice(4, 5), slice(5, 8)), 3)
    ]  # fmt: skip
    assert found[0][1].tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert list(components(np.zeros((6, 8), bool))) == []


def test_overlap_of_masks() -> None:
    first, second = np.zeros((4, 8), bool), np.zeros((4, 8), bool)
    assert not overlap_exceeds(first, second, 0.0)
    first[:2], second[1:3] = True, True  # 8 of 24 pixels
    assert overlap_exceeds(first, second, 0.33) and not overlap_exceeds(first, second, 1 / 3)
