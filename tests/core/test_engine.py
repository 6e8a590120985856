"""The engine: maps of each image and target for any batch size; smoothing; warnings about maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import METHODS, ClassAgnosticWarning, EigenCAM, EmptyMapWarning, GradCAM, HiResCAM, LayerCAM, adapt, explain
from detcam.adapters import embed
from detcam.cam import BaseCAM
from detcam.geometry import normalize
from detcam.targets import ClassifierOutputTarget, ClassTarget
from detcam.testing import tiny_classifier
from tests.helpers import TinyCNN, tensors
from tests.zoo import QUICK, applies

IMAGES = torch.rand(3, 3, 20, 28, generator=torch.Generator().manual_seed(1))


def slow_gradcam(model: TinyCNN, layer: nn.Module, image: Tensor, target: Callable[[Tensor], Tensor]) -> Tensor:
    """GradCAM of one image by plain autograd through the whole model."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda m, i, o: kept.append(o))
    score = target(model(image[None])[0])
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    cam = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).clamp(min=0).detach()
    return normalize(F.interpolate(normalize(cam)[None], image.shape[-2:], mode="bilinear")[0])[0]


def test_every_image_and_target_gets_its_own_map() -> None:
    model = TinyCNN()
    ragged = [
        [ClassifierOutputTarget(0)],
        [],
        [ClassifierOutputTarget(2), ClassifierOutputTarget(0), ClassifierOutputTarget(1)],
    ]
    actual = tensors(GradCAM(model, [model.conv2])(IMAGES, ragged))
    assert [tuple(maps.shape) for maps in actual] == [(1, 20, 28), (0, 20, 28), (3, 20, 28)]
    for image, row, maps in zip(IMAGES, ragged, actual, strict=True):
        for target, heatmap in zip(row, maps, strict=True):
            expected = slow_gradcam(model, model.conv2, image, target)
            torch.testing.assert_close(heatmap, expected, atol=1e-5, rtol=0)


def test_default_target_is_the_top_class_of_each_image() -> None:
    model = TinyCNN()
    actual = tensors(GradCAM(model, [model.conv2])(IMAGES))
    tops = model(IMAGES).argmax(1).tolist()
    for image, top, heatmap in zip(IMAGES, tops, actual, strict=True):
        expected = slow_gradcam(model, model.conv2, image, ClassifierOutputTarget(top))
        torch.testing.assert_close(heatmap, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in METHODS if applies(name, "classifier")])
