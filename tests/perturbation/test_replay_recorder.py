"""Replayed passes run the modules downstream of a layer, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detcam.perturbation.replay_recorder import ReplayRecorder


class Counting(nn.Module):
    """Adds 1, and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x + 1


class Shared(nn.Module):
    """A first module, a middle one that runs three times, and a last one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = Counting(), Counting(), Counting()

    def forward(self, x: Tensor) -> Tensor:
        once = self.middle(self.first(x))
        twice = self.middle(once)
        return self.last(10 * self.middle(twice) + twice)  # type: ignore[no-any-return]


@pytest.mark.parametrize("forgets", [False, True])
def test_passes_of_equally_many_variants_do_not_share_what_they_used(forgets: bool) -> None:
    model = Shared()
    recorder = ReplayRecorder(model, model.middle, nth=1)
    with torch.no_grad(), recorder.record():
        model(torch.zeros(1, 2))
    assert not forgets or recorder.forget_outputs()
    for number, count in enumerate([3, 3, 2, 3], 1):
        variants = torch.arange(count * 2.0).reshape(count, 2) * number
        with torch.no_grad(), recorder.replay(variants, count):
            found = model(torch.zeros(count, 2))
        torch.testing.assert_close(found, 10 * (variants + 1) + variants + 1)
        assert (model.first.passes, model.middle.passes, model.last.passes) == (1, 3 + number, 1 + number)
