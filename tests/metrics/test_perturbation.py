"""Metrics that change the image once or at percentiles: against loops, by hand, and at the ends of their range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam.metrics import (
    AveragerAcrossThresholds,
    CamMultImageConfidenceChange,
    DropInConfidence,
    IncreaseInConfidence,
    MetricWarning,
    NoisyLinearImputer,
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveLeastRelevantFirstAverage,
    RemoveMostRelevantFirst,
    RemoveMostRelevantFirstAverage,
    ROADCombined,
    ROADLeastRelevantFirstAverage,
    ROADMostRelevantFirst,
    ROADMostRelevantFirstAverage,
)
from detcam.targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget, RawScoresOutputTarget
from tests.helpers import Snapshot, TinyCNN


class Patch(nn.Module):
    """The mean brightness of the upper left quarter: the evidence is there and nowhere else."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x[:, :, :half, :half].mean((1, 2, 3))[:, None]


IMAGE = torch.zeros(1, 3, 16, 16)
IMAGE[:, :, :8, :8] = 1
TRUE = IMAGE[:, 0].clone()
TARGET = [RawScoresOutputTarget()]


def test_confidence_by_hand() -> None:
    model = Patch().eval()
    half = TRUE * 0.5
    changed = [(1, TRUE, 0.0, 0.0), (1, 1 - TRUE, -1.0, 1.0), (1, half, -0.5, 0.5)]
    for _, cam, change, drop in changed:
        assert CamMultImageConfidenceChange()(IMAGE, cam, TARGET, model).item() == pytest.approx(change)
        assert DropInConfidence()(IMAGE, cam, TARGET, model).item() == pytest.approx(drop)
        assert IncreaseInConfidence()(IMAGE, cam, TARGET, model).item() == 0
    dim = IMAGE * 0.5
    assert DropInConfidence()(dim, half, TARGET, model).item() == pytest.approx(0.25)
    assert DropInConfidence(relative=True)(dim, half, TARGET, model).item() == pytest.approx(0.5)
    brighter = CamMultImageConfidenceChange()(dim, TRUE * 2, TARGET, model).item()
    assert brighter == pytest.approx(0.5)
    assert IncreaseInConfidence()(dim, TRUE * 2, TARGET, model).item() == 1
    assert DropInConfidence()(dim, TRUE * 2, TARGET, model).item() == 0
    assert CamMultImageConfidenceChange()(dim, TRUE * 2, TARGET, model, return_diff=False).item() == pytest.approx(1)
    with pytest.warns(MetricWarning):
        assert np.isnan(DropInConfidence(relative=True)(IMAGE * 0, TRUE, TARGET, model)).all()


def test_removal_by_hand() -> None:
    """A quarter of the image is the evidence: at the 75th percentile it goes alone, or stays alone."""
    model = Patch().eval()
    rough = TRUE + 0.01 * torch.rand(1, 16, 16)
    mean = 0.25
    most = RemoveMostRelevantFirstAverage([75], "mean")(IMAGE, rough, TARGET, model).item()
    least = RemoveLeastRelevantFirstAverage([25], "mean")(IMAGE, rough, TARGET, model).item()
    assert most == pytest.approx(mean - 1) and least == pytest.approx(0)
    # Two percentiles: at the 87.5th half of the evidence goes.
    found = RemoveMostRelevantFirstAverage([75, 87.5], "mean")(IMAGE, rough, TARGET, model).item()
    assert found == pytest.approx(((mean - 1) + (mean - 1) / 2) / 2, abs=1e-3)


def literal_combined(
    model: nn.Module, inputs: Tensor, cams: np.ndarray, classes: list[int], percentiles: list[float]
) -> list[float]:
    """ROADCombined, image by image and percentile by percentile."""
    imputer, values = NoisyLinearImputer(noise=0), []
    for image, cam, category in zip(inputs, cams, classes, strict=True):
        totals = []
        for ranked in (1 - cam, cam):
            changes = []
            for percentile in percentiles:
                level = np.sort(ranked.ravel())
                keep = torch.from_numpy(np.float32(ranked < np.percentile(level, percentile)))
                with torch.no_grad():
                    after = model(imputer(image, keep)[None])[0].softmax(0)[category]
                    before = model(image[None])[0].softmax(0)[category]
                changes.append(float(after - before))
            totals.append(sum(changes) / len(changes))
        values.append((totals[0] - totals[1]) / 2)
    return values


def test_road_matches_loops_and_restores_the_model() -> None:
    model, inputs = TinyCNN().train(), torch.rand(2, 3, 20, 24)
    cams = np.random.default_rng(0).random((2, 20, 24)).astype(np.float32)
    snapshot = Snapshot(model)
    metric = ROADCombined([30, 60], noise=0, batch_size=3)
    with pytest.warns(UserWarning, match="training mode"):
        found = metric.measure(model, inputs, [ClassifierOutputTarget(0), ClassifierOutputTarget(2)], cams)
    snapshot.check()
    wanted = literal_combined(model.eval(), inputs, cams, [0, 2], [30, 60])
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-5, rtol=0)
    most = ROADMostRelevantFirstAverage([30, 60], noise=0).measure(
        model, inputs, [ClassifierOutputSoftmaxTarget(0), ClassifierOutputSoftmaxTarget(2)], cams
    )
    least = ROADLeastRelevantFirstAverage([30, 60], noise=0).measure(
        model, inputs, [ClassifierOutputSoftmaxTarget(0), ClassifierOutputSoftmaxTarget(2)], cams
    )
    torch.testing.assert_close((least - most) / 2, found)


