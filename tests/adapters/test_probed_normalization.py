"""A normalization before a network's first layer is found with passes on noise, or known to be none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms.functional import normalize

from detcam import adapt
from detcam.adapters import segmenter
from detcam.adapters.normalization import IMAGENET
from detcam.testing import tiny_classifier

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
CENTER, SCALE = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))


class Own(nn.Module):
    """A network with parameters beside its layers."""

    def __init__(self, change: Callable[[Tensor], Tensor], *, classes: int = 2, end: nn.Module | None = None) -> None:
        super().__init__()
        self.change = change
        self.token = nn.Parameter(torch.zeros(1))
        self.conv = nn.Conv2d(3, classes, 3, padding=1)
        self.end = end or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.conv(self.change(x)) + self.token)


def own_classifier(change: Callable[[Tensor], Tensor]) -> nn.Module:
    return Own(change, end=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())).eval()


def fixed(x: Tensor) -> Tensor:
    return (x - CENTER.to(x)) / SCALE.to(x)


FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "out of place": fixed,
    "in place": lambda x: x.sub_(CENTER).div_(SCALE),
    "in place, torchvision": lambda x: normalize(x, MEAN, STD, inplace=True),
    "pixels above 1 clipped": lambda x: fixed(x.clamp(0, 1)),
    "batch norm without weights": nn.BatchNorm2d(3, affine=False),
}


@pytest.mark.parametrize("change", FIXED.values(), ids=FIXED)
def test_a_network_that_normalizes_gets_pixels(change: Callable[[Tensor], Tensor]) -> None:
    options: Any = {"target_layers": "conv"}  # a gradient at the image does not pass an operation in place
    for adapter in (adapt(own_classifier(change), image_size=32, **options), segmenter(Own(change).eval(), **options)):
        assert (adapter.mean, adapter.std) == ((0, 0, 0), (1, 1, 1))
    assert adapt(own_classifier(change), image_size=32, mean=(0.5,) * 3, **options).std == (1, 1, 1)
    assert adapt(own_classifier(lambda x: x)).mean == segmenter(Own(lambda x: x).eval()).mean == IMAGENET.mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_normalization_in_place_before_a_known_network_is_kept(dtype: torch.dtype) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet18(num_classes=2)
            self.net.conv1 = nn.Sequential(nn.ReLU(inplace=True), self.net.conv1)  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Any:
            return self.net(x.sub_(CENTER.to(x)).div_(SCALE.to(x)))

    adapter = adapt(Wrapper().eval().to(dtype), image_size=32, target_layers="net.layer4")
    assert adapter.layer_prefix == "net" and adapter.mean == pytest.approx(MEAN) and adapter.std == pytest.approx(STD)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("divisor", [1, 255])
def test_half_precision_is_no_other_change(dtype: torch.dtype, divisor: int) -> None:
    adapter = adapt(own_classifier(lambda x: fixed(x / divisor)).to(dtype), image_size=32)
    assert adapter.mean == (0, 0, 0) and adapter.std == pytest.approx((1 / divisor,) * 3)


CONTENT: dict[str, Callable[[Tensor], Tensor]] = {
    "standardized": lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True),
    "instance norm": nn.InstanceNorm2d(3),
    "bytes if above 1": lambda x: x / 255 if x.max() > 1 else x,
}


@pytest.mark.parametrize("change", CONTENT.values(), ids=CONTENT)
def test_a_normalization_by_the_image_itself_is_told(change: Callable[[Tensor], Tensor]) -> None:
    with pytest.warns(UserWarning, match=r"Own normalizes each image by its own values, .*Pass mean= and std="):
        adapter = adapt(own_classifier(change), image_size=32)
    assert (adapter.mean, adapter.std) == ((0, 0, 0), (1, 1, 1))
    with pytest.warns(UserWarning, match="by its own values"):
        segmenter(Own(change).eval())


def test_a_known_network_is_not_the_explained_one_behind_a_normalization_by_the_image() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet18(num_classes=2)

        def forward(self, x: Tensor) -> Any:
            return self.net((x - x.mean()) / x.std())

    with pytest.warns(UserWarning, match="Wrapper normalizes each image by its own values"):
        assert adapt(Wrapper().eval(), image_size=32).layer_prefix == ""


def test_the_model_is_not_probed_where_the_user_gives_both() -> None:
    model = own_classifier(lambda x: (x - x.mean()) / x.std())
    adapter = adapt(model, image_size=32, mean=MEAN, std=STD)
    assert (adapter.mean, adapter.std) == (MEAN, STD)
    assert not tiny_classifier().model._forward_pre_hooks
