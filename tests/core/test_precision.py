"""Models in half precision, on the CPU: every method runs, and its maps are near those in float32."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from detcam import METHODS, GradCAM, HiResCAM, adapt
from detcam.adapters.base import Adapter
from detcam.adapters.torchvision.detector import scores_of_regions
from detcam.targets import ClassifierOutputTarget, FinerWeightedTarget
from detcam.trace import gradients_of
from tests.helpers import Snapshot, TinyCNN
from tests.zoo import QUICK, applies, example

pytestmark = pytest.mark.filterwarnings("ignore")

LIKE = 0.95
"""Least correlation with the map in float32."""
ROUNDED = {
    # What counts as strong is decided by a threshold, which rounding crosses.
    ("fem", "cnn"): 0.85,
    # Its weights divide by a channel's sum, which after a normalization is close to zero.
    ("xgradcam", "vit"): None,
}


def vit() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=3).eval()
    nn.init.normal_(model.heads[0].weight)
    return model


DTYPES = {
    "cnn": [torch.float16, torch.bfloat16],
    "vit": [torch.float16],
    "faster_rcnn": [torch.bfloat16],
    "own_detector": [torch.bfloat16],
}
"""The dtypes in which each kind of model is explained."""


def build(kind: str) -> tuple[Adapter, Tensor]:
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
    if kind == "cnn":
        return adapt(TinyCNN(), image_size=32), image
    if kind == "vit":
        return adapt(vit()), image
    case = example(kind)
    return case.adapter, case.images[0]


@cache
def targets(kind: str) -> list[Any]:
    adapter, image = build(kind)
    if adapter.task == "classification":
        return [ClassifierOutputTarget(1)]
    return adapter.targets_of(adapter.predict(image)[0].filter(top_k=1))


def explained(kind: str, name: str, dtype: torch.dtype) -> Tensor:
    adapter, image = build(kind)
    adapter.model.to(dtype)
    cam = METHODS[name](adapter, **QUICK.get(name, {}))
    selected = targets(kind)
    before = Snapshot(adapter.model)
    result = cam.explain(image, [selected])[0]
    before.check()
    assert torch.as_tensor(result.heatmaps).dtype == torch.float32
    assert all(level.dtype.itemsize >= 4 for level in result.saliency), "sums were taken in half precision"
    return torch.as_tensor(result.heatmaps)[0]


@pytest.mark.parametrize(
    ("kind", "dtype", "name"),
    [
        (kind, dtype, name)
        for kind, dtypes in DTYPES.items()
        for dtype in dtypes
        for name in METHODS
        if applies(name, {"cnn": "classifier"}.get(kind, kind))
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_every_method_explains_models_in_half_precision(kind: str, dtype: torch.dtype, name: str) -> None:
    expected = explained(kind, name, torch.float32)
    actual = explained(kind, name, dtype)
    least = ROUNDED.get((name, kind), LIKE)
    if least is not None:
        assert float(torch.corrcoef(torch.stack([expected.flatten(), actual.flatten()]))[0, 1]) > least


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_two_stage_detector_has_equal_detections_in_half_precision(dtype: torch.dtype) -> None:
    adapter, image = build("faster_rcnn")
    expected = adapter.predict(image)[0]
    adapter.model.to(dtype)
    actual = adapter.predict(image)[0]
    assert actual.boxes_xyxy.dtype == torch.float32 and len(actual) == len(expected)
    torch.testing.assert_close(actual.scores, expected.scores, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["ablationcam", "probecam", "occlusion", "drise"])
def test_methods_that_compare_scores_run_in_float32_under_autocast(name: str) -> None:
    expected = explained("own_detector", name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = explained("own_detector", name, torch.float32)
        assert torch.is_autocast_enabled("cpu")
    assert expected.any()
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0)


def test_small_float16_gradients_are_scaled_in_guided_backpropagation() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def faint(output: Tensor) -> Tensor:
        return output[1] * 2e-7

    maps = [
        torch.as_tensor(METHODS["guidedbackprop"](model).explain(image, [[faint]])[0].heatmaps).flatten()
        for model in (TinyCNN(), TinyCNN().half())
    ]
    assert float(torch.corrcoef(torch.stack(maps))[0, 1]) > 0.99


def test_small_float16_gradients_are_scaled() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def faint(output: Tensor) -> Tensor:
        return output[1] * 2e-7  # the gradient of a saturated score

    expected = GradCAM(TinyCNN()).explain(image, [[faint]])[0]
    half = TinyCNN().half()
    actual = GradCAM(half).explain(image, [[faint]])[0]
    torch.testing.assert_close(torch.as_tensor(actual.heatmaps), torch.as_tensor(expected.heatmaps), atol=0.05, rtol=0)
    # Gradients too large to be scaled up are taken as they are.
    strong = HiResCAM(half).explain(image, [[lambda output: output[1] * 600]])[0]
    plain = HiResCAM(TinyCNN()).explain(image, [[lambda output: output[1] * 600]])[0]
    torch.testing.assert_close(torch.as_tensor(strong.heatmaps), torch.as_tensor(plain.heatmaps), atol=0.05, rtol=0)


def test_small_float16_gradients_of_regions_are_scaled() -> None:
    regions = [torch.ones(1, 2, 3, 3, dtype=torch.float16, requires_grad=True) for _ in range(2)]
    scores = scores_of_regions(regions, lambda part, _: [region.sum().float() * 1e-8 for region in part])
    for region, score in zip(regions, scores, strict=True):
        (gradient,) = gradients_of(score, [region], retain_graph=False)
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.full_like(gradient, 1e-8), rtol=0.01, atol=0)


def test_comparisons_with_unlikely_classes_stay_finite_in_float16() -> None:
    logits = torch.tensor([30.0, 2.0, 1.0]).half().requires_grad_(True)
    value = FinerWeightedTarget(0, [1, 2], 0.6)(logits)
    value.backward()
    expected = FinerWeightedTarget(0, [1, 2], 0.6)(torch.tensor([30.0, 2.0, 1.0]))
    torch.testing.assert_close(float(value.detach()), float(expected), rtol=1e-3, atol=0)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_half_precision_raises_no_warning() -> None:
    model = TinyCNN().bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradCAM(model)(torch.rand(1, 3, 32, 32), [ClassifierOutputTarget(0)])
