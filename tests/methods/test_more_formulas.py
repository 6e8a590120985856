"""The further methods against slow literal versions of their formulas, in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import (
    FEM,
    GCAME,
    KPCA_CAM,
    FinerCAM,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RandomCAM,
    RefineCAM,
    SegEigenCAM,
    SegGradCAM,
    SegHiResCAM,
    SegXResCAM,
    ShapleyCAM,
    SSGradCAM,
    SSGradCAMPlusPlus,
    adapt,
)
from detcam.cam import BaseCAM
from detcam.demo.model import load_demo_detector
from detcam.geometry import normalize
from detcam.methods.full_grad import layer_biases
from detcam.synthetic.harbor import draw_scene
from detcam.targets import ClassifierOutputReST, ClassifierOutputTarget, FinerWeightedTarget
from detcam.trace import Trace
from tests.helpers import Snapshot, TinyCNN, tensors

pytestmark = pytest.mark.filterwarnings("ignore::detcam.ReachWarning", "ignore::detcam.EmptyMapWarning")

IMAGES = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

Score = Callable[[Tensor], Tensor]


def seen(image: Tensor, score: Score, layer: str = "relu1") -> tuple[Tensor, Tensor]:
    """Activation and gradient (C, h, w) of a layer by plain autograd."""
    model = TinyCNN().double()
    kept: list[Tensor] = []
    getattr(model, layer).register_forward_hook(lambda m, i, o: kept.append(o))
    (gradient,) = torch.autograd.grad(score(model(image[None])[0]), kept[0])
    return kept[0][0].detach(), gradient[0]


def saliency(cam: BaseCAM, image: Tensor, score: Score) -> Tensor:
    return cam.explain(image[None], [[score]])[0].saliency[0][0]


def make(method: type[BaseCAM], layer: str = "relu1", **options: Any) -> BaseCAM:
    return method(TinyCNN().double(), [layer], **options)


@pytest.fixture(params=[0, 1])
def image(request: pytest.FixtureRequest) -> Tensor:
    return IMAGES[request.param]


TARGET = ClassifierOutputTarget(1)


def test_fem(image: Tensor) -> None:
    a, _ = seen(image, TARGET)
    expected = torch.zeros_like(a[0])
    for channel in a:
        values = channel.flatten().tolist()
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                if channel[i, j] >= mean + 1.5 * deviation:
                    expected[i, j] += mean
    torch.testing.assert_close(saliency(make(FEM, k=1.5), image, TARGET), expected)
    assert float(expected.abs().max()) > 0


def test_fem_leaves_constant_channels_out() -> None:
    assert float(make(FEM).contributions(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3)).abs().max()) == 0


def test_random_weights_depend_on_the_seed(image: Tensor) -> None:
    a, _ = seen(image, TARGET)
    weights = 2 * torch.rand(4, generator=torch.Generator().manual_seed(7)).double() - 1
    expected = sum(float(w) * channel for w, channel in zip(weights, a, strict=True))
    torch.testing.assert_close(saliency(make(RandomCAM, seed=7), image, TARGET), expected)
    assert not torch.allclose(saliency(make(RandomCAM, seed=8), image, TARGET), expected)
    negative = make(RandomCAM, seed=next(s for s in range(99) if _all_negative(s)))(image[None], [TARGET])
    assert float(negative.max()) == 1.0  # a control that is empty would be none


def _all_negative(seed: int) -> bool:
    return bool((torch.rand(4, generator=torch.Generator().manual_seed(seed)) < 0.5).all())


def test_seg_eigen_cam(image: Tensor) -> None:
    a, g = seen(image, TARGET)
    rows = (g.abs() * a).flatten(1).T
    centered = rows - rows.mean(0)
    axis = torch.linalg.svd(centered)[2][0]
    projected = (centered @ axis).reshape(a.shape[1:])
    if projected.min().abs() > projected.max().abs():
        projected = -projected
    torch.testing.assert_close(saliency(make(SegEigenCAM), image, TARGET), projected)


@pytest.mark.parametrize("kernel", ["sigmoid", "rbf", "poly", "cosine", "linear"])
def test_kpca_cam(image: Tensor, kernel: str) -> None:
    a, _ = seen(image, TARGET)
    x = a.flatten(1).T
    x = x - x.mean(0)
    positions = len(x)
    k = torch.zeros(positions, positions, dtype=torch.float64)
    formula = {
        "sigmoid": lambda u, v: math.tanh(0.3 * float(u @ v) + 1),
        "rbf": lambda u, v: math.exp(-0.3 * float((u - v).square().sum())),
        "poly": lambda u, v: (0.3 * float(u @ v) + 1) ** 3,
        "cosine": lambda u, v: float(u @ v) / float(u.norm() * v.norm()),
        "linear": lambda u, v: float(u @ v),
    }[kernel]
    for p in range(positions):
        for q in range(positions):
            k[p, q] = formula(x[p], x[q])
    ones = torch.full_like(k, 1 / positions)
    values, vectors = torch.linalg.eigh(k - ones @ k - k @ ones + ones @ k @ ones)
    expected = (vectors[:, -1] * values[-1].sqrt()).reshape(a.shape[1:])
    found = saliency(make(KPCA_CAM, kernel=kernel, gamma=0.3), image, TARGET)
    assert float((found * x.sum(1).reshape(found.shape)).sum()) > 0  # the sign that the data decide
    torch.testing.assert_close(found, expected * (expected * found).sum().sign(), atol=1e-8, rtol=1e-6)


def test_kpca_cam_refuses_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="one of sigmoid, rbf"):
        make(KPCA_CAM, kernel="gauss")
    with pytest.raises(ValueError, match="too many"):
        make(KPCA_CAM).saliency(torch.zeros(1, 1, 200, 100), torch.zeros(1))


def slow_space_map(g: Tensor) -> Tensor:
    return torch.stack([channel.abs() / channel.abs().max() for channel in g])


def partial_score(out: Tensor) -> Tensor:
    return out[1] - out[0]


def test_ssgrad_cam(image: Tensor) -> None:
    a, g = seen(image, TARGET)
    space = slow_space_map(g)
    expected = sum(g[k].mean() * space[k] * a[k] for k in range(len(a)))
    torch.testing.assert_close(saliency(make(SSGradCAM), image, TARGET), expected)


def test_ssgrad_cam_plusplus_counts_only_what_the_score_reads() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, 4, 5, generator=generator, dtype=torch.float64)
    g = torch.randn(1, 3, 4, 5, generator=generator, dtype=torch.float64)
    g[:, :, 2:] = 0  # as for a head that reads the upper half
    expected = torch.zeros(4, 5, dtype=torch.float64)
    for k in range(3):
        read = sum(float(a[0, k, i, j]) for i in range(2) for j in range(5))
        weight = 0.0
        for i in range(2):
            for j in range(5):
                d = float(g[0, k, i, j])
                weight += d**2 / (2 * d**2 + read * d**3) * max(d, 0)
        expected += weight * slow_space_map(g[0])[k] * a[0, k]
    torch.testing.assert_close(make(SSGradCAMPlusPlus).contributions(a, g).sum(1)[0], expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_g_came_of_one_cell_is_the_papers_formula(sign: float) -> None:
    """A dense head reads one cell: |mean| weighs, its sign decides, and the Gaussian sits on that cell."""
    cam = make(GCAME)
    cam.input_size_hw = (160, 128)  # type: ignore[attr-defined]
    a = torch.rand(1, 1, 20, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = torch.zeros(1, 1, 20, 16, dtype=torch.float64)
    g[0, 0, 13, 4] = 0.32 * sign
    mean, stride = 0.32 / 320, 8.0
    sigma = abs(math.log(mean)) * math.log(stride) * 3 / ((math.sqrt(320) - 1) // 2)
    expected = torch.zeros(20, 16, dtype=torch.float64)
    for i in range(20):
        for j in range(16):
            expected[i, j] = math.exp(-((i - 13) ** 2 + (j - 4) ** 2) / (2 * sigma**2))
    expected = (expected - expected.min()) / (expected.max() - expected.min()) * mean * sign * a[0, 0]
    torch.testing.assert_close(cam.contributions(a, g).sum(1)[0], expected)


def test_g_came_separates_the_signs(image: Tensor) -> None:
    a, g = seen(image, TARGET)
    cam = make(GCAME)
    found = saliency(cam, image, TARGET)
    assert cam.input_size_hw == (24, 32)  # type: ignore[attr-defined]
    parts = [cam.contributions(a[None], part[None]) for part in (g.clamp(min=0), g.clamp(max=0))]
    torch.testing.assert_close(found, sum(parts).sum(1)[0])


def test_seg_methods_equal_their_formulas(image: Tensor) -> None:
    for method, base in ((SegGradCAM, GradCAM), (SegHiResCAM, HiResCAM)):
        torch.testing.assert_close(
            saliency(make(method), image, TARGET), saliency(make(base), image, TARGET), rtol=0, atol=0
        )


@pytest.mark.parametrize("mode", ["max", "mean"])
def test_seg_xres_cam_pools_over_clipped_windows(image: Tensor, mode: str) -> None:
    a, g = seen(image, TARGET)  # 12 x 16 cells in windows of 5
    expected = torch.zeros_like(a[0])
    for k in range(len(a)):
        for i in range(12):
            for j in range(16):
                window = g[k, i // 5 * 5 : i // 5 * 5 + 5, j // 5 * 5 : j // 5 * 5 + 5]
                expected[i, j] += (window.max() if mode == "max" else window.mean()) * a[k, i, j]
    found = saliency(make(SegXResCAM, pool_size=5, pool_mode=mode), image, TARGET)
    torch.testing.assert_close(found, expected)


def test_seg_xres_cam_lies_between_hires_cam_and_grad_cam(image: Tensor) -> None:
    ends = [saliency(make(base), image, TARGET) for base in (HiResCAM, GradCAM)]
    for size, expected in zip((1, 99), ends, strict=True):
        torch.testing.assert_close(
            saliency(make(SegXResCAM, pool_size=size, pool_mode="mean"), image, TARGET), expected
        )
    for options, words in (({"pool_size": 0}, "pool_size"), ({"pool_mode": "min"}, "max or mean")):
        with pytest.raises(ValueError, match=words):
            make(SegXResCAM, **options)


class Smooth(nn.Module):
    """A layer followed by a network with curvature everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, stride=2)
        self.second = nn.Conv2d(3, 4, 3)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4

    def rest(self, a: Tensor) -> Tensor:
        return (self.second(a).tanh() * 2).sum((2, 3)) / 10

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x))


