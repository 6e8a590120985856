"""Volumes (B, C, D, H, W): gradient methods as in the predecessor, against plain autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import METHODS, DeepFeatureFactorization, GradCAM, HiResCAM
from detcam.adapters import adapt
from detcam.targets import ClassifierOutputTarget

pytestmark = pytest.mark.filterwarnings("ignore::detcam.EmptyMapWarning")


class Volumetric(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.body(x) ** 2).mean((2, 3, 4)))


VOLUME = torch.rand(2, 1, 6, 10, 12, generator=torch.Generator().manual_seed(0))
TARGETS = [ClassifierOutputTarget(1), ClassifierOutputTarget(0)]


@pytest.mark.parametrize(("method", "pooled"), [(GradCAM, True), (HiResCAM, False)])
def test_heatmaps_equal_the_formula_in_three_dimensions(method: type, pooled: bool) -> None:
    model = Volumetric().eval()
    activation = model.body(VOLUME).detach().requires_grad_(True)
    scores = model.fc((activation**2).mean((2, 3, 4)))
    (gradient,) = torch.autograd.grad(scores[0, 1] + scores[1, 0], activation)
    weights = gradient.mean((2, 3, 4), keepdim=True) if pooled else gradient
    saliency = (weights * activation).sum(1, keepdim=True).clamp(min=0).detach()
    expected = F.interpolate(saliency, (6, 10, 12), mode="trilinear", align_corners=False)[:, 0]
    low, high = expected.amin((1, 2, 3), keepdim=True), expected.amax((1, 2, 3), keepdim=True)
    got = method(model, [model.body])(VOLUME, TARGETS)
    assert isinstance(got, np.ndarray) and got.shape == (2, 6, 10, 12)
    spans = (high - low).clamp(min=1e-12)
    np.testing.assert_allclose(got, ((expected - low) / spans).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["gradcamplusplus", "layercam", "eigencam", "xgradcam", "shapleycam"])
def test_methods_that_weight_activations(name: str) -> None:
    model = Volumetric().eval()
    cam = METHODS[name](model, [model.body])
    assert cam(VOLUME, TARGETS).shape == (2, 6, 10, 12)
    assert cam(VOLUME, TARGETS, aug_smooth=True, eigen_smooth=True).shape == (2, 6, 10, 12)
    assert cam(VOLUME).shape == (2, 6, 10, 12)


def test_other_methods_name_those_that_explain_volumes() -> None:
    model = Volumetric().eval()
    names = ["rise", "scorecam", "occlusion", "guidedbackprop"]
    names += ["fullgrad", "gcame", "guidedgradcam", "probecam", "segxrescam", "sess"]
    cams = [METHODS[name](model, None if name == "fullgrad" else [model.body]) for name in names]
    for cam in (*cams, METHODS["finercam"](model, [model.body], base_method=METHODS["segxrescam"])):
        with pytest.raises(ValueError, match="does not explain volumes.*GradCAM or HiResCAM"):
            cam(VOLUME, TARGETS)


def test_a_layer_without_a_volume_is_named() -> None:
    model = Volumetric().eval()
    with pytest.raises(ValueError, match=r"returned shape \(2, 2\); expected \(B, C, d, h, w\)"):
        GradCAM(model, [model.fc])(VOLUME, TARGETS)


def test_a_bag_of_slices_with_one_score() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.body(x) ** 2).mean((0, 2, 3)))[None]

    model, slices = Bag().eval(), torch.rand(5, 3, 8, 8)
    activation = model.body(slices).detach().requires_grad_(True)
    score = model.fc((activation**2).mean((0, 2, 3)))[1]
    (gradient,) = torch.autograd.grad(score, activation)
    results = HiResCAM(model, [model.body]).explain(slices, [ClassifierOutputTarget(1)])
    assert len(results) == 5
    for result, expected in zip(results, (gradient * activation).sum(1).detach(), strict=True):
        torch.testing.assert_close(result.saliency[0][0], expected)
        assert float(result.scores[0]) == pytest.approx(float(score), abs=1e-5)
    assert GradCAM(model, [model.body])(slices, [ClassifierOutputTarget(1)]).shape == (5, 8, 8)


class LastAxisChannels(Volumetric):
    """The same network, whose body returns (B, d, h, w, C) as video transformers do, through a normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.LayerNorm(4, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.last(self.body(x).movedim(1, -1)) ** 2).mean((1, 2, 3)))


def test_channels_on_the_last_axis() -> None:
    model = LastAxisChannels().eval()
    volume = torch.rand(1, 1, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    activation = model.last(model.body(volume).movedim(1, -1)).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.fc((activation**2).mean((1, 2, 3)))[0, 1], activation)
    saliency = (gradient.mean((1, 2, 3), keepdim=True) * activation).sum(-1).clamp(min=0).detach()
    expected = F.interpolate(saliency[:, None], (6, 16, 16), mode="trilinear", align_corners=False)[:, 0]
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    got = GradCAM(model, [model.last])(volume, TARGETS[:1])
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    joined = GradCAM(model, [model.last], reshape_transform=lambda output: output.movedim(-1, 1))(volume, TARGETS[:1])
    np.testing.assert_allclose(joined, expected.numpy(), atol=1e-5)


def test_a_network_that_refuses_small_volumes_is_probed_with_a_larger_one() -> None:
    class NeedsSpace(Volumetric):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc((F.avg_pool3d(self.body(x), (1, 40, 40), 1) ** 2).mean((2, 3, 4)))

    assert adapt(NeedsSpace().eval()).layer_names == ["body"]


def test_concepts_of_volumes() -> None:
    model = Volumetric().eval()
    factorization = DeepFeatureFactorization(model, "body")
    concepts, maps = factorization(VOLUME, n_components=3)
    assert concepts.shape == (4, 3) and [image.shape for image in maps] == [(3, 6, 10, 12)] * 2
    result = factorization.factorization
    assert result is not None
    features = model.body(VOLUME).detach().numpy()
    rebuilt = np.einsum("ck,kdhw->cdhw", result.basis, result.strengths[1][0]) + result.offset[:, None, None, None]
    assert np.linalg.norm(rebuilt - features[1]) < 0.5 * np.linalg.norm(
        features[1] - result.offset[:, None, None, None]
    )
    strengths = torch.from_numpy(result.strengths[1][0])
    low, high = strengths.amin((1, 2, 3), keepdim=True), strengths.amax((1, 2, 3), keepdim=True)
    expected = F.interpolate(((strengths - low) / (high - low))[None], (6, 10, 12), mode="trilinear")[0]
    np.testing.assert_allclose(maps[1], expected.numpy(), atol=1e-5)
    assert factorization.concept_scores().shape == (3, 2)
