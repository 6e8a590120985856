"""Parity with grad-cam: metrics are equal on the same inputs, apart from the noise of ROAD's imputation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small

from detcam import GradCAM
from detcam.metrics import arcc, cam_mult_image, road
from detcam.targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget

peer_road = pytest.importorskip("pytorch_grad_cam.metrics.road")
peer_mult = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
peer_arcc = pytest.importorskip("pytorch_grad_cam.metrics.arcc")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return mobilenet_v3_small().eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn((2, 3, 64, 80), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def cams() -> np.ndarray:
    noise = np.random.default_rng(0).random((2, 64, 80))
    maps = np.stack([gaussian_filter(each, 4) for each in noise])
    maps -= maps.min((1, 2), keepdims=True)
    return np.float32(maps / maps.max((1, 2), keepdims=True))


TARGETS = [ClassifierOutputTarget(3), ClassifierOutputSoftmaxTarget(7)]


@pytest.mark.parametrize("name", ["CamMultImageConfidenceChange", "DropInConfidence", "IncreaseInConfidence"])
def test_confidence_change(name: str, model: nn.Module, inputs: Tensor, cams: np.ndarray) -> None:
    theirs, ours = getattr(peer_mult, name)(), getattr(cam_mult_image, name)()
    if name == "CamMultImageConfidenceChange":
        expected, expected_images = theirs(inputs, cams, TARGETS, model, return_visualization=True)
        scores, images = ours(inputs, cams, TARGETS, model, return_visualization=True)
        torch.testing.assert_close(images, expected_images)
    else:
        expected, scores = theirs(inputs, cams, TARGETS, model), ours(inputs, cams, TARGETS, model)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert scores.dtype == expected.dtype


@pytest.mark.parametrize("removed", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("smooth", [0.0, 6.0])
def test_equal_imputation_without_noise(removed: float, smooth: float) -> None:
    rng = np.random.default_rng(3)
    order = gaussian_filter(rng.random((101, 128)), smooth) if smooth else rng.random((101, 128))
    keep = torch.from_numpy(np.float32(order < np.quantile(order, 1 - removed)))
    image = torch.from_numpy(np.float32(rng.random((3, 101, 128))))
    expected = peer_road.NoisyLinearImputer(noise=0)(image, keep)
    torch.testing.assert_close(road.NoisyLinearImputer(noise=0)(image, keep), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ROADMostRelevantFirst", "ROADLeastRelevantFirst"])
@pytest.mark.parametrize("percentile", [15, 80])
def test_equal_road_scores_and_images(
    name: str, percentile: float, model: nn.Module, inputs: Tensor, cams: np.ndarray
) -> None:
    theirs = getattr(peer_road, name)(percentile)
    theirs.perturbation.imputer.noise = 0
    expected, expected_images = theirs(inputs, cams, TARGETS, model, return_visualization=True)
    ours = getattr(road, name)(percentile, noise=0)
    scores, images = ours(inputs, cams, TARGETS, model, return_visualization=True)
    torch.testing.assert_close(images, expected_images, atol=2e-5, rtol=0)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["ROADCombined", "ROADMostRelevantFirstAverage", "ROADLeastRelevantFirstAverage"])
def test_equal_averages_over_percentiles(name: str, model: nn.Module, inputs: Tensor, cams: np.ndarray) -> None:
    percentiles = [20, 50, 80]
    theirs = getattr(peer_road, name)(percentiles)
    expected = without_noise(theirs)(inputs, cams, TARGETS, model)
    scores = getattr(road, name)(percentiles, noise=0)(input_tensor=inputs, cams=cams, targets=TARGETS, model=model)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_equal_noise_level() -> None:
    image, keep = torch.rand(3, 64, 64), torch.ones(64, 64)
    keep[8:56, 8:56] = 0
    hole = keep == 0
    ours = road.NoisyLinearImputer(0.05)(image, keep) - road.NoisyLinearImputer(0)(image, keep)
    theirs = peer_road.NoisyLinearImputer(0.05)(image, keep) - peer_road.NoisyLinearImputer(0)(image, keep)
    assert not ours[:, ~hole].any()
    assert float(ours[:, hole].std()) == pytest.approx(float(theirs[:, hole].std()), rel=0.05)
    assert abs(float(ours[:, hole].mean())) < 0.003


def test_equal_imputation_with_the_same_noise(monkeypatch: pytest.MonkeyPatch, cams: np.ndarray) -> None:
    keep = torch.from_numpy(np.float32(cams[0] < 0.6))
    image, noise = torch.rand(3, 64, 80), torch.randn(3, 64, 80)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn_like", lambda values: noise[:, keep == 0])
        expected = peer_road.NoisyLinearImputer(noise=0.2)(image, keep)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", lambda *shape, **options: noise)
        imputed = road.NoisyLinearImputer(noise=0.2)(image, keep)
    assert float((expected - image).abs().max()) > 0.3
    torch.testing.assert_close(imputed, expected, atol=1e-5, rtol=0)


README = """
metric_target = ClassifierOutputSoftmaxTarget(281)
scores, batch_visualizations = CamMultImageConfidenceChange()(input_tensor,
  inverse_cams, targets, model, return_visualization=True)
