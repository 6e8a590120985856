"""A small detector and a classifier that the tests of explanations share."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_mobilenet_v3_large_320_fpn

from detcam import adapt
from detcam.adapters import Adapter

NAMES = ["cat", "dog", "bus"]


class Classifier(nn.Module):
    """A convolution and the mean of each channel: class c is channel c."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, classes, 5, stride=2, padding=2)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).mean((2, 3))


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=160
    )
    return model.eval()


@pytest.fixture
def adapter(detector: FasterRCNN) -> Adapter:
    return adapt(detector, names=dict(enumerate(NAMES, 1)))


@pytest.fixture
def classifier() -> Adapter:
    torch.manual_seed(0)
    return adapt(Classifier(), target_layers="features", image_size=32, names=NAMES)
