"""Registered quantities and user-defined box targets work on every detector, by name and as targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import detection

from detcam import GradCAM, adapt, explain
from detcam.adapters.base import Adapter
from detcam.methods import METHODS
from detcam.outputs import Candidates, DetectionTarget, as_target
from detcam.targets import (
    TARGETS,
    BoxTarget,
    ClassTarget,
    EdgesTarget,
    FunctionTarget,
    InstanceMaskTarget,
    MaskTarget,
    register_target,
    with_quantity,
)
from tests.helpers import TinyCNN

IMAGE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
MISSED = (10.0, 8.0, 40.0, 50.0)


@dataclass(frozen=True)
class Area(DetectionTarget):
    """The area of the predicted box times its class score; overrides nothing but `value`."""

    def value(self, candidates: Candidates, row: int) -> Tensor:
        x1, y1, x2, y2 = candidates.boxes_xyxy[row]
        return (x2 - x1) * (y2 - y1) * candidates.class_scores[row, self.label]


@dataclass(frozen=True)
class Objectness(DetectionTarget):
    """Reads the objectness alone, without saying so."""

    def value(self, candidates: Candidates, row: int) -> Tensor:
        assert candidates.objectness is not None
        return candidates.objectness[row]


def faster_rcnn() -> Adapter:
    return _adapter(detection.fasterrcnn_mobilenet_v3_large_320_fpn, box_score_thresh=0.0, min_size=64, max_size=64)


def fcos() -> Adapter:
    return _adapter(detection.fcos_resnet50_fpn, score_thresh=0.0, min_size=64, max_size=64)


def ssd() -> Adapter:
    return _adapter(detection.ssdlite320_mobilenet_v3_large, score_thresh=0.0)


def _adapter(make: Callable[..., Any], **options: Any) -> Adapter:
    torch.manual_seed(0)
    return adapt(make(weights=None, weights_backbone=None, num_classes=4, **options).eval())


@pytest.fixture
def box_area() -> Iterator[str]:
    @register_target("test_box_area")
    def function(output: Any, target: BoxTarget) -> Tensor:
        x1, y1, x2, y2 = output.candidates([target]).boxes_xyxy[0]
        return (x2 - x1) * (y2 - y1)

    yield "test_box_area"
    TARGETS.unregister("test_box_area")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [faster_rcnn, fcos, ssd])
def test_a_custom_detection_target_works_on_every_detector(make: Callable[[], Adapter], box_area: str) -> None:
    adapter = make()
    plain = BoxTarget(MISSED, 1)
    names = ("x1", "y1", "x2", "y2", "width", "height", "score", "logit")
    targets = [with_quantity(plain, name) for name in names]
    result = GradCAM(adapter).explain(IMAGE, [[*targets, Area(MISSED, 1), with_quantity(plain, box_area)]])[0]
    values = dict(zip((*names, "product", "area"), result.scores.tolist(), strict=True))
    area = (values["x2"] - values["x1"]) * (values["y2"] - values["y1"])
    assert values["area"] == pytest.approx(area, rel=1e-3, abs=1e-2)
    assert values["product"] == pytest.approx(area * values["score"], rel=1e-3, abs=1e-2)
    assert result.heatmaps.shape == (10, 64, 64)


@pytest.mark.filterwarnings("ignore")
def test_a_two_stage_detector_gives_the_objectness_to_a_target_that_reads_it() -> None:
    adapter = faster_rcnn()
    targets = [BoxTarget(MISSED, 1, quantity="objectness"), Objectness(MISSED, 1), BoxTarget(MISSED, 1)]
    known, custom, score = GradCAM(adapter).explain(IMAGE, [targets])[0].scores.tolist()
    assert custom == pytest.approx(known, rel=1e-5) and score != pytest.approx(known, rel=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["gradcam", "drise:passes=4", "occlusion:grid=2,window=1,refine=none"])
def test_a_registered_quantity_works_by_name(box_area: str, method: str) -> None:
    adapter = fcos()
    explanation = explain(adapter, IMAGE, method, quantity=box_area, score_threshold=0, top_k=2, aug_smooth=True)[0]
    assert len(explanation) == 2 and explanation.captions[0].startswith("test_box_area of class")
    assert explanation.box_xyxy(0) is not None


def test_a_registered_quantity_reads_class_scores() -> None:
    @register_target("test_margin")
    def margin(output: Tensor, target: ClassTarget) -> Tensor:
        others = torch.arange(len(output)) != target.category
        return output[target.category] - output[others].mean()

    try:
        adapter = adapt(TinyCNN(), names=["cat", "dog", "cow"])
        explanation = explain(adapter, IMAGE, "gradcam", labels=["dog"], quantity="test_margin")[0]
        assert isinstance(explanation.targets[0], FunctionTarget)
        assert explanation.captions[0].startswith("test_margin of dog")
        assert METHODS["gradcam"](adapter).explain(IMAGE, [ClassTarget(1)])[0].scores != explanation.scores
    finally:
        TARGETS.unregister("test_margin")


def test_builtin_quantities_are_registered() -> None:
    plain = BoxTarget(MISSED, 1)
    assert [with_quantity(plain, name).quantity for name in TARGETS] == list(TARGETS)  # type: ignore[attr-defined]
    assert isinstance(with_quantity(plain, "mask"), InstanceMaskTarget)
    assert isinstance(with_quantity(plain, "edges"), EdgesTarget)
    output = fcos()
    with torch.no_grad():
        batch = output.prepare([IMAGE])
        model_output = output.outputs(output.forward(batch), batch)[0]
        assert float(TARGETS["width"](model_output, plain)) == float(
            BoxTarget(MISSED, 1, quantity="width")(model_output)
        )


def test_invalid_quantities() -> None:
    with pytest.raises(ValueError, match="no quantity is named 'widht'; did you mean width"):
        with_quantity(BoxTarget(MISSED, 1), "widht")
    with pytest.raises(ValueError, match="is for boxes"):
        with_quantity(MaskTarget(1), "mask")
    with pytest.raises(ValueError, match="class 1 against itself"):
        with_quantity(ClassTarget(1), "score", 1)
    with pytest.raises(ValueError, match="against= compares"):
        with_quantity(BoxTarget(MISSED, 1), "edges", 2)
    with pytest.raises(ValueError, match="a quantity named 'score' exists already"):
        register_target("score")(lambda output, target: output)
    with pytest.raises(TypeError, match="expected a function"):
        TARGETS.register("nothing", 3)  # type: ignore[arg-type]


def test_a_plain_callable_has_every_attribute_of_a_target() -> None:
    def third(output: Tensor) -> Tensor:
        return output[2]

    target = as_target(third)
    assert (target.label, target.box_xyxy, target.quantity, target.has_position) == (None, None, None, False)
    assert target.describe({}) == "third" and target.hflip(8) is third
    assert as_target(BoxTarget(MISSED, 1)).label == 1 and as_target(ClassTarget(2)).label == 2


def test_a_registration_without_a_name_is_refused() -> None:
    with pytest.raises(TypeError, match="expected the name of the quantity"):
        register_target(lambda output, target: output.sum())  # type: ignore[arg-type]


def test_a_class_name_that_was_not_looked_up_is_refused() -> None:
    for label in ("boat", None):
        with pytest.raises(TypeError, match=rf"expected a class index as label; got {label!r}.*target.named"):
            BoxTarget((0, 0, 4, 4), label).check((8, 8), {}, 2)  # type: ignore[arg-type]