visualization = deprocess_image(batch_visualizations[0, :])
results.append(scores)
cam_metric = ROADMostRelevantFirst(percentile=75)
scores, perturbation_visualizations = cam_metric(input_tensor,
  grayscale_cams, targets, model, return_visualization=True)
results.append(scores)
cam_metric = ROADCombined(percentiles=[20, 40, 60, 80])
scores = cam_metric(input_tensor, grayscale_cams, targets, model)
results.append(scores)
cam_metric = ARCC(base_method=cam)
arcc_score = cam_metric(input_tensor, grayscale_cams, targets, model)
results.append(arcc_score)
"""
THEIRS = """
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from pytorch_grad_cam.utils.image import deprocess_image
from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange
from pytorch_grad_cam.metrics.road import ROADMostRelevantFirst, ROADMostRelevantFirstAverage
from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirst, ROADLeastRelevantFirstAverage, ROADCombined
from pytorch_grad_cam.metrics.arcc import ARCC
"""


def test_readme_example_runs_with_changed_import_lines(model: nn.Module, inputs: Tensor, cams: np.ndarray) -> None:
    ours = THEIRS.replace("pytorch_grad_cam.utils.model_targets", "detcam.targets")
    ours = ours.replace("pytorch_grad_cam.utils.image", "detcam").replace("pytorch_grad_cam", "detcam")
    runs = []
    for imports in (THEIRS, ours):
        space: dict[str, Any] = {"model": model, "input_tensor": inputs[:1], "results": []}
        space.update(grayscale_cams=cams[:1], inverse_cams=1 - cams[:1])
        exec(imports, space)
        if imports is THEIRS:  # grad-cam's fails for tensors with current NumPy
            space["deprocess_image"] = lambda image, function=space["deprocess_image"]: function(image.numpy())
        space["targets"] = [space["ClassifierOutputSoftmaxTarget"](281)]
        with space["GradCAM"](model=model, target_layers=[model.features[6]]) as space["cam"]:
            exec(README, space)
        runs.append(space["results"])
    assert space["visualization"].shape == (64, 80, 3) and space["visualization"].dtype == np.uint8
    for expected, scores in zip(*runs, strict=True):
        np.testing.assert_allclose(scores, expected, atol=2e-4, rtol=2e-3)  # the imputation noise differs


def test_equal_arcc_and_its_terms(model: nn.Module, inputs: Tensor, cams: np.ndarray) -> None:
    targets = [ClassifierOutputTarget(3), ClassifierOutputTarget(7)]
    layer = ["features.6"]

    def method(input_tensor: Tensor, targets: Any) -> np.ndarray:
        heatmaps: np.ndarray = GradCAM(model, layer)(input_tensor, targets)
        return heatmaps

    np.testing.assert_allclose(arcc.Complexity()(cams), peer_arcc.Complexity()(cams), atol=1e-6)
    expected = peer_arcc.Coherency()(inputs, cams, targets, model, method)
    np.testing.assert_allclose(arcc.Coherency()(inputs, cams, targets, model, method), expected, atol=1e-5)
    theirs, ours = peer_arcc.ARCC(method, [20, 80]), arcc.ARCC(method, [20, 80])
    without_noise(theirs.road)
    ours.road = road.ROADCombined([20, 80], noise=0)
    np.testing.assert_allclose(
        ours(inputs, cams, targets, model), theirs(inputs, cams, targets, model), atol=1e-4, rtol=1e-3
    )


def without_noise(metric: Any) -> Any:
    """Turn off the imputation noise of a grad-cam metric that averages over percentiles."""
    for averager in (getattr(metric, "morf_averager", metric), getattr(metric, "lerf_averager", metric)):
        construct = averager.imputer

        def noiseless(percentile: float, construct: Any = construct) -> Any:
            metric = construct(percentile)
            metric.perturbation.imputer.noise = 0
            return metric

        averager.imputer = noiseless
    return metric
