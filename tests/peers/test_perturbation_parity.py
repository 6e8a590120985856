"""The same maps as grad-cam where its formula is the paper's."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet18

from detcam import AblationCAM, ScoreCAM
from detcam.targets import ClassifierOutputTarget
from tests.helpers import tensors

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")


def test_score_cam() -> None:
    torch.manual_seed(0)
    model = resnet18().eval()
    images = torch.randn(1, 3, 64, 96)
    with peer.ScoreCAM(model, [model.layer4[-1]]) as cam:
        expected = torch.from_numpy(cam(images, [ClassifierOutputTarget(7)]))
    found = tensors(ScoreCAM(model, [model.layer4[-1]])(images, [ClassifierOutputTarget(7)]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_ablation_cam() -> None:
    """Where the peer is right: activations with a zero, a positive score, all channels in one batch."""
    torch.manual_seed(0)
    model = resnet18(num_classes=9).eval()
    model.layer2 = model.layer3 = model.layer4 = torch.nn.Identity()
    model.fc = torch.nn.Linear(64, 9)
    images = torch.randn(2, 3, 64, 96)
    targets = [ClassifierOutputTarget(int(top)) for top in model(images).argmax(1)]
    assert float(model(images).amax(1).min()) > 0
    with peer.AblationCAM(model, [model.layer1], batch_size=64) as cam:
        expected = torch.from_numpy(cam(images, targets))
    found = tensors(AblationCAM(model, ["layer1"])(images, targets))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
