"""The container of detections: its `repr`."""

from __future__ import annotations

import pytest
import torch

from detcam import Detections, Source


def many(count: int) -> Detections:
    boxes = torch.arange(count)[:, None] + torch.tensor([0.0, 1.0, 10.4, 20.6])
    labels, scores = torch.arange(count) % 2, 0.9 - torch.arange(count) / 1000
    return Detections(boxes, labels, scores, (48, 64), (Source("cell"),) * count, names={0: "cat"})


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "Detections(0 in an image of 64 x 48 pixels)"),
        (1, "Detections(1 in an image of 64 x 48 pixels: cat 0.90 at (0, 1, 10, 21))"),
        (
            300,
            "Detections(300 in an image of 64 x 48 pixels: cat 0.90 at (0, 1, 10, 21), class 1 0.90 at "
            "(1, 2, 11, 22), cat 0.90 at (2, 3, 12, 23), and 297 more)",
        ),
    ],
)
def test_repr_shows_the_first_and_the_count(count: int, expected: str) -> None:
    assert repr(many(count)) == expected
