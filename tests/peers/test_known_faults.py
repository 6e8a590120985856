"""Faults of grad-cam 1.5.7: the rows of the table in docs/migrating.md.

Each test reproduces a fault in grad-cam and checks the correct result of detcam. It fails if grad-cam fixes the fault.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detcam
from detcam.geometry import normalize
from detcam.targets import BoxTarget, ClassifierOutputTarget
from tests.helpers import TinyCNN
from tests.zoo import example

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")

IMAGES = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(3))


class Signed(nn.Module):
    """A network whose activations are partly negative and whose scores are multiplied by a sign."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 12, 3, stride=4)
        self.head = nn.Linear(12, 2)
        self.sign = sign
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * (self.head(self.conv(x).mean((2, 3))) + 3)


def their_weights(model: nn.Module, **options: object) -> np.ndarray:
    """Return grad-cam's AblationCAM weights (C,) for the first image."""
    cam = peer.AblationCAM(model, [model.conv], **options)
    weights: list[np.ndarray] = []
    get_cam_weights = cam.get_cam_weights

    def record(*args: object) -> np.ndarray:
        weights.append(get_cam_weights(*args))
        return weights[-1]

    cam.get_cam_weights = record
    cam(IMAGES[:1], [ClassifierOutputTarget(0)])
    cam.activations_and_grads.release()
    return weights[0][0]


def ablated(model: Signed, channel: int) -> float:
    """Return the first score with one channel of the layer set to zero."""

    def silence(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, channel] = 0
        return output

    handle = model.conv.register_forward_hook(silence)
    with torch.no_grad():
        score = float(model(IMAGES[:1])[0, 0])
    handle.remove()
    return score


def test_ablation_weights_depend_on_the_batch_size() -> None:
    small, large = their_weights(Signed(), batch_size=1), their_weights(Signed(), batch_size=12)
    assert np.abs(small - large).max() > 1e-3, "grad-cam has fixed this"
    model = Signed()
    cam = detcam.AblationCAM(model, [model.conv])
    target = [ClassifierOutputTarget(0)]
    together = cam.explain(IMAGES[:1], target)[0].saliency[0]
    cam.batch_size = 1
    torch.testing.assert_close(cam.explain(IMAGES[:1], target)[0].saliency[0], together, atol=1e-6, rtol=0)
    with torch.no_grad():
        plain, activations = float(model(IMAGES[:1])[0, 0]), model.conv(IMAGES[:1])[0]
    weights = torch.tensor([(plain - ablated(model, channel)) / abs(plain) for channel in range(12)])
    torch.testing.assert_close(together[0], (weights[:, None, None] * activations).sum(0), atol=1e-5, rtol=1e-4)


def test_ablation_weights_flip_with_the_sign_of_the_score() -> None:
    """Compare the scores 3 + s and -3 - s: the weights must have opposite signs."""
    plain, reversed_score = their_weights(Signed(1.0), batch_size=12), their_weights(Signed(-1.0), batch_size=12)
    np.testing.assert_allclose(reversed_score, plain, atol=1e-5), "grad-cam has fixed this"
    maps = []
    for sign in (1.0, -1.0):
        model = Signed(sign)
        target = [ClassifierOutputTarget(0)]
        maps.append(detcam.AblationCAM(model, [model.conv]).explain(IMAGES[:1], target)[0].saliency[0])
    torch.testing.assert_close(maps[1], -maps[0], atol=1e-5, rtol=0)
    assert float(maps[0].abs().max()) > 1e-3


def test_ratio_of_ablated_channels() -> None:
    layer = peer.ablation_layer.AblationLayer()
    selected = layer.activations_to_be_ablated(np.random.default_rng(0).random((12, 6, 8)), 0.25)
    assert len(selected) == 6, "grad-cam has fixed this"
    model = Signed()
    with torch.no_grad():
        activations = model.conv(IMAGES[:1])[0]
        plain = float(model(IMAGES[:1])[0, 0])
    strongest = activations.square().sum((1, 2)).topk(3).indices.tolist()
    expected = sum((plain - ablated(model, channel)) / abs(plain) * activations[channel] for channel in strongest)
    cam = detcam.AblationCAM(model, [model.conv], ratio_channels_to_ablate=0.25)
    saliency = cam.explain(IMAGES[:1], [ClassifierOutputTarget(0)])[0].saliency[0][0]
    torch.testing.assert_close(saliency, expected, atol=1e-5, rtol=1e-4)


