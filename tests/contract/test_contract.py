"""What every method owes to every adapter: maps of the right images, scores that were reported, a model left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import METHODS
from detcam.cam import BaseCAM
from detcam.methods.common.attention_base import AttentionCAM, NoAttentionError
from detcam.targets import SimilarityToConceptTarget
from tests.helpers import Snapshot
from tests.zoo import ZOO, Example, example

pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = {"classification", "embedding", "segmentation", "detection"}


QUICK: dict[str, dict[str, Any]] = {
    "scorecam": {"top_channels": 4},
    "rise": {"passes": 20},
    "drise": {"passes": 20},
    "occlusion": {"grid": 4},
    "vps": {"regions": 4},
    "sess": {"scales": 2},
}
"""For methods of many passes, how to take few."""


def make(method: str, case: Example) -> BaseCAM:
    """A method on an adapter, or a skip where it says that it does not serve that kind of model."""
    cam = METHODS[method](case.adapter, **QUICK.get(method, {}))
    if case.adapter.task not in getattr(cam, "tasks", TASKS):
        pytest.skip(f"{method} does not explain {case.adapter.task}")
    if isinstance(cam, AttentionCAM):
        try:
            cam.explain(case.images, asked(case))
        except NoAttentionError as reason:
            pytest.skip(str(reason))
    return cam


def asked(case: Example) -> list[Any]:
    """Per image what to explain: what the model found, or likeness to a concept for an embedding."""
    if case.adapter.task == "embedding":
        concept = torch.randn(5, generator=torch.Generator().manual_seed(2))
        return [[SimilarityToConceptTarget(concept)] for _ in case.images]
    return [one.filter(top_k=2) for one in case.adapter.predict(case.images)]


@pytest.fixture(scope="module", params=list(ZOO))
def case(request: pytest.FixtureRequest) -> Example:
    return example(request.param)


@pytest.mark.parametrize("method", list(METHODS))
def test_maps_scores_and_a_model_left_alone(case: Example, method: str) -> None:
    cam = make(method, case)
    model = case.model
    model.requires_grad_(True)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = Snapshot(model)
    found = asked(case)
    before.check()
    results = cam.explain(case.images, found)
    before.check()
    assert sum(len(one) for one in found) > 0, "the example finds nothing, so nothing was tested"
    for image, one, result in zip(case.images, found, results, strict=True):
        assert result.heatmaps.shape == (len(one), *image.shape[-2:])
        assert result.heatmaps.dtype == torch.float32 and torch.isfinite(result.heatmaps).all()
        assert float(result.heatmaps.amin()) >= 0 and float(result.heatmaps.amax()) <= 1
        if case.adapter.task == "detection":
            torch.testing.assert_close(result.scores, one.scores, atol=1e-4, rtol=0)
        peaks = result.heatmaps.flatten(1).amax(1)
        assert ((peaks > 0.999) | (peaks == 0)).all(), "a map is neither normalised nor empty"
    assert any(float(result.heatmaps.amax()) > 0.999 for result in results), "every map is empty"


class Interrupted(Exception):
    """Raised half-way on purpose."""


@pytest.mark.parametrize("method", list(METHODS))
def test_a_failure_half_way_leaves_the_model_alone(case: Example, method: str) -> None:
    cam = make(method, case)
    before = Snapshot(case.model)

    def failing_target(output: Any) -> Tensor:
        raise Interrupted

    with pytest.raises(Interrupted):
        cam.explain(case.images, [[failing_target], [failing_target]])
    before.check()
    targets = asked(case)
    layers = [module for module in case.model.modules() if isinstance(module, nn.Conv2d)]
    layer = layers[1]  # which every pass runs; a head may rest where the targets are known
    plain = layer.forward

    def failing_layer(*inputs: Any, **kwargs: Any) -> Tensor:
        raise Interrupted

    layer.forward = failing_layer  # type: ignore[method-assign]
    try:
        with pytest.raises(Interrupted):
            cam.explain(case.images, targets)
    finally:
        layer.forward = plain  # type: ignore[method-assign]
        del layer.forward
    before.check()


def test_nothing_found_is_a_normal_case(case: Example) -> None:
    if case.adapter.task not in ("detection", "segmentation"):
        pytest.skip("a classifier always finds a top class, and an embedding finds nothing")
    nothing = [one[[]] for one in case.adapter.predict(case.images)]
    for image, result in zip(case.images, METHODS["gradcam"](case.adapter).explain(case.images, nothing), strict=True):
        assert result.heatmaps.shape == (0, *image.shape[-2:])


def test_company_and_order_change_nothing(case: Example) -> None:
    cam = METHODS["hirescam"](case.adapter)
    found = asked(case)
    together = cam.explain(case.images, found)
    for image, one, result in zip(case.images, found, together, strict=True):
        alone = cam.explain(image, [one])[0]
        torch.testing.assert_close(alone.heatmaps, result.heatmaps, atol=1e-4, rtol=0)
    swapped = cam.explain(case.images[::-1], found[::-1])[::-1]
    for first, second in zip(together, swapped, strict=True):
        torch.testing.assert_close(first.heatmaps, second.heatmaps, atol=1e-4, rtol=0)
