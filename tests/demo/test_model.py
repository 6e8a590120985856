"""Weights and architecture of the demo detector."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from torchvision.models.detection import FasterRCNN

from detcam.demo.model import WEIGHTS_FILE, load_demo_detector
from detcam.demo.train import scene_tensor
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return load_demo_detector()


def test_weights_are_small_and_load_in_evaluation_mode(detector: FasterRCNN) -> None:
    assert len(resources.files("detcam.demo").joinpath(WEIGHTS_FILE).read_bytes()) < 2_000_000
    assert not any(module.training for module in detector.modules())
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
    assert detector.roi_heads.box_predictor.cls_score.out_features == len(DEMO_NAMES)


def test_scenes_are_not_resized(detector: FasterRCNN) -> None:
    image = scene_tensor(draw_scene(0))
    prepared = detector.transform([image])[0].tensors[0]
    torch.testing.assert_close(prepared, (image - 0.5) / 0.25)


def test_receptive_field_at_stride_8_covers_box_and_wake(detector: FasterRCNN) -> None:
    image = scene_tensor(draw_scene(0))[None].requires_grad_()
    level = detector.backbone(image)["0"]
    (gradient,) = torch.autograd.grad(level[0, :, 12, 16].sum(), image)
    columns = torch.nonzero(gradient.abs().sum(dim=(0, 1, 2)))[:, 0]
    assert int(columns[-1] - columns[0]) + 1 >= 95
