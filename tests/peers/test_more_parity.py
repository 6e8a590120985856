"""The further methods that grad-cam has too give the same maps, where it follows the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, vgg11

import detcam
from detcam.targets import ClassifierOutputReST, ClassifierOutputTarget
from tests.helpers import tensors

peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

IMAGES = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
CLASSES = (3, 7)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    for module in model.modules():  # statistics of an untrained network would make a map of noise
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
            module.bias.data = torch.randn(module.num_features) * 0.1
    return model


def theirs(cam: Any, targets: Any, **options: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(tensors(cam(input_tensor=IMAGES.clone(), targets=targets, **options))))


def layers(model: nn.Module) -> list[nn.Module]:
    return [model.layer2, model.layer3]  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["SegEigenCAM", "ShapleyCAM"])
def test_same_maps(name: str) -> None:
    kind = ClassifierOutputReST if name == "ShapleyCAM" else ClassifierOutputTarget
    model = network()
    chosen = layers(model)[name == "ShapleyCAM" :]  # grad-cam's raises with two layers
    expected = theirs(getattr(peer, name)(model, chosen), [_target(kind, c) for c in CLASSES])
    found = getattr(detcam, name)(model, chosen)(IMAGES, [kind(c) for c in CLASSES])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert float((found - found[0]).abs().max()) > 0.1


def _target(kind: type, category: int) -> Any:
    name = "ClassifierOutputReST" if kind is ClassifierOutputReST else "ClassifierOutputTarget"
    return getattr(peer.utils.model_targets, name)(category)


@pytest.mark.parametrize("kernel", ["sigmoid", "rbf"])
def test_kernel_pca_up_to_its_sign(kernel: str) -> None:
    model = network()
    (layer,) = (model.layer3,)
    kept: list[Tensor] = []
    layer.register_forward_hook(lambda m, i, o: kept.append(o.detach()))
    cam = peer.KPCA_CAM(model, [layer], kernel=kernel)
    raw = torch.from_numpy(cam.get_cam_image(IMAGES, layer, None, _seen(cam, kept).numpy(), None, False))
    found = detcam.KPCA_CAM(network(), ["layer3"], kernel=kernel).explain(IMAGES, [ClassifierOutputTarget(0)] * 2)
    for ours, expected in zip(found, raw, strict=True):
        ours = ours.saliency[0][0]
        expected = expected * (expected * ours).sum().sign()
        torch.testing.assert_close(ours, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def _seen(cam: Any, kept: list[Tensor]) -> Tensor:
    with torch.no_grad():
        cam.model(IMAGES)
    return kept[-1]


@pytest.mark.parametrize("base", ["GradCAM", "GradCAMPlusPlus"])
def test_finer_cam_of_the_top_class(base: str) -> None:
    model = network()
    expected = theirs(peer.FinerCAM(model, layers(model)[1:], base_method=getattr(peer, base)), None, alpha=0.6)
    cam = detcam.FinerCAM(network(), ["layer3"], base_method=getattr(detcam, base), alpha=0.6)
    torch.testing.assert_close(tensors(cam(IMAGES)), expected, atol=1e-4, rtol=0)


def test_refine_cam() -> None:
    from pytorch_grad_cam.refine_cam import RefineCAM

    model = network()
    expected = theirs(RefineCAM(model, layers(model)), [_target(ClassifierOutputTarget, c) for c in CLASSES])
    found = detcam.RefineCAM(network(), ["layer2", "layer3"])(IMAGES, [ClassifierOutputTarget(c) for c in CLASSES])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_full_grad_where_layers_run_in_the_order_of_their_definition() -> None:
    """grad-cam pairs the n-th bias with the n-th gradient, which is right for a chain of layers only."""
    torch.manual_seed(0)
    model = vgg11(num_classes=2, init_weights=False).features[:13].append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    model.eval()
    # Scores are enlarged because grad-cam adds 1e-7 to each channel's range.
    targets = [lambda out: 1e5 * out[3], lambda out: 1e5 * out[7]]
    expected = theirs(peer.FullGrad(model, []), targets)
    torch.testing.assert_close(tensors(detcam.FullGrad(model)(IMAGES, targets)), expected, atol=1e-4, rtol=0)


def test_fem_has_mask_and_weight_the_other_way_round_there() -> None:
    model = network()
    expected = theirs(peer.FEM(model, [model.layer3]), [_target(ClassifierOutputTarget, c) for c in CLASSES])
    cam = detcam.FEM(network(), ["layer3"])

    def swapped(activations: Tensor, gradients: Tensor) -> Tensor:
        mean, deviation = activations.mean((2, 3), keepdim=True), activations.std((2, 3), correction=0, keepdim=True)
        return (activations > mean + 2 * deviation).to(activations).mean((2, 3), keepdim=True) * activations

    cam.contributions = swapped  # type: ignore[method-assign]
    torch.testing.assert_close(tensors(cam(IMAGES)), expected, atol=1e-4, rtol=0)
