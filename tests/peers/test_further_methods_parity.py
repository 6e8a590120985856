"""Parity with grad-cam: further methods give the same heatmaps where grad-cam follows the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, vgg11

import detcam
from detcam.targets import ClassifierOutputReST, ClassifierOutputTarget

peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

IMAGES = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
CLASSES = (3, 7)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    for module in model.modules():  # the initial statistics give noise
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
            module.bias.data = torch.randn(module.num_features) * 0.1
    return model


def theirs(cam: Any, targets: Any, **options: Any) -> np.ndarray:
    heatmaps: np.ndarray = cam(input_tensor=IMAGES.clone(), targets=targets, **options)
    return heatmaps


def layers(model: nn.Module) -> list[nn.Module]:
    return [model.layer2, model.layer3]  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["SegEigenCAM", "ShapleyCAM"])
def test_equal_heatmaps(name: str) -> None:
    kind = ClassifierOutputReST if name == "ShapleyCAM" else ClassifierOutputTarget
    model = network()
    selected = layers(model)[name == "ShapleyCAM" :]  # grad-cam's ShapleyCAM fails with two layers
    expected = theirs(getattr(peer, name)(model, selected), [_target(kind, c) for c in CLASSES])
    heatmaps = getattr(detcam, name)(model, selected)(IMAGES, [kind(c) for c in CLASSES])
    np.testing.assert_allclose(heatmaps, expected, atol=1e-4)
    assert np.abs(heatmaps - heatmaps[0]).max() > 0.1


def _target(kind: type, category: int) -> Any:
    name = "ClassifierOutputReST" if kind is ClassifierOutputReST else "ClassifierOutputTarget"
    return getattr(peer.utils.model_targets, name)(category)


@pytest.mark.parametrize("kernel", ["sigmoid", "rbf"])
def test_equal_kernel_pca_up_to_the_sign(kernel: str) -> None:
    model = network()
    layer = model.layer3
    outputs: list[Tensor] = []
    layer.register_forward_hook(lambda m, i, o: outputs.append(o.detach()))
    cam = peer.KPCA_CAM(model, [layer], kernel=kernel)
    with torch.no_grad():
        cam.model(IMAGES)
    raw = torch.from_numpy(cam.get_cam_image(IMAGES, layer, None, outputs[-1].numpy(), None, False))
    results = detcam.KPCA_CAM(network(), ["layer3"], kernel=kernel).explain(IMAGES, [ClassifierOutputTarget(0)] * 2)
    for result, expected in zip(results, raw, strict=True):
        saliency = result.saliency[0][0]
        expected = expected * (expected * saliency).sum().sign()
        torch.testing.assert_close(saliency, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("base", ["GradCAM", "GradCAMPlusPlus"])
def test_equal_finer_cam_of_the_top_class(base: str) -> None:
    model = network()
    expected = theirs(peer.FinerCAM(model, layers(model)[1:], base_method=getattr(peer, base)), None, alpha=0.6)
    cam = detcam.FinerCAM(network(), ["layer3"], base_method=getattr(detcam, base), alpha=0.6)
    np.testing.assert_allclose(cam(IMAGES), expected, atol=1e-4)


def test_equal_refine_cam() -> None:
    from pytorch_grad_cam.refine_cam import RefineCAM

    model = network()
    expected = theirs(RefineCAM(model, layers(model)), [_target(ClassifierOutputTarget, c) for c in CLASSES])
    heatmaps = detcam.RefineCAM(network(), ["layer2", "layer3"])(IMAGES, [ClassifierOutputTarget(c) for c in CLASSES])
    np.testing.assert_allclose(heatmaps, expected, atol=1e-4)


def test_equal_full_grad_for_a_chain_of_layers() -> None:
    """grad-cam pairs the n-th bias with the n-th gradient, which is correct for a chain of layers only."""
    torch.manual_seed(0)
    model = vgg11(num_classes=2, init_weights=False).features[:13].append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    model.eval()
    # Large scores: grad-cam adds 1e-7 to each channel's range.
    targets = [lambda out: 1e5 * out[3], lambda out: 1e5 * out[7]]
    expected = theirs(peer.FullGrad(model, []), targets)
    np.testing.assert_allclose(detcam.FullGrad(model)(IMAGES, targets), expected, atol=1e-4)


def test_fem_of_grad_cam_swaps_mask_and_weight() -> None:
    model = network()
    expected = theirs(peer.FEM(model, [model.layer3]), [_target(ClassifierOutputTarget, c) for c in CLASSES])
    cam = detcam.FEM(network(), ["layer3"])

    def swapped(activations: Tensor, gradients: Tensor) -> Tensor:
        mean, deviation = activations.mean((2, 3), keepdim=True), activations.std((2, 3), correction=0, keepdim=True)
        return (activations > mean + 2 * deviation).to(activations).mean((2, 3), keepdim=True) * activations

    cam.contributions = swapped  # type: ignore[method-assign]
    np.testing.assert_allclose(cam(IMAGES), expected, atol=1e-4)
