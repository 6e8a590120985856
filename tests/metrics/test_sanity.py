"""Sanity checks against literal versions and methods whose answer is known; the model comes back to the bit."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam import GradCAM, RandomCAM, adapt
from detcam.cam import BaseCAM
from detcam.metrics.sanity import RandomizationCheck, independence, layers_top_down, randomization, reproducibility
from detcam.metrics.similarity import rank_correlation, ssim
from detcam.targets import ClassTarget
from tests.helpers import Snapshot, TinyCNN, tensors

TARGETS = [ClassTarget(0), ClassTarget(2)]


def setup() -> tuple[TinyCNN, GradCAM, Tensor]:
    model = TinyCNN()
    image = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(3))
    return model, GradCAM(adapt(model, image_size=32, target_layers=["conv2"])), image


def mean_ranks(values: list[float]) -> list[float]:
    """Each value's rank; equal values share the mean of their ranks. Quadratic."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def slow_spearman(one: Tensor, other: Tensor) -> float:
    a, b = (mean_ranks(values.flatten().tolist()) for values in (one, other))
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    size_a, size_b = sum((x - mean_a) ** 2 for x in a), sum((y - mean_b) ** 2 for y in b)
    return product / (size_a * size_b) ** 0.5


def slow_ssim(one: Tensor, other: Tensor) -> float:
    """Mean over all windows of 7 x 7 pixels that fit, with sample covariance."""
    a, b = one.double().numpy(), other.double().numpy()
    found = []
    for row in range(a.shape[0] - 6):
        for column in range(a.shape[1] - 6):
            x, y = (m[row : row + 7, column : column + 7].ravel() for m in (a, b))
            covariance = np.cov(x, y)
            c1, c2 = 0.01**2, 0.03**2
            above = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
            below = (x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
            found.append(above / below)
    return float(np.mean(found))


def test_similarity_equals_a_direct_implementation() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(15, 12, generator=generator), torch.rand(15, 12, generator=generator)
    one[one < 0.4] = 0  # ties, as rectified maps have
    assert rank_correlation(one, other) == pytest.approx(slow_spearman(one, other), abs=1e-12)
    assert ssim(one, other) == pytest.approx(slow_ssim(one, other), abs=1e-6)
    assert ssim(one, one) == pytest.approx(1)
    assert rank_correlation(one, 1 - one) == pytest.approx(-1)
    assert rank_correlation(one, torch.zeros(15, 12)) == 0


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((torch.zeros(9, 9), torch.zeros(9, 8)), "one size"),
        ((torch.full((9, 9), float("nan")), torch.zeros(9, 9)), "NaN"),
        ((torch.zeros(5, 9), torch.zeros(5, 9)), "at least 7 x 7"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(pair: tuple[Tensor, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ssim(*pair)


def test_layers_are_in_execution_order() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.token = nn.Parameter(torch.rand(1, 1, 4))
            self.unused = nn.Linear(2, 2)
            self.stem = nn.Conv2d(3, 4, 8, 8)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).mT + self.token
            return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))

    adapter = adapt(Mixed().eval(), target_layers=["stem"], image_size=32)
    names = [name for name, _ in layers_top_down(adapter, torch.rand(3, 32, 32), [ClassTarget(0)])]
    # the output projection is never called as a module: it goes with the attention that uses it
    assert names == ["head", "attention", "attention.out_proj", "stem", "Mixed", "unused"]


def test_randomization_equals_a_direct_cascade() -> None:
    model, cam, image = setup()
    before = Snapshot(model)
    found = randomization(cam, image, TARGETS, seed=5)
    before.check()
    assert found.layers == (("head",), ("conv2",), ("conv1",))
    intact = tensors(cam([image], [TARGETS]))[0]
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    for step, name in enumerate(("head", "conv2", "conv1")):
        for parameter in getattr(other, name).parameters():
            values = parameter.data
            mean = sum(values.flatten().tolist()) / values.numel()
            std = (sum((v - mean) ** 2 for v in values.flatten().tolist()) / values.numel()) ** 0.5
            parameter.data = torch.randn(values.shape, generator=generator) * std + mean
        maps = tensors(GradCAM(adapt(other, image_size=32, target_layers=["conv2"]))([image], [TARGETS]))[0]
        for target in range(2):
            assert found.rank_correlation[step, target] == pytest.approx(
                slow_spearman(intact[target], maps[target]), abs=1e-3
            )
            assert found.ssim[step, target] == pytest.approx(slow_ssim(intact[target], maps[target]), abs=1e-3)
    assert found.rank_correlation[-1].max() < 0.9  # the map did change


def test_layers_are_randomized_in_groups() -> None:
    model, cam, image = setup()
    one_by_one = randomization(cam, image, TARGETS)
    grouped = randomization(cam, image, TARGETS, steps=2)
    assert grouped.layers == (("head", "conv2"), ("conv1",))
    assert torch.equal(grouped.ssim, one_by_one.ssim[1:])
    with pytest.raises(ValueError, match="steps of at least 1"):
        randomization(cam, image, TARGETS, steps=0)


def test_weights_are_restored_after_an_error() -> None:
    model, _, image = setup()
    model.half().float()  # weights that have few bits come back as they are

    class Fails(GradCAM, abstract=True):
        calls = 0

        def explain(self, *args: Any, **options: Any) -> Any:
            Fails.calls += 1
            if Fails.calls == 3:
                raise RuntimeError("no more")
            return super().explain(*args, **options)

    before = Snapshot(model)
    with pytest.raises(RuntimeError, match="no more"):
        randomization(Fails(adapt(model, image_size=32, target_layers=["conv2"])), image, TARGETS)
    before.check()


@pytest.mark.filterwarnings("ignore::detcam.ClassAgnosticWarning")
def test_inference_tensors_and_frozen_weights_are_restored() -> None:
    with torch.inference_mode():
        model = TinyCNN()
    model.conv1.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = torch.rand(3, 32, 32)
    found = randomization(RandomCAM(adapt(model, image_size=32, target_layers=["conv2"])), image, TARGETS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert found.ssim[0].min() == 1  # the head has no part in a random map of the layer before it
    assert found.ssim[-1].max() < 0.99


class Edges(BaseCAM, abstract=True):
    """A map that no network has a part in: the image's red."""

    name, paper, uses_gradients = "edges", "none", False

    def explain(self, images: Any, targets: Any = None, **options: Any) -> Any:
        return [
            SimpleNamespace(heatmaps=image[:1].expand(len(row), -1, -1).clone(), targets=row)
            for image, row in zip(images, targets, strict=True)
        ]


def test_a_map_independent_of_the_network_is_detected() -> None:
    model, cam, image = setup()
    edges = Edges(cam.adapter)
    assert randomization(edges, image, TARGETS).rank_correlation.min() == pytest.approx(1)

    def ask(method: BaseCAM) -> Tensor:
        maps = [torch.as_tensor(result.heatmaps) for result in method.explain([image], [TARGETS])]
        return RandomizationCheck(steps=2, seed=1).measure(
            method.adapter,
            [image],
            [TARGETS],
            maps,
            method=lambda adapter, images, targets: [
                torch.as_tensor(r.heatmaps) for r in method.explain(images, targets)
            ],
        )

    assert ask(edges).tolist() == pytest.approx([1, 1])
    literal = randomization(cam, image, TARGETS, steps=2, seed=1).rank_correlation.mean(0)
    assert torch.allclose(ask(cam), literal)
    with pytest.raises(ValueError, match="needs method="):
        RandomizationCheck().measure(cam.adapter, [image], [TARGETS], [torch.rand(2, 48, 40)])


def test_maps_with_nan_have_no_value() -> None:
    model, cam, image = setup()
    maps = tensors(cam([image], [TARGETS]))[0]
    maps[0, 3, 3] = float("nan")
    with pytest.warns(UserWarning, match="1 of 2 heatmaps have no value"):
        values = RandomizationCheck(steps=1).measure(
            cam.adapter,
            [image],
            [TARGETS],
            [maps],
            method=lambda adapter, images, targets: tensors(cam(images, targets)),
        )
    expected = randomization(cam, image, TARGETS[1:], steps=1).rank_correlation[0, 0]
    assert values[0].isnan()
    assert values[1] == pytest.approx(float(expected))


def test_independence_distinguishes_images_and_targets() -> None:
    slope = torch.linspace(0, 1, 64).expand(64, 64)
    images, targets = independence([torch.stack([slope, 1 - slope]), slope[None], torch.zeros(0, 64, 64)])
    # between images: slope with slope, and its opposite with slope; within the first: one with its opposite
    assert (images.pairs, targets.pairs) == (2, 1)
    assert images.rank_correlation == pytest.approx(0)
    assert targets.rank_correlation == pytest.approx(-1)
    assert images.ssim == pytest.approx((1 + ssim(slope, 1 - slope)) / 2)
    alone, none = independence([slope[None]])
    assert (alone.pairs, none.pairs) == (0, 0)
    assert np.isnan(alone.ssim)
    with pytest.raises(ValueError, match="NaN"):
        independence([torch.full((1, 9, 9), float("nan"))])
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        independence([slope])


def test_a_random_method_is_not_reproducible() -> None:
    model, cam, image = setup()

    class Dice(Edges, abstract=True):
        def explain(self, images: Any, targets: Any = None, **options: Any) -> Any:
            results = super().explain(images, targets if targets is not None else [TARGETS])
            with torch.random.fork_rng(devices=[]):  # as the package does around a model: the state comes back
                for result in results:
                    result.heatmaps = torch.rand_like(torch.as_tensor(result.heatmaps))
            return results

    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert reproducibility(cam, image, TARGETS).equal
    assert reproducibility(cam, image).largest_difference == 0
    assert torch.equal(torch.get_rng_state(), state)
    dice = reproducibility(Dice(cam.adapter), image, TARGETS)
    assert not dice.equal
    assert 0.1 < dice.largest_difference <= 1
    assert np.array_equal(np.random.get_state()[1], numpy_state)