def test_true_and_inverted_maps_are_the_ends() -> None:
    model = Patch().eval()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((20, 16, 16), generator=generator)
    rough = TRUE[0] + 0.01 * noise
    maps = torch.cat([rough[:1], 1 - rough[:1], noise])
    for metric in (ROADCombined([75], noise=0), ROADCombined([50, 75], noise=0)):
        values = metric.measure(model, IMAGE, [TARGET * len(maps)], [maps])
        assert values[0] > values[2:].max() and values[1] < values[2:].min()
        assert abs(float(values[2:].mean())) < 0.1
        assert float(values.abs().max()) <= 0.5


@pytest.mark.parametrize("least", [False, True])
def test_removal_of_one_image(least: bool) -> None:
    kind = RemoveLeastRelevantFirst if least else RemoveMostRelevantFirst
    pixels, cam = torch.rand(3, 10, 10), torch.rand(10, 10)
    kept: list[Tensor] = []

    def imputer(image: Tensor, mask: Tensor) -> Tensor:
        kept.append(mask)
        return image * mask

    found = kind(70, imputer)(pixels, cam)
    order = cam.flatten().argsort(descending=not least)
    assert sorted(torch.nonzero(kept[0].flatten() == 0)[:, 0].tolist()) == sorted(order[:30].tolist())
    assert torch.equal(found, pixels * kept[0])


def test_ties_are_removed_together() -> None:
    cam = torch.zeros(10, 10)
    cam[:2], cam[2:4] = 1.0, 0.5
    for percentile, gone in ((90, cam == 1), (70, cam >= 0.5), (50, cam >= 0.5), (5, cam >= 0.5)):
        kept = RemoveMostRelevantFirst(percentile, lambda image, mask: mask)(torch.rand(3, 10, 10), cam)
        assert torch.equal(kept == 0, gone)
    for percentile, gone in ((80, cam == 0), (30, cam <= 0.5), (5, cam <= 0.5)):
        kept = RemoveLeastRelevantFirst(percentile, lambda image, mask: mask)(torch.rand(3, 10, 10), cam)
        assert torch.equal(kept == 0, gone)


def test_otsu_removes_the_salient_blob() -> None:
    cam = torch.full((10, 10), 0.1)
    cam[2:5, 3:7] = 0.9
    kept = RemoveMostRelevantFirst("auto", lambda image, mask: mask)(torch.rand(3, 10, 10), cam)
    assert torch.equal(kept == 0, cam > 0.5)
    kept = RemoveLeastRelevantFirst("auto", lambda image, mask: mask)(torch.rand(3, 10, 10), cam)
    assert torch.equal(kept == 0, cam < 0.5)


def test_custom_perturbations_and_their_images() -> None:
    def darken(image: Tensor, cam: Tensor) -> Tensor:
        return image - cam

    model, inputs, cams = TinyCNN(), torch.rand(2, 3, 12, 16), torch.rand(2, 12, 16).numpy()
    targets = [ClassifierOutputTarget(0), ClassifierOutputTarget(1)]
    found, shown = PerturbationConfidenceMetric(darken)(inputs, cams, targets, model, return_visualization=True)
    changed = inputs - torch.from_numpy(cams)[:, None]
    torch.testing.assert_close(shown, changed)
    with torch.no_grad():
        wanted = [float(model(changed)[i, i] - model(inputs)[i, i]) for i in range(2)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_averager() -> None:
    model, inputs, cams = TinyCNN(), torch.rand(1, 3, 12, 16), torch.rand(1, 12, 16).numpy()
    target = [ClassifierOutputTarget(0)]

    def make(percentile: Any) -> ROADMostRelevantFirst:
        return ROADMostRelevantFirst(percentile, noise=0)

    found = AveragerAcrossThresholds(make, [20, 70])(inputs, cams, target, model)
    wanted = ROADMostRelevantFirstAverage([20, 70], noise=0)(inputs, cams, target, model)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_maps_without_order_have_no_value_in_road_but_do_in_products() -> None:
    model = Patch().eval()
    flat = torch.stack([TRUE[0] + 0.01 * torch.rand(16, 16), torch.ones(16, 16), torch.full((16, 16), torch.nan)])
    with pytest.warns(MetricWarning, match="2 of 3"):
        road = ROADCombined([75]).measure(model, IMAGE, [TARGET * 3], [flat])
    assert road.isnan().tolist() == [False, True, True]
    with pytest.warns(MetricWarning, match="1 of 3"):
        product = CamMultImageConfidenceChange().measure(model, IMAGE, [TARGET * 3], [flat])
    assert product.isnan().tolist() == [False, False, True] and product[1] == 0


def test_invalid_calls_raise() -> None:
    with pytest.raises(ValueError, match="percentile"):
        ROADCombined([])
    with pytest.raises(ValueError, match="0 to 100"):
        ROADMostRelevantFirst(101)
    with pytest.raises(ValueError, match="0 to 100"):
        RemoveMostRelevantFirst("otsu", lambda image, mask: image)  # type: ignore[arg-type]
