"""Deep Feature Factorization: planted concepts are recovered, scored and labeled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam import DeepFeatureFactorization, adapt
from detcam.factorization import factorize
from detcam.geometry import Geometry
from tests.helpers import Snapshot, TinyCNN
from tests.zoo import ZOO, example

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of iterations")


class Planted(nn.Module):
    """Features that are sums of three known concepts, located at the red, green and blue pixels of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.concepts = torch.tensor([[1.0, 0, 0, 2, 0, 0.5], [0, 3, 0, 0, 1, 0], [0, 0, 2, 0, 1, 1]])
        self.layer = nn.Identity()
        self.classifier = nn.Linear(6, 3)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.tensor([[1.0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1]]))
            self.classifier.bias.zero_()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        features = torch.einsum("bkhw,kc->bchw", nn.functional.avg_pool2d(x, 4), self.concepts)
        return self.classifier(self.layer(features).mean((2, 3)))


def patches() -> Tensor:
    """Two normalized images (2, 3, 32, 32) with rectangles of pure colors, and nothing between."""
    images = torch.zeros(2, 3, 32, 32)
    for image, channel, (y, x, h, w) in [
        (0, 0, (0, 0, 16, 12)),
        (0, 1, (20, 4, 8, 24)),
        (0, 2, (4, 20, 12, 8)),
        (1, 0, (16, 16, 12, 12)),
        (1, 1, (0, 0, 8, 8)),
        (1, 2, (0, 16, 8, 16)),
    ]:
        images[image, channel, y : y + h, x : x + w] = 1 + 0.5 * channel
    return images


def matched(concepts: np.ndarray, planted: np.ndarray) -> list[int]:
    """For each planted concept (3, C), the index of the concept (C, 3) in the same direction."""
    alike = (planted / np.linalg.norm(planted, axis=1, keepdims=True)) @ (concepts / np.linalg.norm(concepts, axis=0))
    assert sorted(alike.argmax(1).tolist()) == [0, 1, 2]
    assert alike.max(1).min() > 0.999
    return alike.argmax(1).tolist()


def test_planted_concepts_are_recovered() -> None:
    model = Planted()
    before = Snapshot(model)
    dff = DeepFeatureFactorization(model=model, target_layer=model.layer, max_iter=2000)
    concepts, explanations = dff(patches(), n_components=3)
    before.check()
    assert isinstance(concepts, np.ndarray) and concepts.shape == (6, 3)
    order = matched(concepts, model.concepts.numpy())
    cells = nn.functional.avg_pool2d(patches(), 4).numpy()
    for image, maps in enumerate(explanations):
        assert maps.shape == (3, 32, 32) and maps.dtype == np.float32
        for channel, k in enumerate(order):
            truth = cells[image, channel] / cells[image, channel].max()
            resized = nn.functional.interpolate(torch.from_numpy(truth)[None, None], (32, 32), mode="bilinear")
            np.testing.assert_allclose(maps[k], resized[0, 0], atol=0.02)


def test_an_absent_concept_is_dark_on_a_shared_scale() -> None:
    model = Planted()
    images = patches()
    images[1, 2] *= 0.1  # hardly any blue in the second one
    dff = DeepFeatureFactorization(model, model.layer, max_iter=2000)
    concepts, explanations = dff(images, 3)
    blue = matched(concepts, model.concepts.numpy())[2]
    result = dff.factorization
    assert result is not None
    assert explanations[1][blue].max() > 0.99
    np.testing.assert_allclose([result.maps(i, shared=True)[blue].max() for i in (0, 1)], [1, 0.1], atol=0.02)
    np.testing.assert_allclose(result.maps(0, shared=True)[blue], explanations[0][blue], atol=0.02)


