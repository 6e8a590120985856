"""A detector of transformers, trained on drawn scenes: its boxes are explained by what is in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

import detcam
from detcam.benchmarking.planted.detectors import detector_families, train_detector
from detcam.synthetic.shortcuts import draw_shortcut_scene

pytest.importorskip("transformers", reason="transformers is not installed")

STEPS = 450


@pytest.mark.slow
def test_heatmaps_of_a_trained_rt_detr_peak_on_the_objects() -> None:
    model = train_detector(detector_families()["rt-detr"], "context", "shortcut", STEPS)
    adapter = detcam.adapt(model)
    truth = found = 0
    in_box: list[bool] = []
    for seed in range(1000, 1015):
        scene = draw_shortcut_scene("context", seed, "shortcut")
        boxes = torch.as_tensor(scene.boxes_xyxy)
        (detections,) = adapter.predict(scene.image, score_threshold=0.5)
        truth += len(boxes)
        if not len(detections) or not len(boxes):
            continue
        overlap = box_iou(boxes, detections.boxes_xyxy)
        found += int((overlap.amax(1) > 0.5).sum())
        right = detections[(overlap.amax(0) > 0.5).nonzero()[:3, 0]]
        (explanation,) = detcam.explain(adapter, scene.image, "odam", targets=[right])
        for heatmap, (x1, y1, x2, y2) in zip(np.asarray(explanation.heatmaps), right.boxes_xyxy.tolist(), strict=True):
            row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
            in_box.append(bool(x1 - 2 <= column <= x2 + 2 and y1 - 2 <= row <= y2 + 2))
    assert found / truth > 0.8
    assert np.mean(in_box) > 0.75  # a box covers 2% of the image
