"""Guided backpropagation and Guided Grad-CAM against the rule written out, against grad-cam, and on every ReLU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

from detcam import GradCAM, GuidedBackprop, GuidedBackpropReLUModel, GuidedGradCAM, deprocess_image, guided_backprop
from detcam.geometry import Geometry, to_pixels
from detcam.methods.guided_backprop import saturate
from detcam.targets import ClassifierOutputTarget, InstanceMaskTarget, MaskTarget
from tests.helpers import Snapshot, TinyCNN
from tests.zoo import example

pytestmark = pytest.mark.filterwarnings("ignore::detcam.EmptyMapWarning", "ignore::detcam.ReachWarning")

IMAGES = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))
TARGETS = [[ClassifierOutputTarget(0), ClassifierOutputTarget(2)], [ClassifierOutputTarget(1)]]


def slow_gradient(model: TinyCNN, image: Tensor, category: int) -> Tensor:
    """R at the input (3, H, W), layer by layer from the formula."""
    model, x = copy.deepcopy(model).double(), image.double()[None]
    with torch.no_grad():
        before1 = model.conv1(x)
        before2 = model.conv2(before1.clamp(min=0))
        after2 = before2.clamp(min=0)
        # y = w . mean(a^2), so dy / da = 2 w a / (h w)
        back = 2 * model.head.weight[category][None, :, None, None] * after2 / after2[0, 0].numel()
        back = back * (before2 > 0) * (back > 0)
        sizes = [(b - 1) % 2 for b in before1.shape[-2:]]
        back = F.conv_transpose2d(back, model.conv2.weight, stride=2, padding=1, output_padding=sizes)
        back = back * (before1 > 0) * (back > 0)
        sizes = [(b - 1) % 2 for b in x.shape[-2:]]
        return F.conv_transpose2d(back, model.conv1.weight, stride=2, padding=1, output_padding=sizes)[0]


def test_equals_its_formula() -> None:
    model = TinyCNN(inplace=True)
    before = Snapshot(model)
    results = GuidedBackprop(model).explain(IMAGES, TARGETS)
    before.check()
    for image, targets, result in zip(IMAGES, TARGETS, results, strict=True):
        found = torch.stack(result.saliency, 1)  # (N, 3, H, W)
        for one, heatmap, target in zip(found, torch.as_tensor(result.heatmaps), targets, strict=True):
            expected = slow_gradient(model, image, target.category).float()
            assert float(expected.abs().max()) > 0
            torch.testing.assert_close(one, expected, atol=1e-6 * float(expected.abs().max()) + 1e-9, rtol=1e-4)
            strongest = expected.abs().amax(0)
            limit = strongest[strongest > 0].sort(descending=True).values[int((strongest > 0).sum() * 0.01) - 1]
            wanted = (strongest / limit).clamp(max=1)
            torch.testing.assert_close(heatmap, (wanted - wanted.min()) / (1 - wanted.min()), atol=1e-4, rtol=0)
    assert all(reach.fraction > 0.5 for result in results for reach in result.reach or ())


class Written(nn.Module):
    """Two convolutions with a rectifier of any kind after each."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        self.rectify = rectify
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.rectify(self.conv2(self.rectify(self.conv1(x)))).mean((2, 3))


