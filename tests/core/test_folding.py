"""Normalisation folded into convolutions changes no score."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detcam import Occlusion
from detcam.folding import Folding
from tests.helpers import Snapshot


class Normalised(nn.Module):
    """A convolution and its normalisation; another one whose output somebody else reads; a frozen one run twice."""

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
def test_folding_keeps_what_comes_out(leak: bool) -> None:
    model = Normalised()
    model.leak = leak
    images = torch.rand(2, 3, 8, 8)
    folding = Folding(model)
    assert folding.possible and not Folding(nn.Conv2d(3, 3, 1)).possible
    before = Snapshot(model)
    with torch.no_grad():
        expected = model(images)
        with folding.record():
            model(images[:1])
        with pytest.raises(KeyError), folding.applied():
            assert model.norm1(images) is images and model.norm3(images) is images, "the normalisation rests"
            found = model(images)
            raise KeyError
    before.check()
    assert not any("forward" in vars(module) for module in model.modules())
    close = torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert close != leak, "what others read between the two is seen in the output"


@pytest.mark.parametrize("leak", [True, False])
def test_maps_are_those_of_the_network_as_it_is(leak: bool) -> None:
    model = Normalised()
    model.leak = leak
    image = torch.rand(1, 3, 8, 8)
    found = Occlusion(model, grid=4, window=1).explain(image, [lambda y: y[1]])[0].saliency[0][0, ::2, ::2]
    with torch.no_grad():
        for i in range(4):
            for j in range(4):
                hidden = image.clone()
                hidden[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = 0
                assert float(found[i, j]) == pytest.approx(float((model(image) - model(hidden))[0, 1]), abs=1e-4)
