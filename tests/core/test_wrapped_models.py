"""Wrapped models: compiled as a whole or in part, and data-parallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import METHODS, GradCAM, LayerCAM, adapt
from detcam.targets import ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN, tensors
from tests.zoo import QUICK, example

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TARGETS = [ClassifierOutputTarget(1), ClassifierOutputTarget(0)]
KINDS = ("gradcam", "ablationcam", "scorecam", "reciprocam", "fullgrad", "guidedbackprop", "reachcam", "sess")


class Calls:
    """A compiler backend that runs the graph unchanged and counts calls."""

    def __init__(self) -> None:
        self.graphs = 0
        self.runs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*values: Any) -> Any:
            self.runs += 1
            return graph.forward(*values)

        return run


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def partly_compiled(model: nn.Module) -> nn.Module:
    name, part = list(model.named_children())[0]
    setattr(model, name, torch.compile(part, backend="eager"))
    return model


WRAPPERS = (compiled, compiled_in_place, partly_compiled, nn.DataParallel)


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_a_wrapped_classifier_is_explained_as_the_plain_one(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, model = TinyCNN(), wrap(TinyCNN())
    model(IMAGES)  # compiled before its layers are hooked
    for name in KINDS:
        expected = tensors(METHODS[name](plain, **QUICK.get(name, {}))(IMAGES, TARGETS))
        actual = tensors(METHODS[name](model, **QUICK.get(name, {}))(IMAGES, TARGETS))
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_layers_are_given_as_modules_of_the_wrapper_or_by_name(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(TinyCNN())
    layer = next(module for name, module in model.named_modules() if name.endswith("relu2"))
    expected = tensors(LayerCAM(TinyCNN(), ["relu2"])(IMAGES, TARGETS))
    for layers in ([layer], ["relu2"]):
        torch.testing.assert_close(tensors(LayerCAM(model, layers)(IMAGES, TARGETS)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
@pytest.mark.parametrize("wrap", [compiled, partly_compiled, nn.DataParallel], ids=lambda wrap: wrap.__name__)
def test_a_wrapped_detector_is_explained_as_the_plain_one(name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    case = example(name)
    detections = [item.filter(top_k=2) for item in case.adapter.predict(case.images)]
    expected = tensors(GradCAM(case.adapter)(case.images, detections))
    model = wrap(example(name).model)
    adapter = adapt(model)
    again = [item.filter(top_k=2) for item in adapter.predict(case.images)]
    for wrapped, plain in zip(again, detections, strict=True):
        assert wrapped.source == plain.source
    for actual, heatmaps in zip(tensors(GradCAM(adapter)(case.images, again)), expected, strict=True):
        torch.testing.assert_close(actual, heatmaps, atol=1e-5, rtol=0)


def test_a_compiled_model_stays_compiled_and_is_not_compiled_again() -> None:
    calls = Calls()
    model = TinyCNN()
    model.compile(backend=calls)
    with torch.no_grad():
        expected = model(IMAGES)
    graphs, runs = calls.graphs, calls.runs
    before = Snapshot(model)
    GradCAM(model, ["conv1"])(IMAGES, TARGETS)
    GradCAM(model, ["conv2"])(IMAGES, TARGETS)
    before.check()
    assert (calls.graphs, calls.runs) == (graphs, runs), "compiled code ran while hooks were on"
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), expected)
    assert calls.graphs == graphs and calls.runs == runs + 1, "the model does not run compiled any more"


def test_an_error_while_a_compiled_model_is_explained_leaves_it_compiled() -> None:
    calls = Calls()
    model = TinyCNN()
    model.compile(backend=calls)

    def failing(output: Tensor) -> Tensor:
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        GradCAM(model, ["conv2"])(IMAGES[:1], [failing])
    with torch.no_grad():
        model(IMAGES)
    assert calls.runs == 1
