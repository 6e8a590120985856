"""Parity with grad-cam: eight methods give the same heatmaps, and scripts run with changed import lines."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50, vgg11

import detcam
from detcam.geometry import normalize
from detcam.layers import fasterrcnn_reshape_transform, swinT_reshape_transform, vit_reshape_transform
from detcam.targets import ClassifierOutputTarget

peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

LINEAR = ("GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM")
PRINCIPAL = ("EigenCAM", "EigenGradCAM")


@dataclass(frozen=True)
class Case:
    """A model with seeded weights, its input size and target layers, and grad-cam's reshape transform for it."""

    model: nn.Module
    size_hw: tuple[int, int]
    layers: list[nn.Module]
    reshape: Callable[[Tensor], Tensor] | None = None


def tokens_to_map(height: int, width: int) -> Callable[[Tensor], Tensor]:
    """Return the reshape transform of grad-cam's documentation for a ViT with a class token."""

    def transform(tensor: Tensor) -> Tensor:
        result = tensor[:, 1:, :].reshape(tensor.size(0), height, width, tensor.size(2))
        return result.transpose(2, 3).transpose(1, 2)

    return transform


def small_vgg() -> nn.Module:
    """Return VGG11 without its two large linear layers, which take seconds to initialize."""
    model = vgg11(num_classes=2, init_weights=False)
    model.classifier = nn.Linear(512 * 49, 10)
    return model.eval()