def test_shapley_cam_equals_the_full_hessian() -> None:
    image = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Smooth().double().eval()
    target = ClassifierOutputReST(2)
    a = model.first(image[None]).detach()

    def score(flat: Tensor) -> Tensor:
        return target(model.rest(flat.reshape(a.shape))[0])

    hessian = torch.autograd.functional.hessian(score, a.flatten())
    gradient = torch.autograd.functional.jacobian(score, a.flatten())
    weights = (gradient - 0.5 * hessian @ a.flatten()).reshape(a.shape).mean((2, 3))
    expected = (weights[:, :, None, None] * a).sum(1)[0]
    model.requires_grad_(True)
    before = Snapshot(model)
    found = ShapleyCAM(model, ["first"]).explain(image[None], [[target]])[0]
    before.check()
    torch.testing.assert_close(found.saliency[0][0], expected)
    plain = saliency(GradCAM(model, ["first"]), image, target)
    assert float((plain - expected).abs().max()) > 0.01 * float(expected.abs().max()), "the Hessian plays no part"


def test_shapley_cam_of_a_linear_network_is_grad_cam_and_layers_keep_their_own_hessian() -> None:
    """After relu2 the tiny network squares, so there H A = 2 g / 2 each way; two layers do not mix."""
    score = ClassifierOutputTarget(1)
    a, g = seen(IMAGES[0], score, "relu2")
    expected = ((g - 0.5 * g).mean((1, 2), keepdim=True) * a).sum(0)  # the score is quadratic in A: H A = g
    both = ShapleyCAM(TinyCNN().double(), ["relu1", "relu2"]).explain(IMAGES[:1], [[score]])[0].saliency
    torch.testing.assert_close(both[1][0], expected)
    alone = ShapleyCAM(TinyCNN().double(), ["relu1"]).explain(IMAGES[:1], [[score]])[0].saliency
    torch.testing.assert_close(both[0], alone[0])