class Ruled(torch.autograd.Function):
    """The paper's rule, as other libraries write it."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(context: Any, back: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return back * (x > 0) * (back > 0)


def scripted() -> Callable[[Tensor], Tensor]:
    return torch.jit.script(nn.Sequential(nn.ReLU()))


CONTRAST = [[lambda y: y[0] - y[1]], [lambda y: y[2] - y[3]]]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        lambda: F.relu,
        lambda: lambda x: F.relu(x, inplace=True),
        lambda: torch.relu,
        lambda: torch.relu_,
        lambda: Tensor.relu,
        lambda: Tensor.relu_,
        lambda: lambda x: F.threshold(x, 0.0, 0.0),
        scripted,
    ],
)
def test_every_form_of_relu_is_guided(make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    found = GuidedBackprop(Written(make())).explain(IMAGES, CONTRAST)
    for image, (target,), result in zip(IMAGES, CONTRAST, found, strict=True):
        x = image[None].clone().requires_grad_(True)
        (guided,) = torch.autograd.grad(target(Written(Ruled.apply)(x)[0]), x)
        x = image[None].clone().requires_grad_(True)
        (plain,) = torch.autograd.grad(target(Written(torch.relu)(x)[0]), x)
        assert float((guided - plain).abs().max()) > 0.1 * float(plain.abs().max())
        torch.testing.assert_close(torch.cat(result.saliency), guided[0], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(
    ("rectify", "slope"),
    [
        (F.relu6, lambda x: ((x > 0) & (x < 6)).float()),
        (F.leaky_relu, lambda x: torch.where(x > 0, 1.0, 0.01)),
        (F.silu, lambda x: x.sigmoid() * (1 + x * (1 - x.sigmoid()))),
        (
            F.gelu,
            lambda x: 0.5 * (1 + torch.erf(x / 2**0.5)) + x * torch.exp(-(x**2) / 2) / (2 * torch.pi) ** 0.5,
        ),
        (F.hardswish, lambda x: torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0))),
    ],
)
def test_variants_of_relu_are_guided(rectify: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> None:
    model = Written(rectify)
    (result, _) = GuidedBackprop(model).explain(IMAGES * 4, CONTRAST)
    with torch.no_grad():
        first = model.conv1(IMAGES[:1] * 4)
        second = model.conv2(rectify(first))
        back = torch.tensor([1.0, -1, 0, 0])[None, :, None, None].expand_as(second) / second[0, 0].numel()
        back = F.conv_transpose2d(back.clamp(min=0) * slope(second), model.conv2.weight, padding=1)
        back = F.conv_transpose2d(back.clamp(min=0) * slope(first), model.conv1.weight, padding=1)
    torch.testing.assert_close(torch.cat(result.saliency), back[0], atol=1e-6, rtol=1e-3)


def test_gates_and_clipped_ramps_are_not_guided() -> None:
    for rectify in (torch.sigmoid, F.hardtanh, torch.tanh):
        model = Written(rectify)
        with pytest.warns(UserWarning, match="the gradient is the plain one"):
            (result, _) = GuidedBackprop(model).explain(IMAGES, CONTRAST)
        x = IMAGES[:1].clone().requires_grad_(True)
        (plain,) = torch.autograd.grad(CONTRAST[0][0](model(x)[0]), x)
        torch.testing.assert_close(torch.cat(result.saliency), plain[0], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "own_segmenter"])
def test_boxes_and_regions_by_the_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = example(name)
    image = case.images[0]
    found = case.adapter.predict(image)[0].filter(top_k=2)
    targets = case.adapter.targets_of(found)
    if name == "mask_rcnn":
        targets.append(InstanceMaskTarget(targets[0].box_xyxy, targets[0].label, targets[0].source))
    if name == "own_segmenter":
        targets.append(MaskTarget(1))
    result = GuidedBackprop(case.adapter).explain(image, [targets])[0]
    batch = case.adapter.prepare([image])
    batch.inputs.requires_grad_(True)
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: Ruled.apply(x))
    (row,) = case.adapter.score(case.adapter.outputs(case.adapter.forward(batch), batch), [targets])
    for k, scalar in enumerate(row):
        (expected,) = torch.autograd.grad(scalar, batch.inputs, retain_graph=True)
        assert float(expected.abs().max()) > 0
        colors = torch.stack([level[k] for level in result.saliency])
        torch.testing.assert_close(colors, expected[0], atol=1e-5 * float(expected.abs().max()), rtol=1e-3)
    assert result.heatmaps.shape == (len(targets), *image.shape[-2:])


@pytest.mark.peers
@pytest.mark.parametrize("category", [None, 3])
def test_equals_grad_cam(category: int | None) -> None:
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    model = resnet18(num_classes=10).eval()
    image = torch.rand(1, 3, 64, 48)
    before = Snapshot(model)
    found = GuidedBackpropReLUModel(model=model, device="cpu")(image, target_category=category)
    before.check()
    expected = peer.GuidedBackpropReLUModel(model=copy.deepcopy(model), device="cpu")(image, target_category=category)
    assert found.shape == expected.shape == (64, 48, 3) and abs(expected).max() > 0
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected), atol=1e-7, rtol=1e-4)
    target = None if category is None else ClassifierOutputTarget(category)
    same = torch.from_numpy(guided_backprop(model, image, target))
    if category is None:  # a score by softmax: another scale, and another gradient where classes compete
        assert torch.nn.functional.cosine_similarity(same.flatten(), torch.from_numpy(found).flatten(), 0) > 0.2
    else:
        torch.testing.assert_close(same, torch.from_numpy(found))
    assert deprocess_image(found).shape == (64, 48, 3)


@pytest.mark.parametrize("layer", ["conv1", "relu2"])
def test_guided_grad_cam_is_the_product(layer: str) -> None:
    model = TinyCNN()
    results = GuidedGradCAM(model, [layer]).explain(IMAGES, TARGETS)
    for result, warm, fine in zip(
        results,
        GradCAM(model, [layer]).explain(IMAGES, TARGETS),
        GuidedBackprop(model).explain(IMAGES, TARGETS),
        strict=True,
    ):
        colors = torch.stack(fine.saliency, -1)
        product = torch.as_tensor(warm.heatmaps)[..., None] * colors
        torch.testing.assert_close(GuidedGradCAM(model, [layer]).colors(result), product)
        torch.testing.assert_close(
            torch.as_tensor(result.heatmaps), saturate(torch.as_tensor(warm.heatmaps) * colors.abs().amax(-1))
        )
        torch.testing.assert_close(result.saliency[0], warm.saliency[0])
        torch.testing.assert_close(result.scores, warm.scores)


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "yolo"])
def test_grad_cam_is_not_guided(name: str) -> None:
    case = example(name)
    found = [one.filter(top_k=2) for one in case.adapter.predict(case.images)]
    layer = {"yolo": "model.4"}.get(name, "backbone.stem")
    both = (GradCAM(case.adapter, [layer]).explain(case.images, found), GuidedGradCAM(case.adapter, [layer]))
    for warm, result in zip(both[0], both[1].explain(case.images, found), strict=True):
        scale = float(warm.saliency[0].abs().max())
        torch.testing.assert_close(result.saliency[0], warm.saliency[0], atol=1e-4 * scale, rtol=1e-3)


def test_one_channel_in_and_one_channel_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    cam = GuidedGradCAM(model, ["1"])
    gray = torch.rand(1, 1, 12, 16)
    (result,) = cam.explain(gray, [[ClassifierOutputTarget(0), ClassifierOutputTarget(1)]])
    assert len(result.saliency) == 2 and cam.colors(result).shape == (2, 12, 16, 1)
    assert float(torch.as_tensor(result.heatmaps).amax()) == 1


def test_the_brightest_pixels_by_hand() -> None:
    row = torch.tensor([0.0] * 100 + [float(value) for value in range(1, 201)])
    found = saturate(torch.stack([row, row * 0])[:, None])
    # 200 pixels above 0, of which the brightest two (199 and 200) count as 1.
    torch.testing.assert_close(found[0, 0], (row / 199).clamp(max=1))
    assert not found[1].any()


@pytest.mark.parametrize("column", range(16, 32))
def test_no_edge_is_missed_at_a_finer_input(column: int) -> None:
    fine = torch.zeros(1, 64, 64)
    fine[0, :, column] = 1
    found = to_pixels(fine, Geometry.resize((16, 16), (64, 64)))
    assert 0.75 < float(found.sum(-1).mean()) * 4 < 1.25  # a line of one fine pixel is a quarter of a coarse one
    plain = torch.rand(1, 16, 16)
    torch.testing.assert_close(to_pixels(plain, Geometry.identity((16, 16))), plain)


class InPlace(TinyCNN):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).mul_(2.0))


def test_images_of_any_size_and_in_place_operations() -> None:
    tensor = IMAGES[:1].clone()
    found = guided_backprop(InPlace(), tensor, ClassifierOutputTarget(0))
    assert torch.equal(tensor, IMAGES[:1]) and abs(found).max() > 0
    colors = guided_backprop(example("classifier").adapter, torch.rand(3, 50, 40))
    assert colors.shape == (50, 40, 3) and colors.min() < 0 < colors.max()


@pytest.mark.parametrize("method", [GuidedBackprop, GuidedGradCAM])
def test_an_image_without_detections_has_no_maps(method: type[GuidedBackprop]) -> None:
    case = example("faster_rcnn")
    found = [one.filter(top_k=count) for one, count in zip(case.adapter.predict(case.images), (0, 1), strict=True)]
    cam = method(case.adapter)
    nothing, something = cam.explain(case.images, found)
    assert nothing.heatmaps.shape == (0, *case.images[0].shape[-2:]) and cam.colors(nothing).shape[0] == 0
    assert cam.colors(something).shape == (1, *case.images[1].shape[-2:], 3) and cam.colors(something).any()


def test_invalid_input_is_named(tmp_path: Path) -> None:
    model = TinyCNN()
    with pytest.raises(ValueError, match="expected one image; got 2"):
        guided_backprop(model, IMAGES)
    with pytest.raises(TypeError, match="expected input_img"):
        GuidedBackpropReLUModel(model)(IMAGES[0])
    with pytest.raises(ValueError, match="eigen_smooth"):
        GuidedBackprop(model)(IMAGES, eigen_smooth=True)
    with pytest.raises(RuntimeError, match="does not depend on the image"):
        GuidedBackprop(model).explain(IMAGES[:1], [[lambda y: y[0].detach() + torch.zeros(())]])
