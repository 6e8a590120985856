"""Parity with grad-cam: ScoreCAM, and AblationCAM where grad-cam follows the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from detcam import AblationCAM, ScoreCAM
from detcam.targets import ClassifierOutputTarget

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")


def test_equal_score_cam() -> None:
    torch.manual_seed(0)
    model = resnet18().eval()
    images = torch.randn(1, 3, 64, 96)
    with peer.ScoreCAM(model, [model.layer4[-1]]) as cam:
        expected = cam(images, [ClassifierOutputTarget(7)])
    heatmaps = ScoreCAM(model, [model.layer4[-1]])(images, [ClassifierOutputTarget(7)])
    np.testing.assert_allclose(heatmaps, expected, atol=1e-4)


def test_equal_ablation_cam() -> None:
    """Conditions under which grad-cam is correct: activations with a zero, positive scores, one batch of channels."""
    torch.manual_seed(0)
    model = resnet18(num_classes=9).eval()
    model.layer2 = model.layer3 = model.layer4 = torch.nn.Identity()
    model.fc = torch.nn.Linear(64, 9)
    images = torch.randn(2, 3, 64, 96)
    targets = [ClassifierOutputTarget(int(top)) for top in model(images).argmax(1)]
    assert float(model(images).amax(1).min()) > 0
    with peer.AblationCAM(model, [model.layer1], batch_size=64) as cam:
        expected = cam(images, targets)
    np.testing.assert_allclose(AblationCAM(model, ["layer1"])(images, targets), expected, atol=1e-4)
