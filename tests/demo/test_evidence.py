"""Matching of detections to labels, and measurement of heatmaps, in the demonstration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detcam.demo.evidence import match_labels, measure_heat
from detcam.detections import Detections, Source
from detcam.synthetic.harbor import BOAT_LABEL, BUOY_LABEL, draw_scene


def make_detections(boxes: list[list[float]], labels: list[int]) -> Detections:
    count = len(labels)
    return Detections(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.linspace(0.9, 0.6, count) if count else torch.zeros(0),
        (192, 256),
        (Source("proposal"),) * count,
    )


def test_labels_match_once_and_by_class() -> None:
    scene = draw_scene(28)
    boat = scene.of_kind("boat")[0].box_xyxy.tolist()
    shifted = [boat[0] + 2, boat[1], boat[2] + 2, boat[3]]
    aside = [boat[0] + (boat[2] - boat[0]) * 0.6, boat[1], boat[2] + (boat[2] - boat[0]) * 0.6, boat[3]]
    detections = make_detections([boat, shifted, boat, aside], [BOAT_LABEL, BOAT_LABEL, BUOY_LABEL, BOAT_LABEL])
    assert match_labels(detections, scene) == (True, False, False, False)
    assert match_labels(make_detections([aside, shifted], [BOAT_LABEL] * 2), scene) == (False, True)
    assert match_labels(make_detections([], []), scene) == ()


def test_measure_heat_of_a_known_heatmap() -> None:
    class StubExplanation:
        heatmaps = np.zeros((1, 40, 60), np.float32)
        reach = None

        def box_xyxy(self, index: int) -> tuple[float, float, float, float]:
            return (10.0, 10.0, 20.0, 20.0)

    wake = np.zeros((40, 60), bool)
    wake[15:18, 24:30] = True
    explanation = StubExplanation()
    explanation.heatmaps[0, 12, 12] = 0.5  # in the box
    explanation.heatmaps[0, 16, 26] = 0.9  # in the wake
    explanation.heatmaps[0, 16, 22] = 0.1  # outside the margin of the wake
    explanation.heatmaps[0, 35, 50] = 0.5  # elsewhere
    heat = measure_heat(explanation, 0, wake)  # type: ignore[arg-type]
    assert heat.box == pytest.approx(0.25)
    assert heat.wake == pytest.approx(0.5)
    assert heat.elsewhere == pytest.approx(0.25)
    assert heat.peak == "wake"
    explanation.heatmaps[0, 35, 50] = 1.0
    assert measure_heat(explanation, 0, wake).peak == "elsewhere"  # type: ignore[arg-type]
