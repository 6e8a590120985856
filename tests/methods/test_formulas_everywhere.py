"""Gradient methods against loops in float64 where the other tests do not look: a ViT's tokens, a detector's boxes.

At the end, values of the further methods worked out by hand.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam import (
    FEM,
    GCAME,
    KPCA_CAM,
    FinerCAM,
    FullGrad,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    Occlusion,
    ReachCAM,
    ReciproCAM,
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
from detcam.adapters import Adapter, detector
from detcam.cam import BaseCAM
from detcam.geometry import Geometry
from detcam.targets import ClassifierOutputTarget
from tests.helpers import TinyCNN, tensors
from tests.methods.formulas import FORMULAS, TinyViT, patches_to_map

pytestmark = pytest.mark.filterwarnings("ignore")

Formula = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]
"""From an image's activations and gradients (C, h, w), and the input's height and width, to the map (h, w)."""


@dataclass(frozen=True)
class Setting:
    """A model, one image, its targets, and the same by plain autograd.

    Attributes:
        adapter: what the methods get.
        image: (1, 3, H, W) or (3, H, W), float64.
        targets: one, as the methods take it.
        output: what the layer puts out.
        shaped: from that to (1, C, h, w).
        downstream: from the layer's output to the class scores of the target's source.
        label: of the target.
        link: from a class score to the value that is explained.
    """

    adapter: Adapter
    image: Tensor
    targets: Any
    output: Tensor
    shaped: Callable[[Tensor], Tensor]
    downstream: Callable[[Tensor], Tensor]
    label: int
    link: Callable[[Tensor], Tensor]

    @property
    def activations(self) -> Tensor:
        """(1, C, h, w)."""
        return self.shaped(self.output)

    def score(self, output: Tensor) -> Tensor:
        return self.link(self.downstream(output)[self.label])

    def gradient(self, score: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(1, C, h, w)."""
        leaf = self.output.clone().requires_grad_(True)
        return self.shaped(torch.autograd.grad((score or self.score)(leaf), leaf)[0])


def vit() -> Setting:
    model = TinyViT().double()
    image = torch.randn(1, 3, 12, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        patches = model.embed(image).flatten(2).transpose(1, 2)
        tokens = model.norm(torch.cat([model.token, patches], 1))

    def downstream(seen: Tensor) -> Tensor:
        attention = (seen[:, :1] @ model.mix(seen).transpose(1, 2)).softmax(-1)
        return model.head(torch.tanh(attention @ seen)[:, 0])[0]

    adapter = adapt(model, target_layers=[model.norm], reshape_transform=patches_to_map)
    targets = [[ClassifierOutputTarget(1)]]
    return Setting(adapter, image, targets, tokens, patches_to_map, downstream, 1, lambda value: value)


def boxes() -> Setting:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 5, 4, 2))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    model.double().eval()

    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        down, across = raw.shape[2:]
        corners = torch.tensor([[16.0 * j, 16.0 * i] for i in range(down) for j in range(across)])[None]
        return torch.cat([corners, corners + 16], -1).expand(len(raw), -1, -1), raw.sigmoid().flatten(2).mT

    adapter = detector(model, decode, image_size=48, max_detections=3, target_layers="0")
    image = torch.rand(3, 48, 48, generator=generator).double()
    found = adapter.predict(image)[0][[1]]
    plain = copy.deepcopy(model)
    plain[2].inplace = False
    cell, label = found.source[0].anchor, int(found.labels[0])

    def downstream(maps: Tensor) -> Tensor:
        return plain[1:](maps)[0].flatten(1)[:, cell]

    with torch.no_grad():
        output = plain[0](image[None].float().double())
    return Setting(adapter, image, [found], output, lambda tensor: tensor, downstream, label, torch.sigmoid)


SETTINGS = {"ViT tokens": vit, "a detector's box": boxes}


@pytest.fixture(params=list(SETTINGS))
def setting(request: pytest.FixtureRequest) -> Setting:
    return SETTINGS[request.param]()


def found_by(cam: BaseCAM, setting: Setting) -> Tensor:
    return cam.explain(setting.image, setting.targets)[0].saliency[0][0]


def agrees(found: Tensor, expected: Tensor, *, rtol: float = 1e-6) -> None:
    """float64 on both sides; the detector's image was rounded to float32 on both."""
    size = float(expected.abs().max())
    assert size > 0
    torch.testing.assert_close(found, expected, atol=rtol * size, rtol=0)