class Swapped(nn.Module):
    """Runs its layers in another order than it defines them; most biases of the first one to run are zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        with torch.no_grad():
            self.first.bias.copy_(torch.tensor([0.5, 0.0, 0.0, 0.0]))  # type: ignore[union-attr]
            self.second.bias.copy_(torch.tensor([0.5, 0.5, 0.5, 0.5]))  # type: ignore[union-attr]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        middle: Tensor = self.second(self.first(x).relu()).relu()
        return middle.mean((2, 3))


def test_full_grad_pairs_each_bias_with_its_own_gradient() -> None:
    """Computes the formula directly: input times gradient and bias times gradient of each layer, scaled to [0, 1]."""
    model, image = Swapped(), IMAGES[:1]
    outputs: dict[nn.Module, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda module, _, output: outputs.__setitem__(module, output))
        for layer in (model.first, model.second)
    ]
    pixels = image.clone().requires_grad_(True)
    score = 1e5 * model(pixels)[0, 1]
    order = [model.first, model.second]
    gradients = torch.autograd.grad(score, [pixels, *(outputs[layer] for layer in order)])
    for handle in handles:
        handle.remove()

    def scaled(part: Tensor) -> Tensor:
        part = part.abs() - part.abs().amin((2, 3), keepdim=True)
        return (part / part.amax((2, 3), keepdim=True).clamp(min=1e-30)).sum(1)

    def total(biases: list[Tensor]) -> Tensor:
        parts = [pixels * gradients[0]]
        parts += [bias[None, :, None, None] * g for bias, g in zip(biases, gradients[1:], strict=True)]
        return normalize(torch.stack([scaled(part.detach()) for part in parts]).sum(0))

    biases = [layer.bias for layer in order if layer.bias is not None]
    target = [lambda output: 1e5 * output[1]]
    expected = total(biases).numpy()
    np.testing.assert_allclose(detcam.FullGrad(model)(image, target), expected, atol=1e-4)
    assert np.abs(peer.FullGrad(model, [])(image, target) - expected).max() > 1e-2, "grad-cam has fixed this"


def test_aug_smooth_mirrors_the_box_of_a_target() -> None:
    case = example("faster_rcnn")
    image = case.images[0]
    detections = case.adapter.predict(image, top_k=1)[0]
    target = case.adapter.targets_of(detections)[0]
    assert isinstance(target, BoxTarget)
    boxes: list[tuple[float, ...]] = []
    score = case.adapter.score

    def record(outputs: object, targets: list[list[BoxTarget]]) -> object:
        boxes.extend(each.box_xyxy for row in targets for each in row)
        return score(outputs, targets)  # type: ignore[arg-type]

    case.adapter.score = record  # type: ignore[assignment,method-assign]
    try:
        detcam.HiResCAM(case.adapter)([image], [[target]], aug_smooth=True)
    finally:
        del case.adapter.score
    width = image.shape[-1]
    x1, y1, x2, y2 = target.box_xyxy
    assert {tuple(round(value, 3) for value in box) for box in boxes} == {
        tuple(round(value, 3) for value in box) for box in ((x1, y1, x2, y2), (width - x2, y1, width - x1, y2))
    }


class PixelSum(nn.Module):
    """Sums the channels of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_aug_smooth_does_not_mirror_a_positional_target() -> None:
    model = PixelSum()
    columns: Callable[[Tensor], Tensor] = lambda output: output[..., :8].square().sum()  # noqa: E731
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    with peer.GradCAMElementWise(model, [model.conv]) as cam:
        plain = cam(image, [columns])
        smooth = cam(image, [columns], aug_smooth=True)
    assert plain[..., 8:].max() == 0, "all evidence is on the left"
    assert smooth[..., -8:].max() > 0.1, "grad-cam has fixed this"


def test_one_target_for_two_images() -> None:
    model = TinyCNN()
    with peer.GradCAM(model, [model.relu1]) as cam:
        theirs = cam(IMAGES, [ClassifierOutputTarget(1)])
    assert theirs[0].max() > 0.99 and theirs[1].max() == 0, "grad-cam has fixed this"
    with pytest.raises(ValueError, match="2 images"):
        detcam.GradCAM(model, [model.relu1])(IMAGES, [ClassifierOutputTarget(1)])


def test_feature_pyramids() -> None:
    case = example("faster_rcnn")
    image = case.images[:1]
    with pytest.raises(Exception), peer.GradCAM(case.model, [case.model.backbone]) as cam:  # noqa: B017
        cam(image[0][None], [lambda output: output["scores"].sum()])
        raise AssertionError("grad-cam has fixed this")
    heatmaps = detcam.GradCAM(case.adapter)(image)
    assert heatmaps[0].max() == pytest.approx(1)