def test_shapley_cam_differentiates_attention_and_region_pooling_twice() -> None:
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, stride=4)
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

            self.act = nn.Hardsigmoid()

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.act(self.patch(x)).flatten(2).transpose(1, 2)
            return self.mix(tokens, tokens, tokens, need_weights=False)[0].mean(1)

    model = Attentive().double().eval()
    a = model.patch(IMAGES[:1]).detach()

    def score(flat: Tensor) -> Tensor:
        gated = (flat.reshape(a.shape) / 6 + 0.5).clamp(0, 1)
        tokens = gated.flatten(2).transpose(1, 2)
        return model.mix(tokens, tokens, tokens, need_weights=True)[0].mean(1)[0, 3]

    gradient = torch.autograd.functional.jacobian(score, a.flatten())
    hessian = torch.autograd.functional.hessian(score, a.flatten())
    weights = (gradient - 0.5 * hessian @ a.flatten()).reshape(a.shape).mean((2, 3), keepdim=True)
    found = saliency(ShapleyCAM(model, ["patch"]), IMAGES[0], ClassifierOutputTarget(3))
    torch.testing.assert_close(found, (weights * a).sum(1)[0])

    adapter = adapt(load_demo_detector(), target_layers=["backbone.pyramid"])
    image = draw_scene(28).image
    detections = adapter.predict(image)[0]
    result = ShapleyCAM(adapter).explain(image, [detections])[0]
    torch.testing.assert_close(result.scores, detections.scores, atol=1e-4, rtol=0)
    assert all(float(level.abs().max()) > 0 for level in result.saliency[:1])