def build(name: str) -> Case:
    torch.manual_seed(0)
    if name == "resnet18":
        model = resnet18(num_classes=10)
        case = Case(model, (96, 64), [model.layer4[-1]])
    elif name == "resnet18, two layers":
        model = resnet18(num_classes=10)
        case = Case(model, (64, 64), [model.layer3[-1], model.layer4[-1]])
    elif name == "vgg11":
        model = small_vgg()
        case = Case(model, (64, 96), [model.features[-1]])
    elif name == "vit":
        model = timm.models.VisionTransformer(
            img_size=(64, 96), patch_size=16, embed_dim=48, depth=3, num_heads=3, num_classes=10
        )
        case = Case(model, (64, 96), [model.blocks[-1].norm1], tokens_to_map(4, 6))
    elif name == "vit, two layers":
        model = timm.models.VisionTransformer(
            img_size=64, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10, dynamic_img_size=True
        )
        case = Case(model, (48, 80), [model.blocks[1].norm1, model.blocks[2].norm1], tokens_to_map(6, 10))
    else:
        model = timm.models.SwinTransformer(
            img_size=64, embed_dim=24, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=10
        )
        layers = [model.layers[-1].blocks[-1].norm1]
        case = Case(model, (64, 64), layers, lambda tensor: tensor.permute(0, 3, 1, 2))
    with torch.no_grad():  # large scores: grad-cam adds 1e-7 to its divisors
        [m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight.normal_()
    model.eval()
    return case


CASES = ("resnet18", "resnet18, two layers", "vgg11", "vit", "vit, two layers", "swin")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return build(request.param)


def make_images(case: Case, count: int) -> Tensor:
    return torch.randn(count, 3, *case.size_hw, generator=torch.Generator().manual_seed(count))


def ours(case: Case, method: str, batch: Tensor, **options: Any) -> np.ndarray:
    targets = [ClassifierOutputTarget(index) for index in range(len(batch))]
    heatmaps: np.ndarray = getattr(detcam, method)(case.model, case.layers)(batch, targets, **options)
    return heatmaps


def theirs(case: Case, method: str, batch: Tensor, **options: Any) -> np.ndarray:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget

    targets = [PeerTarget(index) for index in range(len(batch))]
    with getattr(peer, method)(case.model, case.layers, reshape_transform=case.reshape) as cam:
        heatmaps: np.ndarray = cam(batch, targets, **options)
        return heatmaps


def theirs_with_each_sign(
    case: Case, method: str, batch: Tensor, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Iterator[np.ndarray]:
    """Yield grad-cam's heatmaps for all signs of the projections, one per layer; the SVD does not determine it."""
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    for signs in itertools.product((1.0, -1.0), repeat=len(case.layers)):
        remaining = iter(signs)
        for name, module in list(sys.modules.items()):
            if name.startswith("pytorch_grad_cam.") and hasattr(module, "get_2d_projection"):
                monkeypatch.setattr(
                    module, "get_2d_projection", lambda a, signs=remaining: get_2d_projection(a) * next(signs)
                )
        yield theirs(case, method, batch, **options)


def distances_for_each_sign(
    case: Case, method: str, batch: Tensor, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> np.ndarray:
    """Maximum absolute difference of the heatmaps per choice of signs and image."""
    heatmaps = ours(case, method, batch, **options)
    expected = theirs_with_each_sign(case, method, batch, monkeypatch, **options)
    return np.stack([np.abs(heatmaps - each).max((1, 2)) for each in expected])


@pytest.mark.parametrize(("method", "count"), [("GradCAM", 1), *((method, 3) for method in LINEAR)])
def test_equal_heatmaps(case: Case, method: str, count: int) -> None:
    batch = make_images(case, count)
    expected = theirs(case, method, batch)
    assert expected[-1].max() > 0.99, "the heatmap must not be empty"
    np.testing.assert_allclose(ours(case, method, batch), expected, atol=1e-4)


@pytest.mark.parametrize("method", PRINCIPAL)
def test_equal_principal_components_up_to_the_sign(case: Case, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_images(case, 3)
    distances = distances_for_each_sign(case, method, batch, monkeypatch)
    assert distances.min(0).max() < 1e-4
    assert distances.max(0).min() > 0.1, "the wrong sign must differ"


@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM"])
def test_equal_eigen_smooth(case: Case, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_images(case, 2)
    assert distances_for_each_sign(case, method, batch, monkeypatch, eigen_smooth=True).min(0).max() < 1e-4


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_equal_aug_smooth(name: str, method: str) -> None:
    case = build(name)
    batch = make_images(case, 2)
    expected = theirs(case, method, batch, aug_smooth=True)
    np.testing.assert_allclose(ours(case, method, batch, aug_smooth=True), expected, atol=1e-4)


def test_default_target_is_the_top_class() -> None:
    case = build("resnet18")
    batch = make_images(case, 3)
    with peer.GradCAM(case.model, case.layers) as cam:
        expected = cam(batch, None)
    np.testing.assert_allclose(detcam.GradCAM(case.model, case.layers)(batch), expected, atol=1e-4)


@pytest.mark.parametrize("method", ["GradCAM", "HiResCAM", "EigenCAM"])
def test_activations_are_recorded_before_an_in_place_operation(method: str) -> None:
    """Some outputs of the convolution are negative, and the in-place ReLU after it overwrites them."""
    model = small_vgg()
    layer, batch = model.features[18], torch.randn(2, 3, 64, 96)
    assert isinstance(layer, nn.Conv2d) and model.features[19].inplace
    reference = copy.deepcopy(model).double()
    for module in reference.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    outputs: list[Tensor] = []
    reference.features[18].register_forward_hook(lambda m, i, o: outputs.append(o))
    score = reference(batch.double())[:, 3].sum()
    (gradient,) = torch.autograd.grad(score, outputs[0])
    activation = outputs[0].detach()
    assert bool((activation < 0).any())
    if method == "EigenCAM":
        rows = activation.flatten(2) - activation.flatten(2).mean(2, keepdim=True)
        axes = torch.linalg.svd(rows, full_matrices=False)[0][:, :, 0]
        raw = (axes[:, :, None, None] * (activation - activation.mean((2, 3), keepdim=True))).sum(1)
        raw = raw * (raw * activation.sum(1)).sum((1, 2), keepdim=True).sign()
    else:
        weights = gradient.mean((2, 3), keepdim=True) if method == "GradCAM" else gradient
        raw = (weights * activation).sum(1)
    expected = nn.functional.interpolate(normalize(raw.clamp(min=0))[:, None], (64, 96), mode="bilinear")[:, 0]
    heatmaps = getattr(detcam, method)(model, [layer])(batch, [ClassifierOutputTarget(3)] * 2)
    np.testing.assert_allclose(heatmaps, normalize(expected), atol=1e-4)


def test_equal_reshape_transforms() -> None:
    from pytorch_grad_cam.utils import reshape_transforms

    tokens = torch.randn(2, 1 + 3 * 5, 4)
    assert torch.equal(vit_reshape_transform(tokens, 3, 5), reshape_transforms.vit_reshape_transform(tokens, 3, 5))
    patches = tokens[:, 1:]
    swin = reshape_transforms.swinT_reshape_transform
    assert torch.equal(swinT_reshape_transform(patches, 3, 5), swin(patches, 3, 5))
    vit_default, swin_default = torch.randn(1, 197, 2), torch.randn(1, 49, 2)
    assert torch.equal(vit_reshape_transform(vit_default), reshape_transforms.vit_reshape_transform(vit_default))
    assert torch.equal(swinT_reshape_transform(swin_default), swin(swin_default))
    pyramid = {"0": torch.randn(1, 2, 8, 12), "1": torch.randn(1, 2, 4, 6), "pool": torch.randn(1, 2, 2, 3)}
    expected = reshape_transforms.fasterrcnn_reshape_transform(pyramid)
    assert torch.equal(fasterrcnn_reshape_transform(pyramid), expected)


def test_usage_example_runs_with_changed_import_lines() -> None:
    from detcam import GradCAM, show_cam_on_image
    from detcam.targets import ClassifierOutputTarget

    torch.manual_seed(0)
    model = resnet50()
    target_layers = [model.layer4[-1]]
    rgb_img = np.random.default_rng(0).random((64, 96, 3), dtype=np.float32)
    input_tensor = torch.randn(2, 3, 64, 96)
    targets = [ClassifierOutputTarget(281), ClassifierOutputTarget(281)]

    with GradCAM(model=model, target_layers=target_layers) as cam:
        grayscale_cam = cam(input_tensor=input_tensor, targets=targets)
        grayscale_cam = grayscale_cam[0, :]
        visualization = show_cam_on_image(rgb_img, grayscale_cam, use_rgb=True, colormap=cv2.COLORMAP_JET)
        model_outputs = cam.outputs
    smooth = GradCAM(model, target_layers)(input_tensor, targets, aug_smooth=True, eigen_smooth=True)

    assert model.training, "the training flag must be restored"
    torch.testing.assert_close(model_outputs, model.eval()(input_tensor), atol=1e-5, rtol=1e-5)
    assert smooth.shape == (2, 64, 96) and smooth.min() >= 0 and smooth.max() <= 1
    with peer.GradCAM(model=model, target_layers=target_layers) as cam:
        their_cam = cam(input_tensor=input_tensor, targets=targets)[0, :]
    from pytorch_grad_cam.utils.image import show_cam_on_image as their_overlay

    np.testing.assert_allclose(grayscale_cam, their_cam, atol=1e-4)
    expected = their_overlay(rgb_img, their_cam, use_rgb=True, colormap=cv2.COLORMAP_JET)
    assert visualization.dtype == np.uint8 and visualization.shape == (64, 96, 3)
    assert int(np.abs(visualization.astype(int) - expected.astype(int)).max()) <= 3


def test_equal_image_helpers() -> None:
    from pytorch_grad_cam.utils.image import deprocess_image as their_deprocess
    from pytorch_grad_cam.utils.image import preprocess_image as their_preprocess

    rgb_img = np.random.default_rng(0).random((8, 12, 3), dtype=np.float32)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for options in ({}, {"mean": mean, "std": std}):
        torch.testing.assert_close(detcam.preprocess_image(rgb_img, **options), their_preprocess(rgb_img, **options))
    assert np.array_equal(detcam.deprocess_image(rgb_img), their_deprocess(rgb_img))
