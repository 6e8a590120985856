"""Known networks inside wrappers, and layer names with the components that wrappers add."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import GradCAM, adapt
from detcam.adapters.one_stage import RetinaNetAdapter
from detcam.testing import tiny_classifier

IMAGE = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))


class Module(nn.Module):
    """As a Lightning module: passes its arguments on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


@pytest.fixture(scope="module")
def timm_model() -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model: nn.Module = timm.create_model("test_resnet", num_classes=1000).eval()
    model.pretrained_cfg.update(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))  # type: ignore[union-attr, operator]
    return model


WRAPPERS = {
    "module": Module,
    "twice": lambda net: Module(Module(net)),
    "DataParallel inside": lambda net: Module(nn.DataParallel(net)),
    "softmax": lambda net: nn.Sequential(net, nn.Softmax(-1)),
    "sigmoid": lambda net: nn.Sequential(net, nn.Sigmoid()),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_classifier_is_the_bare_one(timm_model: nn.Module, wrap: Any) -> None:
    bare, wrapped = adapt(timm_model), adapt(wrap(timm_model).eval())
    assert wrapped.model is timm_model
    assert (wrapped.mean, wrapped.std, wrapped.image_size) == (bare.mean, bare.std, bare.image_size)  # type: ignore[attr-defined]
    (expected,), (found,) = bare.predict(IMAGE, top_k=3), wrapped.predict(IMAGE, top_k=3)
    assert [found.caption(row) for row in range(3)] == [expected.caption(row) for row in range(3)]


class Headed(Module):
    """A backbone with a head of one's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head = nn.Linear(1000, 2)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.model(x))


class Selected(Module):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.model(x)[:, [3, 1]]


@pytest.mark.parametrize("wrap", [Headed, Selected])
def test_another_head_keeps_the_normalization_but_not_the_names(timm_model: nn.Module, wrap: Any) -> None:
    model = wrap(timm_model).eval()
    adapter = adapt(model)
    assert adapter.model is model and adapter.mean == (0.4, 0.5, 0.6) and adapter.names == {}
    assert adapter.predict(IMAGE, top_k=9)[0].labels.tolist().__len__() == 2


def test_networks_of_different_normalization_are_reported(timm_model: nn.Module) -> None:
    import timm

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = timm_model, timm.create_model("test_resnet").eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    with pytest.warns(UserWarning, match="different mean, std or input size"):
        adapt(Ensemble().eval(), target_layers="a.layer4")


def retinanet() -> nn.Module:
    from torchvision.models.detection import RetinaNet

    backbone: Any = nn.Conv2d(3, 8, 8, stride=8)
    backbone.out_channels = 8
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    anchors = AnchorGenerator(((16,),), ((1.0,),))
    return RetinaNet(backbone, 3, min_size=64, max_size=96, anchor_generator=anchors).eval()


def test_a_wrapped_detector_is_the_bare_one() -> None:
    net = retinanet()
    adapter = adapt(Module(net), target_layers="model.backbone")
    assert isinstance(adapter, RetinaNetAdapter) and adapter.model is net and adapter.layer_names[0] == "backbone"
    assert adapter.with_layers(["model.head"], None).layer_names == ["head"]


class Unused(Module):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.model.backbone(x).mean((2, 3))  # type: ignore[union-attr, operator]


def two() -> nn.Module:
    model = Module(retinanet())
    model.ema = retinanet()
    return model.eval()


UNCERTAIN = {
    "a head of its own": (lambda: Headed(retinanet()), "has parameters besides"),
    "not run as a whole": (lambda: Unused(retinanet()), "does not run the network inside it"),
    "two": (two, r"contains 2 known networks.*model.model \(RetinaNet\) or model.ema"),
}


@pytest.mark.parametrize(("make", "message"), UNCERTAIN.values(), ids=UNCERTAIN)
def test_an_uncertain_wrapper_is_refused_with_the_inner_network(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"{message}.*(model.model)?.*detector\\(model, decode="):
        adapt(make().eval())


def test_an_object_with_a_model_is_refused_with_its_attribute() -> None:
    with pytest.raises(TypeError, match="got SimpleNamespace; pass its attribute .model"):
        adapt(SimpleNamespace(model=nn.Identity()))


def test_layer_names_with_components_of_wrappers() -> None:
    net = tiny_classifier().model
    name = adapt(net).layer_names[0]
    expected = GradCAM(net, [name])(IMAGE[None])
    for given in (f"module.{name}", f"_orig_mod.{name}", f"module._orig_mod.{name}"):
        assert (GradCAM(nn.DataParallel(net), [given])(IMAGE[None]) == expected).all()
    inside = nn.Sequential(nn.DataParallel(net))
    assert adapt(inside, target_layers=f"0.{name}").layer_names == [f"0.module.{name}"]
    with pytest.raises(ValueError, match="no layer named 'module.nothing'"):
        adapt(net, target_layers="module.nothing")
