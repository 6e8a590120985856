"""Coarse-to-fine removal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detcam.auditing.verification.removal_map import MAX_REMOVALS, removal_map
from tests.auditing.verification.driven import disc, drive


@pytest.mark.parametrize("keeps_box", [False, True])
def test_coarse_to_fine_removal_finds_a_cause_without_gradients(keeps_box: bool) -> None:
    cause, box = disc(70, 25, 5), disc(40, 60, 15)
    segments = (torch.arange(100)[:, None] // 7 * 20 + torch.arange(100)[None] // 7).long()
    touched: list[bool] = []

    def ends(each: Tensor, fill: int) -> bool:
        touched.append(bool((each & box).any()))
        return float((each & cause).sum()) > 0.3 * float(cause.sum())

    heatmap, count = drive(removal_map(segments, box, 0.9, keeps_box=keeps_box), ends)
    assert any(touched) is not keeps_box
    row, column = divmod(int(heatmap.argmax()), 100)
    assert bool(disc(70, 25, 10)[row, column]) and count <= MAX_REMOVALS
    assert float(heatmap[cause].mean()) > 10 * float(heatmap[~disc(70, 25, 30)].mean())


def test_drops_that_do_not_count_are_not_searched() -> None:
    segments = (torch.arange(100)[:, None] // 7 * 20 + torch.arange(100)[None] // 7).long()
    removal = removal_map(segments, disc(40, 60, 15), 0.9, lambda trial: trial.outcome == "unchanged")
    heatmap, count = drive(removal, lambda each, fill: bool(each[70, 25]))
    assert not bool(heatmap.any()) and count <= 6
