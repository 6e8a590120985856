"""Parity with grad-cam: its tutorial on semantic segmentation with changed import lines."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, fcn_resnet50

import detcam
from detcam.targets import SemanticSegmentationTarget

peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
peer_targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets", reason="grad-cam is not installed")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


class OutputWrapper(nn.Module):
    """Returns the class maps only, as in the tutorial."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)["out"]
        return out


def smp_unet(**options: Any) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    model: nn.Module = smp.Unet("resnet18", encoder_weights=None, classes=5, decoder_channels=(32, 16, 16, 8, 8))
    return model.eval()


def voc(build: Any) -> nn.Module:
    model: nn.Module = build(weights=None, weights_backbone=None, num_classes=5)
    return model.eval()


CASES: dict[str, tuple[Any, str]] = {
    "smp, bottleneck": (smp_unet, "encoder.layer4"),
    "smp, decoder": (smp_unet, "decoder.blocks.2"),
    "smp, last block": (smp_unet, "decoder"),
    "fcn": (lambda: voc(fcn_resnet50), "backbone.layer4"),
    "deeplabv3": (lambda: voc(deeplabv3_mobilenet_v3_large), "backbone.16"),
}


@pytest.mark.parametrize("method", ["GradCAM", "HiResCAM", "LayerCAM"])
@pytest.mark.parametrize("case", CASES)
def test_equal_heatmaps_of_the_tutorial(case: str, method: str) -> None:
    build, layer = CASES[case]
    model = build()
    inputs = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    masks = np.zeros((2, 64, 96), np.float32)
    masks[0, 10:40, 20:70] = 1
    masks[1, 30:64, 5:50] = 1
    theirs = copy.deepcopy(model) if case.startswith("smp") else OutputWrapper(copy.deepcopy(model))
    inner = theirs.model if isinstance(theirs, OutputWrapper) else theirs
    with getattr(peer, method)(model=theirs, target_layers=[inner.get_submodule(layer)]) as cam:
        targets = [peer_targets.SemanticSegmentationTarget(c, m) for c, m in zip((1, 3), masks, strict=True)]
        expected = cam(input_tensor=inputs, targets=targets)
    assert expected.max() > 0.99, "the heatmap of grad-cam must not be empty"
    targets = [SemanticSegmentationTarget(c, m) for c, m in zip((1, 3), masks, strict=True)]
    for ours in (model, theirs):
        inner = ours.model if isinstance(ours, OutputWrapper) else ours
        with getattr(detcam, method)(model=ours, target_layers=[inner.get_submodule(layer)]) as cam:
            heatmaps = cam(input_tensor=inputs, targets=targets)
        assert heatmaps.shape == (2, 64, 96)
        np.testing.assert_allclose(heatmaps, expected, atol=1e-4)