@pytest.mark.parametrize("method", FORMULAS, ids=lambda method: method.__name__)
def test_methods_of_the_first_table_on_a_box(method: type[BaseCAM]) -> None:
    setting = boxes()
    expected = FORMULAS[method](setting.activations[0].tolist(), setting.gradient()[0].tolist())
    agrees(found_by(method(setting.adapter), setting), torch.tensor(expected, dtype=torch.float64))


def positions(maps: Tensor) -> list[tuple[int, int]]:
    return [(i, j) for i in range(maps.shape[-2]) for j in range(maps.shape[-1])]


def fem(a: Tensor, g: Tensor, size: tuple[int, int]) -> Tensor:
    total = torch.zeros_like(a[0])
    for channel in a.tolist():
        values = [value for row in channel for value in row]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        for i, j in positions(a):
            total[i, j] += mean if channel[i][j] >= mean + 1.0 * deviation else 0.0
    return total


def seg_eigen_cam(a: Tensor, g: Tensor, size: tuple[int, int]) -> Tensor:
    table = np.array([[abs(float(g[k, i, j])) * float(a[k, i, j]) for k in range(len(a))] for i, j in positions(a)])
    table = table - table.mean(0)
    projected = table @ np.linalg.svd(table)[2][0]
    projected = projected if projected.max() >= -projected.min() else -projected
    return torch.tensor(projected).reshape(a.shape[1:])


def kpca_cam(a: Tensor, g: Tensor, size: tuple[int, int]) -> Tensor:
    table = np.array([[float(a[k, i, j]) for k in range(len(a))] for i, j in positions(a)])
    table = table - table.mean(0)
    kernel = np.array([[math.tanh(float(x @ y) / len(a) + 1) for y in table] for x in table])
    centered = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    values, vectors = np.linalg.eigh(centered)
    projected = vectors[:, -1] * math.sqrt(values[-1])
    sums = table.sum(1)
    constant_sum = np.abs(sums).max() < 1e-6  # as after a LayerNorm, where channels add up to the same everywhere
    sign = projected[np.abs(projected).argmax()] if constant_sum else (projected * sums).sum()
    return torch.tensor(projected * np.sign(sign)).reshape(a.shape[1:])


def space(channel: Tensor) -> list[list[float]]:
    greatest = max(abs(value) for row in channel.tolist() for value in row)
    return [[abs(value) / greatest if greatest else 0.0 for value in row] for row in channel.tolist()]


def ssgrad_cam(a: Tensor, g: Tensor, size: tuple[int, int]) -> Tensor:
    total = torch.zeros_like(a[0])
    for act, grad in zip(a, g, strict=True):
        weight, near = sum(sum(row) for row in grad.tolist()) / grad.numel(), space(grad)
        for i, j in positions(a):
            total[i, j] += weight * near[i][j] * float(act[i, j])
    return total


def ssgrad_cam_plusplus(a: Tensor, g: Tensor, size: tuple[int, int]) -> Tensor:
    total = torch.zeros_like(a[0])
    for act, grad in zip(a.tolist(), g, strict=True):
        near, slopes = space(grad), grad.tolist()
        read = sum(act[i][j] for i, j in positions(a) if slopes[i][j] != 0)
        weight = 0.0
        for i, j in positions(a):
            d = slopes[i][j]
            if d != 0:
                weight += d**2 / (2 * d**2 + read * d**3) * max(d, 0.0)
        for i, j in positions(a):
            total[i, j] += weight * near[i][j] * act[i][j]
    return total


