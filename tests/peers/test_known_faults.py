"""Where grad-cam 1.5.7 is wrong, and what is right: each row of the table in docs/migrating.md.

A test shows the fault there and its absence here; if the peer mends one, the test says so.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detcam
from detcam.targets import BoxTarget, ClassifierOutputTarget
from tests.helpers import TinyCNN, tensors
from tests.zoo import example

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")

IMAGES = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(3))


class Signed(nn.Module):
    """A layer whose activations are negative in places, and classes whose scores are those of the others reversed."""

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
    """AblationCAM's channel weights (C,) of the first image there."""
    cam = peer.AblationCAM(model, [model.conv], **options)
    found: list[np.ndarray] = []
    measure = cam.get_cam_weights

    def kept(*args: object) -> np.ndarray:
        found.append(measure(*args))
        return found[-1]

    cam.get_cam_weights = kept
    cam(IMAGES[:1], [ClassifierOutputTarget(0)])
    cam.activations_and_grads.release()
    return found[0][0]


def ablated(model: Signed, channel: int) -> float:
    """The first score with one channel of the layer at zero."""

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
    assert np.abs(small - large).max() > 1e-3, "grad-cam has mended this"
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
    """A score of -3 - s instead of 3 + s: what raised it lowers it, so the weights must be the negative."""
    plain, reversed_score = their_weights(Signed(1.0), batch_size=12), their_weights(Signed(-1.0), batch_size=12)
    np.testing.assert_allclose(reversed_score, plain, atol=1e-5), "grad-cam has mended this"
    maps = []
    for sign in (1.0, -1.0):
        model = Signed(sign)
        target = [ClassifierOutputTarget(0)]
        maps.append(detcam.AblationCAM(model, [model.conv]).explain(IMAGES[:1], target)[0].saliency[0])
    torch.testing.assert_close(maps[1], -maps[0], atol=1e-5, rtol=0)
    assert float(maps[0].abs().max()) > 1e-3


def test_a_quarter_of_the_channels_is_a_quarter() -> None:
    layer = peer.ablation_layer.AblationLayer()
    chosen = layer.activations_to_be_ablated(np.random.default_rng(0).random((12, 6, 8)), 0.25)
    assert len(chosen) == 6, "grad-cam has mended this"
    model = Signed()
    with torch.no_grad():
        activations = model.conv(IMAGES[:1])[0]
        plain = float(model(IMAGES[:1])[0, 0])
    strongest = activations.square().sum((1, 2)).topk(3).indices.tolist()
    expected = sum((plain - ablated(model, channel)) / abs(plain) * activations[channel] for channel in strongest)
    cam = detcam.AblationCAM(model, [model.conv], ratio_channels_to_ablate=0.25)
    found = cam.explain(IMAGES[:1], [ClassifierOutputTarget(0)])[0].saliency[0][0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


class Swapped(nn.Module):
    """Runs its layers in another order than it defines them; most biases of the one that runs first are zero."""

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
    """Literal: input times gradient, and each layer's bias times that layer's gradient, each scaled to [0, 1]."""
    model, image = Swapped(), IMAGES[:1]
    kept: dict[nn.Module, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda module, _, output: kept.__setitem__(module, output))
        for layer in (model.first, model.second)
    ]
    pixels = image.clone().requires_grad_(True)
    score = 1e5 * model(pixels)[0, 1]
    order = [model.first, model.second]
    gradients = torch.autograd.grad(score, [pixels, *(kept[layer] for layer in order)])
    for handle in handles:
        handle.remove()

    def scaled(part: Tensor) -> Tensor:
        part = part.abs() - part.abs().amin((2, 3), keepdim=True)
        return (part / part.amax((2, 3), keepdim=True).clamp(min=1e-30)).sum(1)

    def total(biases: list[Tensor]) -> Tensor:
        parts = [pixels * gradients[0]]
        parts += [bias[None, :, None, None] * g for bias, g in zip(biases, gradients[1:], strict=True)]
        found = torch.stack([scaled(part.detach()) for part in parts]).sum(0)
        return detcam.geometry.normalize(found)  # type: ignore[attr-defined]

    biases = [layer.bias for layer in order if layer.bias is not None]
    target = [lambda output: 1e5 * output[1]]
    right = total(biases)
    torch.testing.assert_close(tensors(detcam.FullGrad(model)(image, target)), right, atol=1e-4, rtol=0)
    found = torch.from_numpy(peer.FullGrad(model, [])(image, target))
    assert float((found - right).abs().max()) > 1e-2, "grad-cam has mended this"


def test_a_mirrored_image_is_asked_for_the_mirrored_box() -> None:
    case = example("faster_rcnn")
    image = case.images[0]
    found = case.adapter.predict(image)[0].filter(top_k=1)
    target = case.adapter.targets_of(found)[0]
    assert isinstance(target, BoxTarget)
    asked: list[tuple[float, ...]] = []
    score = case.adapter.score

    def watched(outputs: object, targets: list[list[BoxTarget]]) -> object:
        asked.extend(one.box_xyxy for row in targets for one in row)
        return score(outputs, targets)  # type: ignore[arg-type]

    case.adapter.score = watched  # type: ignore[assignment,method-assign]
    try:
        detcam.HiResCAM(case.adapter)([image], [[target]], aug_smooth=True)
    finally:
        del case.adapter.score
    width = image.shape[-1]
    x1, y1, x2, y2 = target.box_xyxy
    assert {tuple(round(value, 3) for value in box) for box in asked} == {
        tuple(round(value, 3) for value in box) for box in ((x1, y1, x2, y2), (width - x2, y1, width - x1, y2))
    }


class Left(nn.Module):
    """Its first score is what it sees on the left, its second what it sees on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_aug_smooth_there_asks_the_mirrored_image_for_the_same_place() -> None:
    model = Left()
    columns: Callable[[Tensor], Tensor] = lambda output: output[..., :8].square().sum()  # noqa: E731
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    with peer.GradCAMElementWise(model, [model.conv]) as cam:
        plain = tensors(cam(image, [columns]))
        smooth = tensors(cam(image, [columns], aug_smooth=True))
    assert plain[..., 8:].max() == 0, "the score has no other evidence than the left"
    assert smooth[..., -8:].max() > 0.1, "grad-cam has mended this"


def test_one_target_for_two_images() -> None:
    model = TinyCNN()
    with peer.GradCAM(model, [model.relu1]) as cam:
        theirs = tensors(cam(IMAGES, [ClassifierOutputTarget(1)]))
    assert theirs[0].max() > 0.99 and theirs[1].max() == 0, "grad-cam has mended this"
    with pytest.raises(ValueError, match="2 images"):
        detcam.GradCAM(model, [model.relu1])(IMAGES, [ClassifierOutputTarget(1)])


def test_feature_pyramids() -> None:
    case = example("faster_rcnn")
    image = case.images[:1]
    with pytest.raises(Exception), peer.GradCAM(case.model, [case.model.backbone]) as cam:  # noqa: B017
        cam(image[0][None], [lambda output: output["scores"].sum()])
        raise AssertionError("grad-cam has mended this")
    found = tensors(detcam.GradCAM(case.adapter)(image))
    assert float(found[0].max()) == pytest.approx(1)
