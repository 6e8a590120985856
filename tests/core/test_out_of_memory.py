"""Batches that do not fit into memory are halved, in predictions and in maps of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from detcam import RISE, AblationCAM, GradCAM, ScoreCAM, adapt
from detcam.cam import BaseCAM
from detcam.utils.memory import MemoryLimitWarning
from tests.helpers import TinyCNN


class SmallMemory(TinyCNN):
    """Takes two images at a time."""

    limit = 100

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        if len(x) > self.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        x = self.relu2(self.conv2(x))
        if len(x) > self.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return self.head((x * x).mean((2, 3)))


IMAGES = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(5)]


@pytest.mark.parametrize("method", [GradCAM, ScoreCAM, AblationCAM, RISE], ids=lambda method: method.name)
def test_maps_are_those_of_enough_memory(method: type[BaseCAM]) -> None:
    model = SmallMemory()
    adapter = adapt(model, image_size=32)
    expected = method(adapter)(IMAGES)
    model.limit = 2
    with pytest.warns(MemoryLimitWarning, match="batch_size"):
        found = method(adapter)(IMAGES)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    model.limit = 0
    with pytest.raises(RuntimeError, match="allocate memory"):
        method(adapter)(IMAGES)


def test_predictions_are_those_of_enough_memory() -> None:
    model = SmallMemory()
    adapter = adapt(model, image_size=32)
    expected = adapter.predict(IMAGES)
    model.limit = 2
    with pytest.warns(MemoryLimitWarning):
        found = adapter.predict(IMAGES)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores)