def g_came(a: Tensor, g: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = a.shape[1:]
    stride = math.sqrt(size[0] * size[1] / (height * width))
    total = torch.zeros_like(a[0])
    for act, grad in zip(a.tolist(), g.tolist(), strict=True):
        for sign in (1, -1):
            part = {(i, j): max(sign * grad[i][j], 0.0) for i, j in positions(a)}
            mean = sum(part.values()) / (height * width)
            if mean == 0:
                continue
            radius = math.floor((math.sqrt(height * width) - 1) / 2)
            sigma = max(abs(math.log(mean) * math.log(stride) / (max(radius, 1) / 3)), 1.0)
            center = max(part, key=lambda position: part[position])
            bell = {(i, j): math.exp(-((i - center[0]) ** 2 + (j - center[1]) ** 2) / (2 * sigma**2)) for i, j in part}
            low, high = min(bell.values()), max(bell.values())
            for i, j in part:
                total[i, j] += sign * mean * (bell[i, j] - low) / (high - low) * act[i][j]
    return total


def seg_xres_cam(a: Tensor, g: Tensor, size: tuple[int, int]) -> Tensor:
    total = torch.zeros_like(a[0])
    for act, grad in zip(a.tolist(), g.tolist(), strict=True):
        for i, j in positions(a):
            window = [grad[p][q] for p, q in positions(a) if p // 2 == i // 2 and q // 2 == j // 2]
            total[i, j] += max(window) * act[i][j]
    return total


MORE: dict[type[BaseCAM], tuple[Formula, dict[str, Any]]] = {
    FEM: (fem, {"k": 1.0}),
    SegEigenCAM: (seg_eigen_cam, {}),
    KPCA_CAM: (kpca_cam, {}),
    SSGradCAM: (ssgrad_cam, {}),
    SSGradCAMPlusPlus: (ssgrad_cam_plusplus, {}),
    GCAME: (g_came, {}),
    SegXResCAM: (seg_xres_cam, {}),
    SegGradCAM: (lambda a, g, size: torch.tensor(FORMULAS[GradCAM](a.tolist(), g.tolist())), {}),
    SegHiResCAM: (lambda a, g, size: torch.tensor(FORMULAS[HiResCAM](a.tolist(), g.tolist())), {}),
}


@pytest.mark.parametrize("method", MORE, ids=lambda method: method.__name__)
def test_raw_saliency_equals_the_formula(method: type[BaseCAM], setting: Setting) -> None:
    formula, options = MORE[method]
    height, width = setting.image.shape[-2:]
    expected = formula(setting.activations[0], setting.gradient()[0], (height, width))
    agrees(found_by(method(setting.adapter, **options), setting), expected.double())


def test_shapley_cam_equals_its_formula(setting: Setting) -> None:
    """The Hessian is that of all the layer puts out, a class token too."""
    output = setting.output

    def score(flat: Tensor) -> Tensor:
        return setting.score(flat.reshape(output.shape))

    hessian = torch.autograd.functional.hessian(score, output.flatten())
    curved = setting.shaped((hessian @ output.flatten()).reshape(output.shape))
    weights = (setting.gradient() - curved / 2).mean((2, 3), keepdim=True)
    agrees(found_by(ShapleyCAM(setting.adapter), setting), (weights * setting.activations).sum(1)[0])


def test_finer_cam_equals_its_formula(setting: Setting) -> None:
    def finer(output: Tensor) -> Tensor:
        logits = setting.downstream(output)
        own = logits[setting.label]
        others = [d for d in range(len(logits)) if d != setting.label]
        others.sort(key=lambda d: abs(float(logits[d]) - float(own)))
        shares = logits.softmax(0)  # a part of what is differentiated, as in the authors' code
        return sum(shares[d] * (own - 0.6 * logits[d]) for d in others[:1]) / sum(shares[d] for d in others[:1])

    g = setting.gradient(finer)
    expected = FORMULAS[HiResCAM](setting.activations[0].tolist(), g[0].tolist())
    cam = FinerCAM(setting.adapter, base_method=HiResCAM, alpha=0.6, comparisons=1)
    agrees(found_by(cam, setting), torch.tensor(expected, dtype=torch.float64))


def test_full_grad_equals_its_formula_on_a_box() -> None:
    """ImageArray, normalization and last convolution have their part; every other layer has no bias of its own."""
    setting = boxes()
    model: Any = setting.adapter.model
    image = setting.image[None].float().double().requires_grad_(True)
    first = model[0](image)
    normal = model[1](first)
    last = model[3](normal.relu())
    score = last[0, setting.label].flatten()[setting.targets[0].source[0].anchor].sigmoid()
    at_image, at_first, at_normal, at_last = torch.autograd.grad(score, [image, first, normal, last])
    shift = model[1].bias - model[1].running_mean * model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    parts = [at_image * image]
    for gradient, bias in ((at_first, model[0].bias), (at_normal, shift), (at_last, model[3].bias)):
        parts.append(gradient * bias[:, None, None])
    total = torch.zeros(48, 48, dtype=torch.float64)
    for part in parts:
        for channel in part[0].detach().abs():
            if channel.max() > channel.min():
                scaled = (channel - channel.min()) / (channel.max() - channel.min())
                total += nn.functional.interpolate(scaled[None, None], (48, 48), mode="bilinear")[0, 0]
    expected = (total - total.min()) / (total.max() - total.min())
    found = torch.as_tensor(FullGrad(setting.adapter).explain(setting.image, setting.targets)[0].heatmaps)[0]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


# Two channels of 1 x 2 positions, as in the other table of values by hand.
A = torch.tensor([[[[2.0, 1.0]], [[4.0, -1.0]]]])
G = torch.tensor([[[[1.0, -3.0]], [[0.5, 0.5]]]])
BY_HAND: list[tuple[type[BaseCAM], dict[str, Any], list[float]]] = [
    # means 1.5 and 1.5, deviations 0.5 and 2.5: the first position is strong in both channels
    (FEM, {"k": 0.5}, [3.0, 0.0]),
    # one axis, positions at +-(0.5, 2.5): length sqrt(6.5), as EigenCAM
    (KPCA_CAM, {"kernel": "linear"}, [math.sqrt(6.5), -math.sqrt(6.5)]),
    # kernel (tanh 2, tanh 0), centered: +-(tanh 2 - tanh 0) / 2, whose root is the projection
    (KPCA_CAM, {"gamma": 1 / 6.5}, [math.sqrt(math.tanh(2) / 2), -math.sqrt(math.tanh(2) / 2)]),
    # mean gradients -1 and 0.5, space maps (1/3, 1) and (1, 1): (-2/3 + 2, -1 - 0.5)
    (SSGradCAM, {}, [4 / 3, -1.5]),
    # weights 1 / (2 + 3) = 0.2 and twice 0.5 / (2 + 1.5) = 2/7, the same space maps
    (SSGradCAMPlusPlus, {}, [0.2 * 2 / 3 + 8 / 7, 0.2 - 2 / 7]),
    # bells of one cell: means 0.5 at the left, -1.5 at the right, 0.5 at the left: (0.5 * 2 + 0.5 * 4, -1.5 * 1)
    (GCAME, {}, [3.0, -1.5]),
    # greatest gradients 1 and 0.5: (2 + 2, 1 - 0.5)
    (SegXResCAM, {}, [4.0, 0.5]),
    # mean gradients -1 and 0.5: (-2 + 2, -1 - 0.5)
    (SegGradCAM, {}, [0.0, -1.5]),
    # (2 * 1 + 4 * 0.5, 1 * -3 + -1 * 0.5)
    (SegHiResCAM, {}, [4.0, -3.5]),
]


@pytest.mark.parametrize(("method", "options", "expected"), BY_HAND)
def test_values_by_hand(method: type[BaseCAM], options: dict[str, Any], expected: list[float]) -> None:
    cam: Any = method(TinyCNN(), ["conv2"], **options)
    cam.input_size_hw = (8, 16)
    torch.testing.assert_close(cam.saliency(A, G), torch.tensor([[expected]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_seg_eigen_cam_by_hand(sign: float) -> None:
    """One channel of 0, 3, 0 less its mean; the position of greatest magnitude is positive."""
    maps = sign * torch.tensor([[[[0.0, 3.0, 0.0]]]])
    found = SegEigenCAM(TinyCNN(), ["conv2"]).saliency(maps, torch.ones(1, 1, 1, 3))
    torch.testing.assert_close(found, torch.tensor([[[-1.0, 2.0, -1.0]]]), atol=1e-6, rtol=0)


def test_g_came_sigma_is_at_least_one_cell() -> None:
    """A mean gradient of 1 has logarithm 0: the bell falls to exp(-1/2) and exp(-2), less the last."""
    cam: Any = GCAME(TinyCNN(), ["conv2"])
    cam.input_size_hw = (8, 24)
    found = cam.saliency(torch.ones(1, 1, 1, 3), torch.tensor([[[[3.0, 0.0, 0.0]]]]))
    second = (math.exp(-0.5) - math.exp(-2)) / (1 - math.exp(-2))
    torch.testing.assert_close(found, torch.tensor([[[1.0, second, 0.0]]]), atol=1e-6, rtol=0)


def test_refine_cam_by_hand() -> None:
    """(0, 1/3, 1) times (0, 1, 1/2) is (0, 1/3, 1/2)."""
    levels = [torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[[0.0, 1.0, 0.5]]])]
    found = RefineCAM(TinyCNN(), ["relu1", "relu2"]).combine(levels, Geometry.identity((1, 3)))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 2 / 3, 1.0]]]), atol=1e-6, rtol=0)


