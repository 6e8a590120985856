"""Normalization folded into convolutions changes no score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detcam import Occlusion
from detcam.perturbation.bn_folding import BatchNormFolding
from tests.helpers import Snapshot


class Normalized(nn.Module):
    """A convolution and its normalization; another one whose output is read twice; a frozen one run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.norm3 = nn.Conv2d(4, 4, 1), FrozenBatchNorm2d(4)
        for norm in (self.norm1, self.norm2, self.norm3):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, name).data = torch.rand(4) + 0.5
        self.leak = True
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu_()
        between = self.conv2(x)
        x = self.norm2(between) + (between if self.leak else 0)
        return self.norm3(self.conv3(self.norm3(self.conv3(x)))).mean((2, 3))


@pytest.mark.parametrize("leak", [True, False])
def test_folding_preserves_the_output(leak: bool) -> None:
    model = Normalized()
    model.leak = leak
    images = torch.rand(2, 3, 8, 8)
    folding = BatchNormFolding(model)
    assert folding.is_applicable and not BatchNormFolding(nn.Conv2d(3, 3, 3)).is_applicable
    before = Snapshot(model)
    with torch.no_grad():
        expected = model(images)
        with folding.record():
            model(images[:1])
        with pytest.raises(KeyError), folding.applied():
            assert model.norm1(images) is images and model.norm3(images) is images, "the normalization rests"
            found = model(images)
            raise KeyError
    before.check()
    assert not any("forward" in vars(module) for module in model.modules())
    close = torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert close != leak, "what others read between the two is seen in the output"


@pytest.mark.parametrize("leak", [True, False])
def test_maps_equal_those_of_the_unfolded_network(leak: bool) -> None:
    model = Normalized()
    model.leak = leak
    image = torch.rand(1, 3, 8, 8)
    found = Occlusion(model, grid=4, window=1).explain(image, [lambda y: y[1]])[0].saliency[0][0, ::2, ::2]
    with torch.no_grad():
        for i in range(4):
            for j in range(4):
                hidden = image.clone()
                hidden[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = 0
                assert float(found[i, j]) == pytest.approx(float((model(image) - model(hidden))[0, 1]), abs=1e-4)


class Activated(nn.Module):
    """Activations after a normalization and a convolution; `leak` reads the first one's input again."""

    def __init__(self, leak: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.first, self.second, self.third = nn.SiLU(), nn.ReLU(), nn.SiLU()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.leak = leak
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        normalized = self.norm(self.conv1(x))
        x = self.first(normalized) + (normalized if self.leak else 0)
        return (self.second(self.conv2(x)) + self.third(x)).mean((2, 3))


@pytest.mark.parametrize("leak", [True, False])
def test_activations_work_in_place(leak: bool) -> None:
    model, images = Activated(leak), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    before, folding = Snapshot(model), BatchNormFolding(model)
    with torch.no_grad():
        expected = model(images)
        with folding.record():
            model(images[:1])
        with folding.applied():
            # The input of the third is a sum, which the second branch reads as well.
            assert [each.inplace for each in (model.first, model.second, model.third)] == [True, True, False]
            found = model(images)
    before.check()
    assert not any(each.inplace for each in (model.first, model.second, model.third))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6) != leak, "what others read is seen in the output"
    heatmap = Occlusion(model, grid=2, window=1).explain(images[:1], [lambda y: y[1]])[0].saliency[0]
    hidden = images[:1].clone()
    hidden[:, :, :4, :4] = 0
    with torch.no_grad():
        drop = float((model(images[:1]) - model(hidden))[0, 1])
    assert float(heatmap[0, 0, 0]) == pytest.approx(drop, abs=1e-4)


class Flat(nn.Module):
    """Flattens with view(), which takes one memory layout only; `view` may be taken for reshape()."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.view = view
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.conv(x)).relu()
        found: Tensor = self.last(maps.view(len(x), -1) if self.view else maps.reshape(len(x), -1))
        return found


def test_networks_keep_their_memory_layout() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    plain, viewed = (
        Occlusion(Flat(view), grid=4, window=1).explain(images, [[lambda y: y[1]]] * 2) for view in (False, True)
    )
    for one, other in zip(plain, viewed, strict=True):
        assert float(one.saliency[0].std()) > 0.1
        torch.testing.assert_close(one.saliency[0], other.saliency[0], atol=1e-5, rtol=0)


def _recorded(model: nn.Module, images: Tensor) -> BatchNormFolding:
    folding = BatchNormFolding(model)
    with torch.no_grad(), folding.record():
        model(images)
    return folding


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("settings", [{}, {"groups": 2}, {"stride": 2, "padding": 1}, {"bias": False}])
def test_pointwise_convolutions_keep_their_output(settings: dict[str, Any], layout: torch.memory_format) -> None:
    model = nn.Sequential(nn.Conv2d(6, 4, 1, **settings)).eval()
    images = torch.randn(3, 6, 9, 7).contiguous(memory_format=layout)
    folding = _recorded(model, images)
    with torch.no_grad():
        expected = model(images)
        with folding.applied():
            assert "forward" in vars(model[0])
            assert torch.allclose(model(images), expected, rtol=1e-5, atol=1e-6)
            assert torch.allclose(model(images[0]), expected[0], rtol=1e-5, atol=1e-6), "one image without a batch"
            assert model(images[:0]).shape == (0, *expected.shape[1:])
    assert not vars(model[0]).get("forward")


def test_timms_normalization_with_its_activation_is_folded() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=7).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data = torch.rand_like(norm.weight) + 0.5
    images = torch.randn(2, 3, 64, 64)
    before = Snapshot(model)
    folding = _recorded(model, images[:1])
    ran: list[nn.Module] = []
    with torch.no_grad():
        expected = model(images)
        with folding.applied():
            assert torch.allclose(model(images), expected, rtol=1e-4, atol=1e-5)
            ran = [norm for norm in norms if "forward" in vars(norm)]
    before.check()
    assert len(ran) == len(norms) == 49, "including those after convolutions that pad"


def test_a_pass_is_limited_by_the_cache() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    image = torch.rand(1, 3, 512, 1024)
    assert _recorded(model, image).largest_output == 8 * 512 * 1024 * 4
    sizes: list[int] = []
    cam = Occlusion(model, grid=2, window=1)
    handle = model[1].register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    cam.explain(image, [lambda y: y[1].mean()])
    assert sizes.count(1) >= 4 and max(sizes) == 1, "a layer's output is 16 MiB already"
    sizes.clear()
    cam.explain(image[..., :128, :256], [lambda y: y[1].mean()])
    assert max(sizes) == 4
    handle.remove()