def test_error_and_nonnegative_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    features = [[torch.randn(7, 5, 6, generator=generator)], [torch.randn(7, 5, 6, generator=generator)]]
    geometries = [Geometry.identity((20, 24))] * 2
    errors = []
    for count in (1, 3, 7):
        result = factorize(features, geometries, count, max_iter=1000)
        assert (result.basis >= 0).all() and all((level >= 0).all() for (level,) in result.strengths)
        left = total = 0.0
        for (level,), (strengths,) in zip(features, result.strengths, strict=True):
            for y in range(5):
                for x in range(6):
                    there = level[:, y, x].double().numpy()
                    rebuilt = result.offset.astype(float)
                    for k in range(count):
                        rebuilt = rebuilt + result.basis[:, k].astype(float) * float(strengths[k, y, x])
                    left += float(((there - rebuilt) ** 2).sum())
                    total += float(((there - result.offset) ** 2).sum())
        assert result.error == pytest.approx((left / total) ** 0.5, rel=1e-4)
        errors.append(result.error)
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05
    np.testing.assert_array_equal(result.offset, torch.cat([f[0].flatten(1) for f in features], 1).amin(1).numpy())


def test_the_result_depends_on_the_seed() -> None:
    model = TinyCNN()
    images = torch.rand(2, 3, 32, 40)
    first, second, other = (DeepFeatureFactorization(model, model.relu2, seed=seed)(images, 3) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_concepts_are_labeled_by_the_classifier() -> None:
    model = Planted()
    adapter = adapt(model, names=["red, ruby", "green", "blue"], target_layers="layer")
    dff = DeepFeatureFactorization(adapter, "layer", computation_on_concepts=model.classifier, max_iter=2000)
    concepts, _, computed = dff(patches(), 3)
    with torch.no_grad():
        expected = model.classifier(torch.from_numpy(concepts.T.copy()))
    np.testing.assert_allclose(computed, expected.numpy(), rtol=1e-5)
    order = matched(concepts, model.concepts.numpy())
    # At full strength a concept equals the features of a pure color: 1, 1.5 and 2 times the concept.
    full = model.concepts * torch.tensor([[1.0], [1.5], [2.0]])
    with torch.no_grad():
        expected = model.classifier(full).softmax(-1)
    torch.testing.assert_close(dff.concept_scores()[order], expected, atol=0.02, rtol=0)
    labels = dff.label_concepts(top_k=1)
    assert [labels[k].split()[0] for k in order] == ["red", "green", "blue"]
    assert labels[order[0]] == f"red {float(dff.concept_scores()[order[0], 0]):.2f}"


class Tokens(nn.Module):
    """Patches with a class token, or maps with channels last, and a head like that of a transformer."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 6))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.patches(x).permute(0, 2, 3, 1)
        if self.layout == "channels last":
            return self.head(self.norm(maps).mean((1, 2)))
        return self.head(self.norm(torch.cat([self.class_token.expand(len(x), -1, -1), maps.flatten(1, 2)], 1))[:, 0])


@pytest.mark.parametrize("layout", ["class token", "channels last"])
def test_tokens(layout: str) -> None:
    torch.manual_seed(0)
    model = Tokens(layout).eval()
    images = torch.rand(2, 3, 20, 28)
    dff = DeepFeatureFactorization(model, model.norm, computation_on_concepts=model.head)
    concepts, explanations, _ = dff(images, 2)
    assert concepts.shape == (6, 2) and [maps.shape for maps in explanations] == [(2, 20, 28)] * 2
    with torch.no_grad():
        maps = model.norm(model.patches(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert dff.factorization is not None
        expected = model.head(torch.from_numpy(dff.factorization.peak_features.T.copy())).softmax(-1)
    unpacked = factorize([[level] for level in maps], [Geometry.identity((20, 28))] * 2, 2)
    np.testing.assert_allclose(concepts, unpacked.concepts, atol=1e-5)
    torch.testing.assert_close(dff.concept_scores(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name", ["faster_rcnn", "retinanet", "yolo", "smp_unet", "lraspp", "embedding", "own_detector"]
)
def test_detectors_and_segmentation_networks(name: str) -> None:
    assert name in ZOO
    case = example(name)
    before = Snapshot(case.model)
    dff = DeepFeatureFactorization(case.adapter)
    _, explanations = dff(case.images, 3)
    before.check()
    for image, maps in zip(case.images, explanations, strict=True):
        assert maps.shape == (3, *image.shape[-2:])
        assert maps.min() >= 0 and maps.max() == pytest.approx(1, abs=0.05)
    result = dff.factorization
    assert result is not None and 0 < result.error < 1
    with pytest.raises(TypeError, match="expected a classifier"):
        dff.label_concepts()


def test_padding_is_excluded() -> None:
    level = torch.full((4, 6, 8), 0.0)
    level[:, :, 2:6] = torch.rand(4, 6, 4) + 1
    level[:, :, :2] = level[:, :, 6:] = 50.0  # features of gray padding
    geometry = Geometry((48, 32), (48, 64), (1.0, 1.0), (16.0, 0.0))
    result = factorize([[level]], [geometry], 2)
    alone = factorize([[level[:, :, 2:6]]], [Geometry.identity((48, 32))], 2)
    np.testing.assert_allclose(result.basis, alone.basis)
    np.testing.assert_allclose(result.strengths[0][0][:, :, 2:6], alone.strengths[0][0])
    assert not result.strengths[0][0][:, :, :2].any() and not result.strengths[0][0][:, :, 6:].any()
    inner = result.maps(0)[:, :, 4:-4]  # at the border a map reaches half a cell into the padding
    np.testing.assert_allclose(inner, alone.maps(0)[:, :, 4:-4], atol=1e-6)


def test_pyramid_levels_share_concepts() -> None:
    generator = torch.Generator().manual_seed(0)
    concepts = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 3]])
    fine, coarse = (torch.rand(2, side, side, generator=generator) ** 4 for side in (8, 4))
    levels = [torch.einsum("khw,kc->chw", strengths, concepts) for strengths in (fine, coarse)]
    result = factorize([levels], [Geometry.identity((16, 16))], 2, max_iter=2000)
    alike = nn.functional.normalize(concepts) @ nn.functional.normalize(torch.from_numpy(result.basis), dim=0)
    assert float(alike.max(1).values.min()) > 0.99
    total = sum(
        nn.functional.interpolate(torch.from_numpy(level)[None], (16, 16), mode="bilinear")[0]
        for level in result.strengths[0]
    )
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    np.testing.assert_allclose(result.maps(0), ((total - low) / (high - low)).numpy(), atol=1e-5)


def test_images_in_small_batches_are_one_factorization() -> None:
    adapter = adapt(TinyCNN(), image_size=(32, 40))
    images = [torch.rand(3, 50, 40), torch.rand(3, 17, 90), torch.rand(3, 32, 40)]
    dff = DeepFeatureFactorization(adapter, "relu1")
    together = dff(images, 3)
    dff.batch_size = 1
    one_by_one = dff(images, 3)
    np.testing.assert_allclose(one_by_one[0], together[0], rtol=1e-3, atol=1e-4)
    assert [maps.shape for maps in together[1]] == [(3, 50, 40), (3, 17, 90), (3, 32, 40)]


def test_invalid_requests_are_named() -> None:
    model = TinyCNN()
    dff = DeepFeatureFactorization(model, "conv2")
    with pytest.raises(RuntimeError, match="no concepts yet"):
        dff.concept_scores()
    with pytest.raises(ValueError, match="at least one component"):
        dff(torch.rand(1, 3, 32, 32), 0)
    with pytest.raises(TypeError, match="whole number"):
        dff(torch.rand(1, 3, 32, 32), 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer named"):
        DeepFeatureFactorization(model, "conv9")

    class TwoWidths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3)
            self.eval()

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.wide(x), self.narrow(x)]

    pair = TwoWidths()
    with pytest.raises(ValueError, match="no concepts in common"):
        DeepFeatureFactorization(nn.Sequential(pair).eval(), "0")(torch.rand(1, 3, 16, 16), 2)
