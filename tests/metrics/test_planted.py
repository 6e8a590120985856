"""Planted truth: the demonstration's detector sees boats where wakes are, and every faithfulness metric knows it.

The wake that made a false boat is certified by drawing the scene again without it. Its mask must score best, its
inverse worst, and maps of noise between, near chance on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters import adapt
from detcam.adapters.base import Adapter
from detcam.demo.model import load_demo_detector
from detcam.demo.train import certify_wake
from detcam.metrics import (
    CamMultImageConfidenceChange,
    Deletion,
    DestroyingRegion,
    DropInConfidence,
    Insertion,
    InsertionMinusDeletion,
    Metric,
    RemoveLeastRelevantFirstAverage,
    RemoveMostRelevantFirstAverage,
    ROADCombined,
    ROADLeastRelevantFirst,
    ROADMostRelevantFirst,
    SufficientRegion,
)
from detcam.synthetic.harbor import draw_scene

CASES = ((28, "wake-1"), (3, "wake-0"), (31, "wake-0"))
RANDOM = 4


@dataclass(frozen=True)
class Planted:
    """Images, the false boat of each, and its maps: the true one, the inverse, the filled box, noise."""

    adapter: Adapter
    images: list[np.ndarray]
    targets: list[list[Any]]
    heatmaps: list[Tensor]

    def values(self, metric: Metric) -> Tensor:
        """(cases, maps), turned so that more is better."""
        found = metric.measure(self.adapter, self.images, self.targets, self.heatmaps).view(len(self.images), -1)
        return found if metric.higher_is_better else -found


@pytest.fixture(scope="module")
def planted() -> Planted:
    model = load_demo_detector()
    adapter = adapt(model)
    rng = np.random.default_rng(0)
    images, targets, heatmaps = [], [], []
    for seed, wake in CASES:
        scene = draw_scene(seed)
        assert certify_wake(model, scene, wake).certified
        found = adapter.predict(scene.image)[0]
        ghost = torch.from_numpy(scene.ghost_boxes_xyxy[wake])[None]
        index = int(box_iou(ghost, found.boxes_xyxy)[0].argmax())
        truth = torch.from_numpy(scene.object(wake).mask).float()
        box = torch.zeros_like(truth)
        x1, y1, x2, y2 = found.boxes_xyxy[index].round().int().tolist()
        box[y1:y2, x1:x2] = 1
        noise = torch.from_numpy(np.stack([gaussian_filter(rng.random(truth.shape), 8) for _ in range(RANDOM)])).float()
        noise = (noise - noise.amin((1, 2), keepdim=True)) / (noise.amax((1, 2)) - noise.amin((1, 2)))[:, None, None]
        maps = torch.cat([torch.stack([truth, 1 - truth, box]), noise])
        images.append(scene.image)
        targets.append([adapter.targets_of(found)[index]] * len(maps))
        heatmaps.append(maps)
    return Planted(adapter, images, targets, heatmaps)


@pytest.mark.parametrize(
    "metric",
    [
        Deletion(steps=10),
        Insertion(steps=10),
        InsertionMinusDeletion(steps=10, fill="mean"),
        InsertionMinusDeletion(steps=10, protocol="vps"),
        SufficientRegion(steps=8),
        DestroyingRegion(steps=8),
        ROADCombined([50, 90]),
        ROADMostRelevantFirst(95),
        ROADLeastRelevantFirst(5),
        RemoveMostRelevantFirstAverage([60, 95]),
        RemoveLeastRelevantFirstAverage([5, 40]),
        CamMultImageConfidenceChange(),
        DropInConfidence(),
    ],
    ids=lambda metric: metric.name,
)
def test_true_evidence_scores_best_and_its_inverse_worst(metric: Metric, planted: Planted) -> None:
    values = planted.values(metric)
    assert not values.isnan().any()
    true, inverse, others = values[:, :1], values[:, 1:2], values[:, 2:]
    assert (true > others + 0.01).all()
    assert (inverse <= others + 0.05).all()
    assert (true > inverse + 0.5).all()


@pytest.mark.parametrize("metric", [InsertionMinusDeletion(steps=10), ROADCombined([25, 50, 75])])
def test_noise_is_near_chance(metric: Metric, planted: Planted) -> None:
    values = planted.values(metric)
    chance = float(values[:, 3:].mean())
    assert abs(chance) < 0.2 * float(values[:, 0].mean())
