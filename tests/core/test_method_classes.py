"""Requirements of a method class, and attributes of a method that a user may set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from detcam import (
    METHODS,
    RISE,
    BaseCAM,
    EmptyMapWarning,
    FinerCAM,
    GradCAM,
    LayerCAM,
    adapt,
    explain,
    get_method,
    register_method,
)
from detcam.methods.spec import parse_method
from detcam.targets import ClassifierOutputTarget
from tests.helpers import TinyCNN

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TARGETS = [ClassifierOutputTarget(1)] * 2


@pytest.fixture
def registered() -> Iterator[type[BaseCAM]]:
    @register_method
    class TestMeanGradient(BaseCAM):
        name = "testmeangradient"

        def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
            return gradients.mean((2, 3))

    yield TestMeanGradient
    METHODS.unregister("testmeangradient")


def test_a_method_of_five_lines_equals_gradcam(registered: type[BaseCAM]) -> None:
    model = TinyCNN()
    expected = GradCAM(model, [model.conv2])(IMAGES, TARGETS)
    np.testing.assert_array_equal(registered(model, [model.conv2])(IMAGES, TARGETS), expected)
    assert get_method("test-mean-gradient") is registered and parse_method("testmeangradient") is registered
    assert (registered.paper, registered.cost, registered.use) == ("", "", "")
    explanation = explain(adapt(model, target_layers=[model.conv2]), IMAGES[0], "testmeangradient", labels=[1])[0]
    assert explanation.method == "testmeangradient" and isinstance(explanation.heatmaps, np.ndarray)


def test_a_method_must_define_its_name() -> None:
    with pytest.raises(TypeError, match="Mine does not define a name.*add name = 'mine'"):

        class Mine(GradCAM):
            pass


def test_a_method_needs_a_formula() -> None:
    with pytest.raises(TypeError, match="Mine has no formula: define weights"):

        class Mine(BaseCAM):
            name = "mine"


def test_an_abstract_base_class_needs_neither() -> None:
    class Base(BaseCAM, abstract=True):
        pass

    with pytest.raises(TypeError, match="does not define a name"):

        class Mine(Base):
            pass


def test_only_methods_are_registered() -> None:
    with pytest.raises(TypeError, match="expected a subclass of detcam.BaseCAM"):
        register_method(TinyCNN)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="under its name 'gradcam'"):
        METHODS.register("mine", GradCAM)
    with pytest.raises(ValueError, match="a method named 'layercam' exists already"):

        @register_method
        class Other(GradCAM):
            name = "layercam"


@pytest.mark.parametrize("method", [GradCAM, LayerCAM, FinerCAM])
def test_assigned_target_layers_take_effect(method: type[BaseCAM]) -> None:
    model = TinyCNN()
    cam = method(model, [model.conv2])
    cam.target_layers = [model.conv1]
    assert cam.target_layers == [model.conv1]
    np.testing.assert_array_equal(cam(IMAGES, TARGETS), method(model, [model.conv1])(IMAGES, TARGETS))
    cam.target_layers = ["conv2"]  # type: ignore[list-item]
    np.testing.assert_array_equal(cam(IMAGES, TARGETS), method(model, [model.conv2])(IMAGES, TARGETS))
    with pytest.raises(ValueError, match="no layer named 'nothing'"):
        cam.target_layers = ["nothing"]  # type: ignore[list-item]


def test_a_method_without_layers_raises() -> None:
    cam = RISE(TinyCNN())
    with pytest.raises(ValueError, match="RISE has no target layers"):
        cam.target_layers = [cam.model]


def test_an_assigned_reshape_transform_takes_effect() -> None:
    model = TinyCNN()
    cam = GradCAM(model, [model.conv2])
    cam.reshape_transform = lambda tensor: tensor[..., :2]
    assert cam.explain(IMAGES, TARGETS)[0].saliency[0].shape[-1] == 2


@pytest.mark.filterwarnings("ignore")
def test_heatmaps_are_arrays_and_saliency_is_a_tensor() -> None:
    model = TinyCNN()
    cam = GradCAM(model, [model.conv2])
    stacked = cam(IMAGES, TARGETS)
    assert isinstance(stacked, np.ndarray) and stacked.shape == (2, 16, 16) and stacked.dtype == np.float32
    listed = cam(list(IMAGES), [[TARGETS[0]] * 3, []])
    assert [maps.shape for maps in listed] == [(3, 16, 16), (0, 16, 16)]
    assert all(isinstance(maps, np.ndarray) and maps.dtype == np.float32 for maps in listed)
    result = cam.explain(IMAGES, TARGETS, aug_smooth=True)[0]
    assert isinstance(result.heatmaps, np.ndarray) and result.heatmaps.dtype == np.float32
    assert isinstance(result.saliency[0], Tensor)


def test_one_target_is_singular() -> None:
    cam = GradCAM(TinyCNN(), ["conv2"])
    with pytest.warns(EmptyMapWarning, match="the gradient of 1 of 1 target is zero"):
        cam(IMAGES[:1], [lambda logits: (logits * 0).sum()])
    with pytest.warns(EmptyMapWarning, match="the gradient of 2 of 2 targets is zero"):
        cam(IMAGES, [lambda logits: (logits * 0).sum()] * 2)