def test_finer_cam_compares_with_the_nearest_classes(image: Tensor) -> None:
    with torch.no_grad():
        logits = TinyCNN(classes=6).double()(image[None])[0].tolist()
    others = sorted((d for d in range(6) if d != 2), key=lambda d: abs(logits[d] - logits[2]))[:2]
    cam = FinerCAM(TinyCNN(classes=6).double(), ["relu1"], base_method=HiResCAM, alpha=0.7, comparisons=2)
    base = HiResCAM(TinyCNN(classes=6).double(), ["relu1"])
    result = cam.explain(image[None], [ClassifierOutputTarget(2)])[0]
    expected = base.explain(image[None], [FinerWeightedTarget(2, others, 0.7)])[0]
    torch.testing.assert_close(torch.as_tensor(result.heatmaps), torch.as_tensor(expected.heatmaps))
    torch.testing.assert_close(result.saliency[0], expected.saliency[0])
    assert float(result.scores) == pytest.approx(logits[2], rel=1e-5)
    kept = cam.explain(image[None], [partial_score])[0]
    torch.testing.assert_close(kept.saliency[0], base.explain(image[None], [partial_score])[0].saliency[0])


def test_finer_cam_compares_logits_of_the_source() -> None:
    adapter = adapt(load_demo_detector(), target_layers=["backbone.stride4"])
    image = draw_scene(28).image
    found = adapter.predict(image)[0][[0]]
    (box,) = adapter.targets_of(found)
    result = FinerCAM(adapter, comparisons=1, alpha=1.0).explain(image, [found])[0]
    torch.testing.assert_close(result.scores, found.scores, atol=1e-4, rtol=0)
    logits = [
        float(GradCAM(adapter).explain(image, [type(box)(box.box_xyxy, label, box.source, "logit")])[0].scores)  # type: ignore[attr-defined]
        for label in range(3)
    ]
    label = int(found.labels[0])
    against = min((d for d in range(3) if d != label), key=lambda d: abs(logits[d] - logits[label]))
    margin = type(box)(box.box_xyxy, label, box.source, "logit", against)  # type: ignore[attr-defined]
    torch.testing.assert_close(
        torch.as_tensor(result.heatmaps),
        torch.as_tensor(GradCAM(adapter).explain(image, [margin])[0].heatmaps),
        atol=1e-4,
        rtol=0,
    )


def test_finer_cam_needs_several_classes() -> None:
    with pytest.raises(ValueError, match="ignores the target"):
        make(FinerCAM, base_method=FEM)
    with pytest.raises(ValueError, match="comparisons"):
        make(FinerCAM, comparisons=0)


def test_refine_cam_is_the_product_of_the_layers_maps(image: Tensor) -> None:
    layers = ["conv1", "relu1", "relu2"]
    for base in (GradCAMPlusPlus, LayerCAM):
        parts = [tensors(base(TinyCNN().double(), [layer])(image[None], [TARGET])).double() for layer in layers]
        found = tensors(RefineCAM(TinyCNN().double(), layers, base_method=base)(image[None], [TARGET]))
        torch.testing.assert_close(found.double(), normalize(parts[0] * parts[1] * parts[2]), atol=1e-5, rtol=0)