def test_maps_do_not_depend_on_the_batch_size(name: str) -> None:
    model = TinyCNN()
    targets = [ClassifierOutputTarget(i) for i in (2, 0, 1)]
    settings = {"passes": 100} if name in ("rise", "drise") else QUICK.get(name, {})
    cam = METHODS[name](model, [model.relu1, model.relu2], **settings)
    together = tensors(cam(IMAGES, targets))
    cam.batch_size = 2
    torch.testing.assert_close(tensors(cam(IMAGES, targets)), together, atol=1e-5, rtol=0)
    alone = torch.cat([tensors(cam(IMAGES[i : i + 1], targets[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    assert float(together.max()) == pytest.approx(1.0) and float(together.min()) == 0.0


def test_layers_are_normalized_before_averaging() -> None:
    model = TinyCNN()
    targets = [ClassifierOutputTarget(1)] * 3
    first, second = (
        LayerCAM(model, [layer]).explain(IMAGES, [[t] for t in targets]) for layer in (model.relu1, model.relu2)
    )
    both = tensors(LayerCAM(model, [model.relu1, model.relu2])(IMAGES, targets))
    for i in range(3):
        parts = [
            F.interpolate(normalize(result[i].saliency[0].clamp(min=0))[None], (20, 28), mode="bilinear")[0]
            for result in (first, second)
        ]
        torch.testing.assert_close(both[i], normalize(parts[0] + parts[1])[0], atol=1e-5, rtol=0)


def test_maps_have_the_size_of_their_images() -> None:
    model = TinyCNN()
    adapter = adapt(model, target_layers=[model.conv2], image_size=(32, 32))
    images = [torch.rand(3, 50, 40), torch.rand(3, 17, 90)]
    actual = tensors(GradCAM(adapter)(images))
    assert [tuple(maps.shape) for maps in actual] == [(1, 50, 40), (1, 17, 90)]


def test_aug_smooth_is_the_mean_of_six_views() -> None:
    model = TinyCNN()
    targets = [ClassifierOutputTarget(1)] * 3
    cam = GradCAM(model, [model.conv2])
    views = [tensors(cam(IMAGES * factor, targets)) for factor in (0.9, 1.0, 1.1)]
    views += [tensors(cam(IMAGES.flip(-1) * factor, targets)).flip(-1) for factor in (0.9, 1.0, 1.1)]
    torch.testing.assert_close(
        tensors(cam(IMAGES, targets, aug_smooth=True)), torch.stack(views).mean(0), atol=1e-6, rtol=0
    )


def test_several_inputs_and_keyword_arguments_reach_the_model() -> None:
    class Two(TinyCNN):
        def forward(self, x: Tensor, shift: Tensor, *, scale: float = 1.0) -> Tensor:  # type: ignore[override]
            return super().forward(x + shift) * scale

    model, plain = Two(), TinyCNN()
    shift = torch.full((3, 3, 20, 28), 0.25)
    targets = [ClassifierOutputTarget(1)] * 3
    cam = GradCAM(model, [model.conv2])
    actual = tensors(cam((IMAGES, shift), targets, model_kwargs={"scale": -1.0}))
    torch.testing.assert_close(cam.outputs, -plain(IMAGES + shift))
    expected = tensors(GradCAM(plain, [plain.conv2])(IMAGES + shift, [lambda out: -out[1]] * 3))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_half_precision_is_close_to_full_precision() -> None:
    model = TinyCNN()
    expected = tensors(HiResCAM(model, [model.conv2])(IMAGES, [ClassifierOutputTarget(1)] * 3))
    half = TinyCNN().bfloat16()
    actual = tensors(HiResCAM(half, [half.conv2])(IMAGES, [ClassifierOutputTarget(1)] * 3))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=0.08, rtol=0)


def test_frozen_models_and_training_mode_give_the_same_map() -> None:
    model = TinyCNN()
    expected = tensors(GradCAM(model, [model.conv2])(IMAGES, [ClassifierOutputTarget(1)] * 3))
    model.requires_grad_(False)
    torch.testing.assert_close(
        tensors(GradCAM(model, [model.conv2])(IMAGES, [ClassifierOutputTarget(1)] * 3)), expected
    )
    model.train()
    with pytest.warns(UserWarning, match="training mode"):
        actual = tensors(GradCAM(model, [model.conv2])(IMAGES, [ClassifierOutputTarget(1)] * 3))
    torch.testing.assert_close(actual, expected)
    assert model.training


def test_class_agnostic_methods_warn() -> None:
    model = TinyCNN()
    cam: BaseCAM = METHODS["eigencam"](model, [model.conv2])
    with pytest.warns(ClassAgnosticWarning, match="EigenCAM ignores the target"):
        maps = tensors(cam(IMAGES[:1], [[ClassifierOutputTarget(0), ClassifierOutputTarget(1)]]))[0]
    assert torch.equal(maps[0], maps[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cam(IMAGES[:1], [ClassifierOutputTarget(0)])


def test_dead_gradients_and_empty_maps_are_named() -> None:
    model = TinyCNN()
    with pytest.warns(EmptyMapWarning, match="zero everywhere at conv2"):
        maps = tensors(GradCAM(model, [model.conv2])(IMAGES[:1], [lambda out: out[0] * 0]))
    assert float(maps.max()) == 0
    nothing_speaks_for = [lambda out: -out.square().sum()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    with pytest.warns(EmptyMapWarning, match="no evidence there is positive"):
        maps = tensors(GradCAM(model, [model.relu2])(IMAGES[:1], nothing_speaks_for))
    assert float(maps.max()) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda model, targets: tensors(GradCAM(model, [model.conv2])(IMAGES[:1], targets)),
        lambda model, targets: GradCAM(model, [model.conv2]).explain(IMAGES[:1], targets),
        lambda model, targets: explain(model, list(IMAGES[:1]), "gradcam", [targets], target_layers=[model.conv2]),
    ],
    ids=["call", "explain", "explain()"],
)
def test_warnings_point_at_the_caller(call: Callable[[TinyCNN, Any], Any]) -> None:
    model = TinyCNN()
    model.train()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        call(model, [lambda out: out[0] * 0])
    assert {warning.category for warning in heard} == {UserWarning, EmptyMapWarning}  # training mode, dead gradient
    assert {warning.filename for warning in heard} == {__file__}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_invalid_layer_outputs_are_named(value: float) -> None:
    model = TinyCNN()
    with torch.no_grad():
        model.conv1.bias[1] = value
    with pytest.raises(RuntimeError, match="target layer conv1 returned NaN or infinity"):
        GradCAM(model, [model.conv1])(IMAGES[:1], [ClassifierOutputTarget(0)])


@pytest.mark.filterwarnings("ignore")
def test_the_sum_of_a_layer_may_overflow() -> None:
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = IMAGES[:1] + 1e36
    assert not torch.isfinite((images * 100).sum())
    actual = tensors(EigenCAM(model, ["0"])(images * 100, [ClassifierOutputTarget(0)]))
    assert torch.isfinite(actual).all()


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        ([ClassifierOutputTarget(0)], ValueError, "targets for 3 images"),
        (ClassifierOutputTarget(0), ValueError, "one entry per image"),
        ([0, 1, 2], TypeError, r"ClassifierOutputTarget\(index\)"),
        (3, TypeError, "as a list"),
        ([ClassifierOutputTarget(3)] * 3, ValueError, "class index from 0 to 2"),
        ([lambda out: out] * 3, ValueError, "one number"),
    ],
)
def test_bad_targets(targets: object, error: type[Exception], words: str) -> None:
    model = TinyCNN()
    with pytest.raises(error, match=words):
        GradCAM(model, [model.conv2])(IMAGES, targets)


def test_bad_inputs_and_layers() -> None:
    model = TinyCNN()
    cam = GradCAM(model, [model.conv2])
    for images, error, words in (
        ([], ValueError, "empty list"),
        (torch.rand(0, 3, 8, 8), ValueError, "at least one image"),
        (torch.full((1, 3, 8, 8), float("nan")), ValueError, "NaN"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "float batch"),
    ):
        with pytest.raises(error, match=words):
            cam(images, [ClassifierOutputTarget(0)])
    with pytest.raises(ValueError, match="no layer named 'conv9'.*conv"):
        GradCAM(model, ["conv9"])
    with pytest.raises(ValueError, match="not part of this model"):
        GradCAM(model, [nn.Conv2d(3, 3, 1)])
    with pytest.raises(ValueError, match="empty list"):
        GradCAM(model, [])
    with pytest.raises(TypeError, match="modules or dotted names"):
        GradCAM(model, [3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="scripted"):
        GradCAM(torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1))))
    with pytest.raises(TypeError, match="torch.nn.Module"):
        GradCAM("resnet50")  # type: ignore[arg-type]
    with pytest.warns(EmptyMapWarning, match="3 of 3 targets is zero everywhere at head.*has no part in the score"):
        maps = GradCAM(model, [model.head], reshape_transform=lambda x: x[:, :, None, None])(
            IMAGES, [lambda out: out.detach().requires_grad_(True).sum()] * 3
        )
    assert maps[0].max() == 0


@pytest.mark.filterwarnings("ignore")
def test_a_constant_gradient_is_no_zero_gradient() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1)).eval()
    result = HiResCAM(model, [model[0]]).explain(IMAGES[:1], [lambda out: -out.sum()])[0]
    torch.testing.assert_close(result.saliency[0][0], -model(IMAGES[:1])[0].sum(0).detach(), atol=1e-6, rtol=0)
    assert result.reach is not None and result.reach[0].fraction == 1.0


