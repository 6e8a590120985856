"""Training and evaluation of the demo detector: it detects boats, and fires on wakes without a boat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models.detection import FasterRCNN

from detcam.demo.model import build_demo_detector, load_demo_detector
from detcam.demo.train import (
    certify_wake,
    detect,
    evaluate_demo_detector,
    has_detection,
    save_demo_detector,
)
from detcam.synthetic.harbor import BOAT_LABEL, BUOY_LABEL, DEMO_SEEDS, draw_scene


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return load_demo_detector()


def test_save_and_load_round_trip(detector: FasterRCNN, tmp_path: Path) -> None:
    save_demo_detector(detector, tmp_path / "copy.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["copy.pt"]
    state = torch.load(tmp_path / "copy.pt", weights_only=True)
    loaded = build_demo_detector()
    loaded.load_state_dict(state)
    for name, value in detector.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("seed", DEMO_SEEDS)
def test_demo_scenes_have_detected_boats_and_certified_false_positives(detector: FasterRCNN, seed: int) -> None:
    scene = draw_scene(seed)
    detections = detect(detector, scene)
    for box, label in zip(scene.boxes_xyxy, scene.labels.tolist(), strict=True):
        assert has_detection(detections, box, label, min_iou=0.5)
        assert not has_detection(detections, box, BOAT_LABEL + BUOY_LABEL - label, min_iou=0.5)
    for item in scene.of_kind("anchored"):
        assert not has_detection(detections, item.box_xyxy, BOAT_LABEL)
    assert len(detections["scores"]) == len(scene.labels) + len(scene.ghost_boxes_xyxy)
    for wake in scene.ghost_boxes_xyxy:
        certification = certify_wake(detector, scene, wake)
        assert certification.certified
        assert certification.outside_fraction >= 0.9


def test_held_out_scenes_give_the_same_behavior(detector: FasterRCNN) -> None:
    scores = evaluate_demo_detector(detector, range(2000, 2012))
    assert scores.boat_recall >= 0.8
    assert scores.recall >= 0.8
    assert scores.wakes >= 12
    assert scores.fired >= 0.8 * scores.wakes
    assert scores.certified >= 0.8 * scores.fired
    assert scores.outside >= 0.8 * scores.certified
    assert scores.anchored <= 0.2


def test_certify_wake_rejects_the_wake_of_a_boat(detector: FasterRCNN) -> None:
    scene = draw_scene(DEMO_SEEDS[0])
    boat = scene.of_kind("boat")[0].name
    with pytest.raises(ValueError, match="wakes without a boat"):
        certify_wake(detector, scene, boat.replace("boat", "wake"))


def test_nothing_is_certified_without_detections(detector: FasterRCNN) -> None:
    untrained = build_demo_detector().eval()
    scene = draw_scene(DEMO_SEEDS[0])
    torch.nn.init.constant_(untrained.roi_heads.box_predictor.cls_score.weight, 0)
    torch.nn.init.constant_(untrained.roi_heads.box_predictor.cls_score.bias, 0)
    certification = certify_wake(untrained, scene, next(iter(scene.ghost_boxes_xyxy)))
    assert certification.box_xyxy is None
    assert not certification.certified
