"""Subclasses of targets, outputs and methods: what is missing is an error when the class is created."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detcam import BaseCAM, DetectionTarget, DetectorOutput
from detcam.perturbation.base import InputCAM
from detcam.targets import BaseTarget, ClassTarget, InstanceMaskTarget
from detcam.testing import tiny_classifier


def formula(*args: Any) -> Tensor:
    return torch.zeros(())


@pytest.mark.parametrize(
    ("base", "body", "message"),
    [
        (BaseTarget, {}, r"target class Mine is incomplete; add to it:\s+def __call__\(self, output\)"),
        (DetectionTarget, {}, r'def value\(self, candidates, row\): .*; or instead\s+part = "output"'),
        (DetectionTarget, {"__call__": formula}, r"def value\(self, candidates, row\)"),
        (DetectionTarget, {"part": "output"}, r'def __call__\(self, output\): .* part is "output"'),
        (DetectionTarget, {"part": "head", "value": formula}, r"part = \.\.\..* 'box', 'mask', 'output'; not 'head'"),
        (
            DetectorOutput,
            {"candidates": formula},
            r"output class Mine is incomplete; add to it:\s+def detections\(",
        ),
        (DetectorOutput, {"detections": formula}, r"def candidates\(self, targets\)"),
        (InputCAM, {"name": "mine"}, r"method class Mine is incomplete; add to it:\s+def maps\(self, scorer\)"),
    ],
)
def test_missing_formula_is_named_at_class_creation(base: type, body: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message + r"(.|\n)*class Mine\(\.\.\., abstract=True\)"):
        type("Mine", (base,), body)


@pytest.mark.parametrize(
    ("base", "body"),
    [
        (BaseTarget, {"__call__": formula}),
        (DetectionTarget, {"value": formula}),
        (DetectionTarget, {"part": "output", "__call__": formula}),
        (InstanceMaskTarget, {}),
        (DetectorOutput, {"candidates": formula, "detections": formula}),
    ],
)
def test_complete_class(base: type, body: dict[str, Any]) -> None:
    assert issubclass(type("Mine", (base,), body), base)


@pytest.mark.parametrize("base", [BaseTarget, DetectionTarget, DetectorOutput])
def test_abstract_class_needs_no_formula(base: type) -> None:
    shared = type(base)("Shared", (base,), {}, abstract=True)
    with pytest.raises(TypeError, match="incomplete"):
        type("Mine", (shared,), {})


class ReciprocalCAM(BaseCAM):
    """Divides by the weight of the first target's image, which is set to 0."""

    name = "reciprocalcam"

    def __init__(self, model: Any, divisor: float) -> None:
        super().__init__(model)
        self.divisor = divisor

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        weights = gradients.mean((2, 3))
        weights[1:] /= weights[1:] * self.divisor
        return weights


@pytest.mark.parametrize("aug_smooth", [False, True])
def test_map_with_nan_is_an_error_that_names_method_and_target(aug_smooth: bool) -> None:
    images, targets = torch.rand(2, 3, 32, 32), [ClassTarget(0), ClassTarget(1)]
    model = tiny_classifier()
    assert ReciprocalCAM(model, 1.0)(images, targets, aug_smooth=aug_smooth).shape == (2, 32, 32)
    message = r"ReciprocalCAM returned NaN or infinity in the map of 1 of 2 targets \(.* in image 2\)\. Check its"
    with pytest.raises(RuntimeError, match=message):
        ReciprocalCAM(model, 0.0)(images, targets, aug_smooth=aug_smooth)