class OutOfOrder(nn.Module):
    """Layers with biases, defined in another order than they run, one of them twice and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.unused = nn.Conv2d(3, 3, 1)
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        generator = torch.Generator().manual_seed(5)
        for tensor in (*self.parameters(), self.norm.running_mean, self.norm.running_var):
            tensor.data = torch.rand(tensor.shape, generator=generator) + (
                0.1 if tensor is self.norm.running_var else -0.4
            )
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = self.act(self.twice(x))
        x = self.act(self.twice(x))
        return self.last(x).mean((2, 3))


@pytest.mark.filterwarnings("ignore:FullGrad takes all layers")
def test_full_grad_pairs_each_bias_with_its_own_gradient() -> None:
    model, image = OutOfOrder(), IMAGES[0][None].clone().requires_grad_(True)
    norm = model.norm
    outputs = []
    x = model.first(image)
    for module in (norm, model.twice, model.twice, model.last):
        x = module(x)
        shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
        outputs.append((x, shift if module is norm else module.bias))
        x = x if module is model.last else x.relu()
    score = x.mean((2, 3))[0, 2]
    gradients = torch.autograd.grad(score, [image, *(output for output, _ in outputs)])
    parts = [gradients[0] * image] + [g * b[:, None, None] for g, (_, b) in zip(gradients[1:], outputs, strict=True)]
    expected = torch.zeros(24, 32, dtype=torch.float64)
    for part in parts:
        for channel in part[0]:
            size = channel.abs()
            if size.max() > size.min():
                size = (size - size.min()) / (size.max() - size.min())
                expected += F.interpolate(size[None, None], (24, 32), mode="bilinear")[0, 0].detach()
    model.requires_grad_(True)
    before = Snapshot(model)
    found = FullGrad(model, [model.last]).explain(IMAGES[:1], [ClassifierOutputTarget(2)])[0]
    before.check()
    torch.testing.assert_close(
        torch.as_tensor(found.heatmaps)[0].double(), normalize(expected[None])[0], atol=1e-5, rtol=0
    )
    assert found.reach is not None and found.reach[0].fraction == 1.0


def test_full_gradients_are_complete() -> None:
    """Paper, proposition 1: gradient times input plus all bias gradients are the score, if the biases are right."""
    model = OutOfOrder()
    biases = dict(layer_biases(model))
    assert set(biases) == {model.last, model.norm, model.unused, model.twice}
    ran: list[tuple[Tensor, Tensor]] = []
    for module in biases:
        module.register_forward_hook(lambda m, i, o: (ran.append((biases[m], o)), o.clone())[1])
    image = IMAGES[:1].clone().requires_grad_(True)
    score = model(image)[0, 1]
    gradients = torch.autograd.grad(score, [image, *(output for _, output in ran)])
    total = (gradients[0] * image).sum() + sum(
        (g.sum((0, 2, 3)) * b).sum() for g, (b, _) in zip(gradients[1:], ran, strict=True)
    )
    torch.testing.assert_close(total, score)


def test_full_grad_refuses_unsupported_arguments() -> None:
    with pytest.warns(UserWarning, match="takes all layers with a bias"):
        cam = FullGrad(TinyCNN(), ["conv1"])
    with pytest.raises(ValueError, match="no common principal component"):
        cam.explain(IMAGES.float(), [TARGET] * 2, eigen_smooth=True)
    with pytest.raises(RuntimeError, match="does not depend on the image"):
        cam.explain(IMAGES.float(), [lambda out: out[0].detach()] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FullGrad(TinyCNN())


def test_full_grad_on_a_two_stage_detector_keeps_targets_pinned() -> None:
    adapter = adapt(load_demo_detector())
    image = draw_scene(28).image
    found = adapter.predict(image)[0]
    result = FullGrad(adapter).explain(image, [found])[0]
    torch.testing.assert_close(result.scores, found.scores, atol=1e-4, rtol=0)
    assert all(float(heatmap.max()) == pytest.approx(1.0) for heatmap in torch.as_tensor(result.heatmaps))
    assert not torch.allclose(torch.as_tensor(result.heatmaps)[0], torch.as_tensor(result.heatmaps)[1], atol=0.1)


def test_shapley_cam_names_an_operation_without_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("derivative for aten::grid_sampler_2d_backward is not implemented")

    monkeypatch.setattr(Trace, "second_order", fail)
    with pytest.raises(RuntimeError, match=r"no second derivative of aten::grid_sampler_2d_backward, .* GradCAM"):
        ShapleyCAM(TinyCNN().double(), ["relu2"]).explain(IMAGES[:1], [[ClassifierOutputTarget(0)]])