class Plain(nn.Module):
    """A layer that changes nothing, and a score of what it puts out."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.score = score
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.layer(x))


def squares(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3))[:, None]


def of(cam: BaseCAM, image: Tensor) -> list[Tensor]:
    return list(cam.explain(image, [ClassifierOutputTarget(0)])[0].saliency)


def test_methods_of_second_order_and_paths_by_hand() -> None:
    """y is the sum of squares of (2, 4)."""
    image = torch.tensor([[[[2.0, 4.0]]]])
    # the gradient (4, 8) less half of 2 A is (2, 4), whose mean weighs
    torch.testing.assert_close(of(ShapleyCAM(Plain(squares), ["layer"]), image)[0], torch.tensor([[[6.0, 12.0]]]))
    # from the mean, 3, to each position the squares grow by 4 - 9 and 16 - 9: together 20 - 18
    torch.testing.assert_close(of(ReachCAM(Plain(squares), ["layer"]), image)[0], torch.tensor([[[-5.0, 7.0]]]))
    # one position at a time: its own square
    cam = ReciproCAM(Plain(squares), ["layer"], gaussian=False)
    torch.testing.assert_close(of(cam, image)[0], torch.tensor([[[4.0, 16.0]]]))
    # a quarter of the position and an eighth of the one beside it: squares of (1/2, 1/2) and of (1/4, 1)
    blurred = of(ReciproCAM(Plain(squares), ["layer"]), image)[0]
    torch.testing.assert_close(blurred, torch.tensor([[[0.5, 1.0625]]]))


def test_finer_cam_by_hand() -> None:
    """Means of two channels: half of the first, less a quarter of the second at alpha 1/2."""
    model = Plain(lambda x: x.mean((2, 3)))
    found = of(FinerCAM(model, ["layer"], alpha=0.5, comparisons=1), A)[0]
    torch.testing.assert_close(found, torch.tensor([[[1.0 - 1.0, 0.5 + 0.25]]]))


def test_occlusion_by_hand() -> None:
    """What a cell adds to the sum is lost when it is hidden."""
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    model = Plain(lambda x: x.sum((1, 2, 3))[:, None])
    found = of(Occlusion(model, grid=4, window=1), image)[0]
    torch.testing.assert_close(found, image[0])


def test_full_grad_by_hand() -> None:
    """Weight 2, bias 1, then 1, 1 and 4 of (1, 3, 2): image times gradient is (2, 6, 16), the bias's (1, 1, 4)."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(3, 1, bias=False)).eval()
    model[0].weight.data.fill_(2)
    model[0].bias.data.fill_(1)
    model[2].weight.data = torch.tensor([[1.0, 1.0, 4.0]])
    heat = tensors(FullGrad(model, [model[0]])(torch.tensor([[[[1.0, 3.0, 2.0]]]]), [ClassifierOutputTarget(0)]))
    torch.testing.assert_close(heat, torch.tensor([[[0.0, (4 / 14) / 2, 1.0]]]), atol=1e-5, rtol=0)


def test_guided_methods_by_hand() -> None:
    """After a ReLU of (1, -1, 2) the score weighs 3, 3 and -3: the second is dead, the third pulls down."""
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1, bias=False)).eval()
    model[3].weight.data = torch.tensor([[3.0, 3.0, -3.0]])
    image = torch.tensor([[[[1.0, -1.0, 2.0]]]])
    (guided,) = of(GuidedBackprop(model), image)
    torch.testing.assert_close(guided, torch.tensor([[[3.0, 0.0, 0.0]]]))
    # GradCAM after the ReLU: the mean gradient, 1, weighs (1, 0, 2), which is (1/2, 0, 1) of its range
    cam = GuidedGradCAM(model, [model[1]])
    product = cam.colors(cam.explain(image, [ClassifierOutputTarget(0)])[0])
    torch.testing.assert_close(product, torch.tensor([[[[1.5], [0.0], [0.0]]]]), atol=1e-5, rtol=0)
