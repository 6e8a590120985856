"""The contract checks reject what breaks a rule, and name it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam.adapters.custom_detector import CustomDetectorAdapter
from detcam.cam import BaseCAM
from detcam.detections import Detections
from detcam.methods.hires_cam import HiResCAM
from detcam.metrics import Metric
from detcam.testing import check_adapter, check_method, check_metric, check_target, tiny_classifier, tiny_detector
from detcam.testing.models import random_images


class Unscaled(HiResCAM):
    name = "unscaled"

    def combine(self, levels: Any, geometry: Any) -> Tensor:
        return super().combine(levels, geometry) / 2


class Trains(HiResCAM):
    name = "trains"

    def compute(self, *args: Any, **options: Any) -> Any:
        next(self.model.parameters()).data += 0.1
        return super().compute(*args, **options)


class KeepsAHook(HiResCAM):
    name = "keepsahook"

    def compute(self, *args: Any, **options: Any) -> Any:
        self.model.register_forward_hook(lambda module, inputs, output: None)
        return super().compute(*args, **options)


class SeesTheBatch(HiResCAM):
    name = "seesthebatch"

    def compute(self, request: Any, **options: Any) -> Any:
        results = super().compute(request, **options)
        if len(results) > 1:
            for result in results:
                result.heatmaps[:] = result.heatmaps[..., ::-1].copy()
        return results


class Swallows(HiResCAM):
    name = "swallows"

    def compute(self, *args: Any, **options: Any) -> Any:
        try:
            return super().compute(*args, **options)
        except Exception as error:
            if "Interrupted" not in type(error).__name__:
                raise
            return []


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (Unscaled, "neither normalized to 1 nor empty"),
        (Trains, "has another value than before the call"),
        (KeepsAHook, "the hooks of .* differ from before the call"),
        (SeesTheBatch, "change when it is explained alone"),
        (Swallows, "was not passed on to the caller"),
    ],
)
def test_methods(method: type[BaseCAM], match: str) -> None:
    check_method(HiResCAM, tiny_classifier())
    with pytest.raises(AssertionError, match=match):
        check_method(method, tiny_classifier())


class Wrong(Metric):
    name, range, higher_is_better = "wrong", (0.0, 1.0), True
    calls = 0

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def value(self, image: Any) -> Tensor:
        mean = image.heatmaps.mean((1, 2))
        self.calls += 1
        return {"range": mean + 2, "state": mean * 0 + self.calls / 100, "none": mean}[self.fault]


@pytest.mark.parametrize(("fault", "match"), [("range", "outside of wrong's range"), ("state", "other values|alone")])
def test_metrics(fault: str, match: str) -> None:
    check_metric(Wrong("none"))
    with pytest.raises(AssertionError, match=match):
        check_metric(Wrong(fault), tiny_classifier())


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("order", "sort by score"),
        ("score", "the detection was reported with"),
        ("batch", "predictions change when an image comes alone"),
        ("bytes", "prepare makes other inputs of uint8 images"),
    ],
)
def test_adapters(fault: str, match: str) -> None:
    class WrongAdapter(CustomDetectorAdapter):
        takes_bytes = fault == "bytes"

        def prepare(self, images: Any) -> Any:
            return super().prepare([image.float() for image in images])

        def detections(self, outputs: Any, batch: Any) -> list[Detections]:
            found = super().detections(outputs, batch)
            if fault == "batch" and len(found) > 1:
                return [one[[0]] for one in found]
            if fault == "score":
                return [Detections(**{**vars(one), "scores": one.scores * 0.5}) for one in found]
            return found

        def select(self, *args: Any, **options: Any) -> Detections:
            found = super().select(*args, **options)
            return found[list(range(len(found)))[::-1]] if fault == "order" else found

    good = tiny_detector()
    images = [random_images()[0], random_images(5)[0]]
    check_adapter(good, images)
    wrong = WrongAdapter(good.model, good.decode, image_size=96, max_detections=3)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match=match):
        check_adapter(wrong, images)


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (lambda scores: scores[0] * float("nan"), "expected finite numbers"),
        (lambda scores: scores[0] + float(np.random.default_rng().random()), "another value at a second call"),
    ],
)
def test_targets(target: Any, match: str) -> None:
    check_target(lambda scores: scores[0], tiny_classifier())
    with pytest.raises(AssertionError, match=match):
        check_target(target, tiny_classifier())


def test_methods_are_checked_by_name() -> None:
    check_method("hirescam", tiny_classifier())
    with pytest.raises(ValueError, match="no method is named 'hirescan'; did you mean hirescam"):
        check_method("hirescan")


def test_a_model_is_no_adapter() -> None:
    with pytest.raises(TypeError, match="expected an adapter"):
        check_adapter(nn.Conv2d(3, 1, 1))  # type: ignore[arg-type]
    assert torch.is_grad_enabled()
