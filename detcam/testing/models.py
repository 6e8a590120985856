"""Seeded networks that are small enough to check a contract in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detcam.adapters import adapt, detector, segmenter
from detcam.adapters.base import Adapter

CLASS_COUNT = 3


class _Classifier(nn.Module):
    """Two convolutions, the mean of the squared features, a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).square().mean((2, 3)))


def tiny_classifier(seed: int = 0) -> Adapter:
    """Return the adapter of a convolutional classifier with three classes and random weights.

    Args:
        seed: seed of the weights.

    Returns:
        The adapter.

    Example:
        >>> from detcam.testing import tiny_classifier
        >>> tiny_classifier().task
        'classification'
    """
    return adapt(_seeded(_Classifier(CLASS_COUNT), seed), image_size=64)


def tiny_detector(seed: int = 0) -> Adapter:
    """Return the adapter of a one-stage detector with two classes and random weights: one box per cell of 16 pixels.

    Args:
        seed: seed of the weights.

    Returns:
        The adapter.

    Example:
        >>> from detcam.testing import tiny_detector
        >>> tiny_detector().task
        'detection'
    """
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 3, 4, 1))

    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        columns, rows = torch.arange(raw.shape[3]), torch.arange(raw.shape[2])
        corners = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).reshape(1, -1, 2) * 16.0
        return torch.cat([corners, corners + 16], -1).expand(len(raw), -1, -1), raw.sigmoid().flatten(2).mT

    return detector(_seeded(model, seed), decode, image_size=96, max_detections=3)


def tiny_segmenter(seed: int = 0) -> Adapter:
    """Return the adapter of a segmentation network with three classes and random weights.

    Args:
        seed: seed of the weights.

    Returns:
        The adapter.

    Example:
        >>> from detcam.testing import tiny_segmenter
        >>> tiny_segmenter().task
        'segmentation'
    """
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, CLASS_COUNT, 3, 2, 1))
    return segmenter(_seeded(model, seed), image_size=64)


def random_images(seed: int = 1) -> list[Tensor]:
    """Two images (3, H, W) float32 in [0, 1] of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 96, 128, generator=generator), torch.rand(3, 120, 80, generator=generator)]


def default_adapters(tasks: frozenset[str]) -> list[Adapter]:
    """A tiny adapter for each of the given tasks that has one."""
    makers = {"classification": tiny_classifier, "detection": tiny_detector, "segmentation": tiny_segmenter}
    return [maker() for task, maker in makers.items() if task in tasks]


def _seeded(model: nn.Module, seed: int) -> nn.Module:
    """The model in eval mode with weights that depend on the seed alone; torch's own generator is not touched."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5
        else:
            parameter.data = torch.rand(parameter.shape, generator=generator) * 0.2 + (0.9 if parameter.ndim else 0)
    return model.eval()