@pytest.mark.parametrize(
    ("formula", "match"),
    [
        (lambda self, a, g: a * g, r"expected Wrong.saliency to give a tensor \(n, h, w\) .* got \(1, 5, 4, 4\)"),
        (lambda self, a, g: (a * g).sum(1).numpy(), "expected Wrong.saliency to give a tensor .* got ndarray"),
    ],
)
def test_the_result_of_a_formula_is_checked(formula: Any, match: str) -> None:
    class Wrong(BaseCAM):
        name = "wrong"
        saliency = formula

    with pytest.raises(ValueError, match=match):
        Wrong(adapt(TinyCNN(), image_size=16)).explain(torch.rand(3, 16, 16))


def test_eigen_smooth_of_a_map_without_channels_is_an_error() -> None:
    class Positive(BaseCAM):
        name = "positive"

        def saliency(self, activations: Tensor, gradients: Tensor) -> Tensor:
            return (activations * gradients.clamp(min=0)).sum(1)

    with pytest.raises(ValueError, match="eigen_smooth .* Positive defines saliency alone: define contributions"):
        Positive(tiny_classifier())(torch.rand(1, 3, 32, 32), eigen_smooth=True)


@pytest.mark.parametrize("size", [0, -1])
def test_batch_sizes_below_one_are_refused(size: int) -> None:
    adapter, images = tiny_classifier(), torch.rand(2, 3, 32, 32)
    cam = GradCAM(adapter)
    cam.batch_size = size
    calls: list[Callable[[], object]] = [
        lambda: cam(images),
        lambda: adapter.predict(list(images), batch_size=size),
        lambda: embed(adapter.model, images, batch_size=size),
        lambda: explain(adapter, images, batch_size=size),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"batch_size as an int of at least 1; got {size}"):
            call()


def test_explain_shows_progress_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    cam = GradCAM(adapt(TinyCNN(), image_size=16))
    assert len(cam.explain([torch.rand(3, 16, 16)] * 2, progress=True)) == 2
    assert len(cam.explain(torch.rand(3, 16, 16), progress=False)) == 1


def test_declared_types_of_the_result(tmp_path: Path) -> None:
    """The overloads of the call: a list for files, arrays and lists, and where targets are grouped by image."""
    cam, pixels = GradCAM(tiny_classifier()), np.zeros((32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor, target = torch.rand(1, 3, 32, 32), ClassTarget(1)
    single = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, [pixels], [tensor[0]]]
    grouped = [[[target]], [(target,)], cam.adapter.predict(tensor), cam.adapter.predict(tensor)[0]]
    results = [*(cam(image) for image in single), *(cam(tensor, targets) for targets in grouped), cam(tensor[0])]
    assert [type(result) for result in results] == [list] * len(results)
    assert all(type(result[0]) is np.ndarray for result in results)
    assert type(cam(tensor)) is type(cam(tensor, [target])) is type(cam((tensor,))) is np.ndarray
