"""Numbers read from maps by hand; coherency and the harmonic means against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detcam import LayerCAM
from detcam.metrics import (
    ADCC,
    ARCC,
    Coherency,
    Complexity,
    DropInConfidence,
    Entropy,
    MetricWarning,
    ROADCombined,
    Sparseness,
)
from detcam.targets import ClassifierOutputTarget
from tests.helpers import TinyCNN, tensors

ONE_PIXEL = torch.zeros(4, 5)
ONE_PIXEL[1, 2] = 0.8
EVEN = torch.full((4, 5), 0.25)
STEPS = torch.tensor([[1.0, 3.0], [2.0, 2.0]])


def values(metric: Any, maps: Tensor) -> list[float]:
    return [float(value) for value in metric(maps)]


def test_by_hand() -> None:
    maps = torch.stack([ONE_PIXEL, EVEN])
    assert values(Complexity(), maps) == pytest.approx([0.8 / 20, 0.25])
    assert values(Sparseness(), maps) == pytest.approx([19 / 20, 0])  # (n - 1) / n for one pixel of n
    assert values(Entropy(), maps) == pytest.approx([0, 1])
    # sorted 1 2 2 3: weights -3 -1 1 3 give 6, over 4 * 8
    assert values(Sparseness(), STEPS[None]) == pytest.approx([6 / 32])
    shares = [1 / 8, 2 / 8, 2 / 8, 3 / 8]
    assert values(Entropy(), STEPS[None]) == pytest.approx([-sum(p * np.log(p) for p in shares) / np.log(4)])


def test_gini_is_the_mean_difference() -> None:
    """G = mean |a_i - a_j| / (2 mean a), over all pairs."""
    cam = torch.rand(6, 7)
    flat = cam.flatten().double()
    wanted = float((flat[:, None] - flat[None]).abs().mean() / (2 * flat.mean()))
    assert values(Sparseness(), cam[None]) == pytest.approx([wanted])
    assert values(Sparseness(), cam[None] * 3) == pytest.approx([wanted])


def test_maps_without_value() -> None:
    maps = torch.stack([torch.zeros(4, 5), ONE_PIXEL * torch.nan, ONE_PIXEL])
    with pytest.warns(MetricWarning):
        assert Sparseness()(maps).tolist()[2] == pytest.approx(0.95)
    for metric, known in ((Sparseness(), [0, 0, 1]), (Entropy(), [0, 0, 1]), (Complexity(), [1, 0, 1])):
        with pytest.warns(MetricWarning):
            assert (~np.isnan(metric(maps))).tolist() == [bool(k) for k in known]
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        Complexity()(EVEN)


INPUTS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
TARGETS = [ClassifierOutputTarget(0), ClassifierOutputTarget(2)]
MAPS = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(6))


def explainer(adapter: Any, images: Any, targets: Any) -> Any:
    return [maps.flip(-1) for maps in tensors(LayerCAM(adapter, [adapter.model.relu1])(images, targets))]


def test_coherency_is_the_correlation_with_the_map_of_the_product() -> None:
    model = TinyCNN()
    found = Coherency().measure(model, INPUTS, TARGETS, MAPS, method=explainer)
    for i in range(2):
        again = tensors(LayerCAM(model, [model.relu1])(INPUTS[i : i + 1] * MAPS[i], [TARGETS[i]]))[0].flip(-1)
        wanted = np.corrcoef(again.flatten().double(), MAPS[i].flatten().double())[0, 1]
        assert float(found[i]) == pytest.approx((wanted + 1) / 2, abs=1e-6)


def test_coherency_of_constant_and_alternating_maps() -> None:
    model = TinyCNN()
    same = Coherency().measure(model, INPUTS, TARGETS, MAPS, method=stubborn(1.0))
    turned = Coherency().measure(model, INPUTS, TARGETS, MAPS, method=stubborn(-1.0))
    np.testing.assert_allclose(same, 1, atol=1e-9)
    np.testing.assert_allclose(turned, 0, atol=1e-9)
    with pytest.raises(ValueError, match="method="):
        Coherency().measure(model, INPUTS, TARGETS, MAPS)
    with pytest.raises(ValueError, match="targets="):
        Coherency().measure(model, INPUTS, None, MAPS, method=stubborn(1.0))
    with pytest.raises(ValueError, match=r"of shape \(1, 16, 16\), one per target; got"):
        Coherency().measure(model, INPUTS, TARGETS, MAPS, method=lambda *_: [torch.zeros(1, 8, 8)])


def stubborn(sign: float) -> Any:
    """A method whose map of the product is a multiple of the map it was multiplied with, whatever the image."""
    calls = iter(range(2))

    def explain(adapter: Any, images: Any, targets: Any) -> list[Tensor]:
        return [sign * MAPS[next(calls)][None] + 3]

    return explain


def test_images_are_multiplied_before_preparation() -> None:
    image, heatmap = torch.rand(3, 20, 30), torch.rand(1, 20, 30)
    seen: list[Any] = []

    def explain(adapter: Any, images: Any, targets: Any) -> list[Tensor]:
        seen.append(images)
        return [torch.rand(1, 20, 30)]

    Coherency().measure(TinyCNN(), [image], [[TARGETS[0]]], [heatmap], method=explain)
    torch.testing.assert_close(seen[0][0], image * heatmap)


def test_harmonic_means() -> None:
    model = TinyCNN()
    call = (model, INPUTS, TARGETS, MAPS)
    coherency = Coherency().measure(*call, method=explainer)
    simple = 1 - Complexity().measure(*call)
    kept = 1 - DropInConfidence(relative=True).measure(*call)
    found = ADCC().measure(*call, method=explainer)
    torch.testing.assert_close(found, 3 / (1 / coherency + 1 / simple + 1 / kept), atol=1e-6, rtol=1e-6)
    arcc = ARCC()
    arcc.road = ROADCombined([20, 80], noise=0)
    road = (2 * arcc.road.measure(*call)).clamp(0, 1) + 1e-8
    found = arcc.measure(*call, method=explainer)
    torch.testing.assert_close(found, 3 / (1 / coherency + 1 / simple + 1 / road), atol=1e-6, rtol=1e-6)
