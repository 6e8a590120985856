"""Known networks inside wrappers, and layer names with the components that wrappers add."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from detcam import GradCAM, adapt
from detcam.adapters import segmenter
from detcam.adapters.torchvision.one_stage import RetinaNetAdapter
from detcam.models.load import load_model
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


MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


class Normalizing(Module):
    """As in tutorials of Lightning: the module normalizes the image that it gets."""

    def __init__(self, model: nn.Module, divisor: float = 1.0) -> None:
        super().__init__(model)
        self.divisor = divisor
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return self.model((x / self.divisor - self.mean) / self.std)


def own_network() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("divisor", [1.0, 255.0])
@pytest.mark.parametrize("kind", ["timm", "own"])
def test_a_normalization_inside_a_classifier_is_applied_once(timm_model: nn.Module, kind: str, divisor: float) -> None:
    torch.manual_seed(0)
    module = Normalizing(timm_model if kind == "timm" else own_network(), divisor).eval()
    expected = module(divisor * IMAGE[None]).softmax(-1)[0].sort(descending=True).values[:3]
    for options in ({}, {"mean": (0, 0, 0), "std": (1 / divisor,) * 3}):
        adapter: Any = adapt(module, image_size=(40, 56), **options)
        assert adapter.predict(IMAGE, top_k=3)[0].scores == pytest.approx(expected.tolist(), abs=1e-6)
    batch = adapter.prepare_tensor(divisor * IMAGE[None])  # a ready tensor is what the module takes
    assert torch.allclose(adapter.forward(batch).softmax(-1)[0].sort(descending=True).values[:3], expected, atol=1e-6)
    if kind == "timm":
        assert adapter.model is timm_model and adapter.mean == pytest.approx(MEAN)


def test_a_mean_of_numpy_or_of_a_wrong_length_is_checked(timm_model: nn.Module) -> None:
    adapter = adapt(Normalizing(timm_model).eval(), mean=np.zeros(3), std=np.ones(3))
    assert adapter.mean == pytest.approx(MEAN) and adapter.std == pytest.approx(STD)
    for model in (Normalizing(timm_model).eval(), timm_model):
        with pytest.raises(ValueError, match=r"expected mean with one value per channel .*, 3; got \(0.5,\)"):
            adapt(model, mean=np.full(1, 0.5))


def test_a_wrapper_may_pass_the_image_by_name() -> None:
    module = Normalizing(retinanet()).eval()
    module.forward = lambda images: module.model(images=images)  # type: ignore[method-assign]
    assert adapt(module).model is module.model
    assert not module.model._forward_hooks and not module.model._forward_hooks_with_kwargs  # type: ignore[union-attr]


def test_a_normalization_before_a_segmenter_is_kept() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")
    module = Normalizing(smp.Unet("resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(8, 8, 8)))
    adapter: Any = adapt(module.eval())
    assert adapter.mean == pytest.approx(MEAN) and adapter.std == pytest.approx(STD)


def test_a_normalization_inside_a_custom_segmenter_is_applied_once() -> None:
    module = Normalizing(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)), 255.0).eval()
    adapter = segmenter(module)
    assert torch.equal(adapter.prepare([IMAGE]).inputs, IMAGE[None] / torch.tensor(1 / 255))


def test_a_changed_image_before_a_detector_is_refused() -> None:
    normalizing = Normalizing(retinanet())
    normalizing.forward = lambda images: normalizing.model([image / 2 - 1 for image in images])  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"normalizes the image before model\.model.*Pass the inner network"):
        adapt(normalizing.eval())
    normalizing.forward = lambda images: normalizing.model([image.flip(0) for image in images])  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"changes the image before.*Pass the inner network, model\.model"):
        adapt(normalizing.eval())


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_modules_of_lightning_are_unwrapped_and_their_checkpoints_loaded(package: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip(package, reason=f"{package} is not installed")

    class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, classes: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net, self.loss = resnet18(num_classes=classes), nn.CrossEntropyLoss()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.loss(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Detector(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = retinanet()

    module = Classifier()
    trainer = lightning.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(module, torch.utils.data.DataLoader([(IMAGE, 1)]))
    trainer.save_checkpoint(tmp_path / "epoch.ckpt")
    given: Any = Classifier.load_from_checkpoint(tmp_path / "epoch.ckpt").eval()
    adapters = [adapt(given), load_model("resnet18", weights=tmp_path / "epoch.ckpt")]
    assert adapters[0].model is given.net
    first, second = (adapter.predict(IMAGE, top_k=3)[0].scores for adapter in adapters)
    assert torch.equal(first, second)
    detector = Detector().eval()
    assert adapt(detector, target_layers="net.backbone").model is detector.net


def test_a_missing_kernel_is_no_missing_forward_function() -> None:
    module = Module(retinanet())

    def forward(images: Any) -> Any:
        raise NotImplementedError("Could not run 'aten::q' with arguments from the 'CPU' backend")

    module.forward = forward  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="does not run the network inside it"):
        adapt(module.eval())


def test_a_loss_of_independent_classes_is_told(recwarn: pytest.WarningsRecorder) -> None:
    module = Module(own_network())
    module.loss = nn.BCEWithLogitsLoss()
    for options in ({"output": "multilabel"}, {"output": "logits"}):
        adapt(module.eval(), image_size=32, **options)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"has a BCEWithLogitsLoss.*Pass output='multilabel'"):
        adapt(module, image_size=32)


@pytest.mark.parametrize(("classes", "end"), [(1, nn.Identity()), (3, nn.Sigmoid())])
def test_a_loss_that_the_output_agrees_with_is_not_told(classes: int, end: nn.Module) -> None:
    module = Module(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes), end)
    )
    module.loss, module.unused = nn.BCEWithLogitsLoss(), nn.Linear(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(module.eval(), image_size=32)


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


class Silent(nn.Module):
    """As a LightningModule that is only trained: it has no forward function."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


UNCERTAIN = {
    "no forward function": (lambda: Silent(retinanet()), "has no forward function"),
    "no forward function, a classifier": (lambda: Silent(resnet18()), "has no forward function"),
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
