"""ReachCAM: the integral by loops, completeness with known answers, contrast, the layers that reach the scene."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import ConvergenceWarning, EmptyMapWarning, HiResCAM, ReachCAM, ReachWarning, adapt
from detcam.demo.model import load_demo_detector
from detcam.demo.train import certify_wake
from detcam.geometry import Geometry, normalize
from detcam.methods.common.feature_path import FeaturePath
from detcam.methods.common.layer_search import find_context_layers
from detcam.synthetic.harbor import draw_scene
from detcam.targets import BoxTarget, ClassifierOutputTarget
from detcam.trace import Trace, guarded
from tests.helpers import Snapshot, TinyCNN

pytestmark = pytest.mark.filterwarnings("ignore::detcam.ReachWarning", "ignore::detcam.ConvergenceWarning")

IMAGES = torch.rand(3, 3, 20, 28, generator=torch.Generator().manual_seed(1))


def slow_reach(
    model: nn.Module, layer: nn.Module, image: Tensor, score: Callable[[Tensor], Tensor], steps: int
) -> tuple[Tensor, float]:
    """The signed map of one image by loops in float64, and the score difference that it sums to."""
    model = model.double()
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda m, i, o: kept.append(o.detach()))
    with torch.no_grad():
        model(image[None].double())
    handle.remove()
    activation = kept[0]
    start = activation.mean((2, 3), keepdim=True).expand_as(activation)

    def run(features: Tensor) -> Tensor:
        handle = layer.register_forward_hook(lambda m, i, o: features)
        result = score(model(image[None].double())[0])
        handle.remove()
        return result

    total = torch.zeros_like(activation)
    for step in range(steps):
        point = (start + (step + 0.5) / steps * (activation - start)).clone().requires_grad_(True)
        total += torch.autograd.grad(run(point * 1.0), point)[0]
    _, channels, height, width = activation.shape
    saliency = torch.zeros(height, width, dtype=torch.float64)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                saliency[i, j] += (activation[0, c, i, j] - start[0, c, i, j]) * total[0, c, i, j] / steps
    with torch.no_grad():
        return saliency, float(run(activation) - run(start))


def slow_blur(saliency: Tensor, sigma: float) -> Tensor:
    """A Gaussian over the cells that there are, by loops."""
    height, width = saliency.shape
    found = torch.zeros_like(saliency)
    for i in range(height):
        for j in range(width):
            weights = torch.zeros_like(saliency)
            for a in range(height):
                for b in range(width):
                    weights[a, b] = torch.exp(torch.tensor(-((a - i) ** 2 + (b - j) ** 2) / (2 * sigma**2)))
            found[i, j] = (weights * saliency).sum() / weights.sum()
    return found


@pytest.mark.parametrize("steps", [1, 4])
def test_saliency_equals_the_integral_by_loops(steps: int) -> None:
    model = TinyCNN()
    rows = [[ClassifierOutputTarget(0)], [], [ClassifierOutputTarget(2), lambda out: out[1].tanh()]]
    found = ReachCAM(model, [model.conv1, model.relu2], steps=steps).explain(IMAGES, rows)
    for image, result, row in zip(IMAGES, found, rows, strict=True):
        for k, target in enumerate(row):
            slow_model = TinyCNN()
            for index, layer in enumerate([slow_model.conv1, slow_model.relu2]):
                expected, owed = slow_reach(slow_model, layer, image, target, steps)
                torch.testing.assert_close(result.saliency[index][k].double(), expected, atol=1e-5, rtol=1e-4)
                with torch.no_grad():
                    score = float(target(slow_model(image[None].double())[0]))
                error = abs(float(expected.sum()) - owed) / max(abs(owed), 0.01 * abs(score))
                assert float(result.convergence_delta[k, index]) == pytest.approx(error, abs=1e-3)


def test_the_heatmap_is_the_product_of_smoothed_positive_parts() -> None:
    model = TinyCNN()
    cam = ReachCAM(model, [model.relu1, model.relu2])
    result = cam.explain(IMAGES[:1], [ClassifierOutputTarget(1)])[0]
    product = torch.ones(1, 20, 28, dtype=torch.float64)
    for saliency, sigma in zip(result.saliency, (1.0, 0.5), strict=True):  # half of the second layer's cells
        smooth = slow_blur(saliency[0].double().clamp(min=0), sigma)
        product *= normalize(F.interpolate(smooth[None, None], (20, 28), mode="bilinear")[0])
    torch.testing.assert_close(torch.as_tensor(result.heatmaps).double(), normalize(product), atol=1e-5, rtol=0)


class Quadratic(nn.Module):
    """One channel, one identity layer, and a score that is quadratic in its output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a = self.layer(x)
        return torch.stack([a[:, 0, 0, 0] * a[:, 0, 1, 1] + 3 * a[:, 0, 0, 1], (a * a).sum((1, 2, 3))], 1)


def test_one_midpoint_is_exact_for_a_quadratic_network() -> None:
    image = torch.tensor([[[[4.0, 1.0], [2.0, 5.0]]]])  # mean 3; differences 1, -2, -1, 2
    cam = ReachCAM(Quadratic().eval(), ["layer"], steps=1)
    result = cam.explain(image, [[ClassifierOutputTarget(0), ClassifierOutputTarget(1)]])[0]
    # At the midpoint the map is [[3.5, 2], [2.5, 4]]; the first score's gradient there is [[4, 3], [0, 3.5]].
    torch.testing.assert_close(result.saliency[0][0], torch.tensor([[4.0, -6.0], [0.0, 7.0]]))
    # 4 * 5 + 3 * 1 = 23 with the image, 3 * 3 + 3 * 3 = 18 without; 46 and 36 for the sum of squares.
    assert float(result.saliency[0][0].sum()) == pytest.approx(23 - 18)
    assert float(result.saliency[0][1].sum()) == pytest.approx(46 - 36)
    assert float(result.convergence_delta.max()) < 1e-6


def test_an_incomplete_map_warns_and_more_steps_complete_it() -> None:
    model = TinyCNN()
    logit = float(model(IMAGES[:1])[0, 1].detach())
    steep = [lambda out: torch.sigmoid(12 * (out[1] - logit))]
    with pytest.warns(ConvergenceWarning, match="the convergence delta is up to .* at conv1. More steps help"):
        coarse = ReachCAM(model, [model.conv1], steps=1).explain(IMAGES[:1], steep)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = ReachCAM(model, [model.conv1], steps=64).explain(IMAGES[:1], steep)[0]
    assert float(fine.convergence_delta) < 0.02 < 0.2 < float(coarse.convergence_delta)


def test_the_path_does_not_change_padding() -> None:
    model = TinyCNN()
    geometries = [Geometry((10, 28), (20, 28), (1.0, 1.0), (0.0, 6.0)), Geometry.identity((20, 28))]
    with guarded(model, gradients=True):
        trace = Trace([model.relu1, model.conv1], ["relu1", "conv1"], gradients=True)
        with trace:
            model(IMAGES[:2])
        path = FeaturePath(trace, 1, geometries, lambda x: x)
    activation = trace.activations()[1][0]  # 10 x 14 cells; rows 3 to 7 lie on the first image
    start = activation.clone()
    start[0, :, 3:8] = activation[0, :, 3:8].mean((1, 2), keepdim=True)
    start[1] = activation[1].mean((1, 2), keepdim=True)
    torch.testing.assert_close(path.point(0, 0.0), start)
    torch.testing.assert_close(path.point(0, 1.0), activation)
    torch.testing.assert_close(path.point(0, 0.25), start + 0.25 * (activation - start))
    torch.testing.assert_close(path.differences[0], activation - start)


class TinyTransformer(nn.Module):
    """A class token and 4 x 6 patches through one block that mixes them."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.first = nn.Linear(8, 8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.first(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))
        mixed, _ = self.mix(tokens, tokens, tokens)
        return self.head((tokens + mixed)[:, 0])


def test_the_path_of_tokens_keeps_the_class_token() -> None:
    model = TinyTransformer().eval()
    images = torch.rand(2, 3, 16, 24)
    found = ReachCAM(model, [model.first], steps=3).explain(images, [ClassifierOutputTarget(1)] * 2)
    for image, result in zip(images, found, strict=True):
        with torch.no_grad():
            tokens = model.patches(image[None]).flatten(2).transpose(1, 2)
            tokens = model.first(torch.cat([model.token, tokens], 1)).double()
        slow = TinyTransformer().double().eval()
        slow.load_state_dict(model.state_dict())
        start = torch.cat([tokens[:, :1], tokens[:, 1:].mean(1, keepdim=True).expand(-1, 24, -1)], 1)
        total = torch.zeros_like(tokens)
        for step in range(3):
            point = (start + (step + 0.5) / 3 * (tokens - start)).requires_grad_(True)
            score = slow.head((point + slow.mix(point, point, point)[0])[:, 0])[0, 1]
            total += torch.autograd.grad(score, point)[0] / 3
        expected = ((tokens - start) * total).sum(2)[0, 1:].reshape(4, 6)
        torch.testing.assert_close(result.saliency[0][0].double(), expected, atol=1e-5, rtol=1e-4)


def test_a_computing_transform_is_refused() -> None:
    model = TinyCNN()
    with pytest.raises(ValueError, match="target layer conv1 computes new values"):
        ReachCAM(model, [model.conv1], reshape_transform=lambda x: x.abs() * 2)(IMAGES, [ClassifierOutputTarget(0)] * 3)


def test_layers_have_separate_paths_and_unused_ones_add_nothing() -> None:
    class Branches(TinyCNN):
        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Conv2d(3, 2, 3, stride=2)

        def forward(self, x: Tensor) -> Any:
            return torch.cat([super().forward(x), self.side(x).mean((2, 3))], 1)

    model = Branches()
    target = [ClassifierOutputTarget(1)]
    both = ReachCAM(model, [model.conv1, model.side]).explain(IMAGES[:1], target)[0]
    alone = ReachCAM(model, [model.conv1]).explain(IMAGES[:1], target)[0]
    torch.testing.assert_close(torch.as_tensor(both.heatmaps), torch.as_tensor(alone.heatmaps))
    assert float(both.saliency[1].abs().max()) == 0
    with pytest.warns(EmptyMapWarning, match="1 of 1 target is zero everywhere at side"):
        ReachCAM(model, [model.side])(IMAGES[:1], [lambda out: out[1].detach()])
    model.forward = lambda x: TinyCNN.forward(model, x) + 0 * len(model.side(x))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="does not depend on target layer side"):
        ReachCAM(model, [model.side])(IMAGES[:1], target)


def test_batch_invariance_and_removed_hooks() -> None:
    model = TinyCNN()
    targets = [ClassifierOutputTarget(i) for i in (2, 0, 1)]
    before = Snapshot(model)
    cam = ReachCAM(model, [model.relu1, model.conv2])
    together = cam.explain(IMAGES, [[t] for t in targets])
    before.check()
    for index, target in enumerate(targets):
        alone = cam.explain(IMAGES[index : index + 1], [target])[0]
        torch.testing.assert_close(
            torch.as_tensor(alone.heatmaps), torch.as_tensor(together[index].heatmaps), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(alone.convergence_delta, together[index].convergence_delta, atol=1e-4, rtol=1e-3)
    with pytest.raises(ZeroDivisionError):
        cam(IMAGES[:1], [lambda out: out[1 // 0]])
    before.check()


def test_eigen_smooth_projects_the_path_integral() -> None:
    model = TinyCNN()
    target = [ClassifierOutputTarget(1)]
    plain = ReachCAM(model, [model.conv1]).explain(IMAGES[:1], target)[0].saliency[0][0]
    smooth = ReachCAM(model, [model.conv1]).explain(IMAGES[:1], target, eigen_smooth=True)[0].saliency[0][0]
    assert float(torch.corrcoef(torch.stack([plain.flatten(), smooth.flatten()]))[0, 1]) > 0
    assert not torch.allclose(plain, smooth, atol=1e-3)
    assert float(smooth.mean()) == pytest.approx(0, abs=1e-5)  # a projection of centered vectors


@pytest.mark.parametrize("steps", [0, -1])
def test_a_path_needs_a_step(steps: int) -> None:
    with pytest.raises(ValueError, match="steps of at least 1"):
        ReachCAM(TinyCNN(), ["conv1"], steps=steps)


def test_two_stage_boxes_stay_pinned_and_are_contrasted() -> None:
    detector = load_demo_detector()
    adapter = adapt(detector)
    image = draw_scene(28).image
    found = adapter.predict(image)[0]
    cam = ReachCAM(adapter, ["backbone.stride4"], steps=2)
    result = cam.explain(image, found)[0]
    torch.testing.assert_close(result.scores, found.scores, atol=1e-4, rtol=0)  # what is reported stays the score
    assert result.targets == tuple(adapter.targets_of(found))
    for index, target in enumerate(adapter.targets_of(found)):
        plain = ReachCAM(adapter, ["backbone.stride4"], steps=2, contrast=False)
        scores = HiResCAM(adapter).explain(image, [replace(target, label=label) for label in range(3)])[0].scores
        # Logits of a softmax mean nothing but in comparison: there is a rival however little it scores.
        against = max({0, 1, 2} - {target.label}, key=lambda label: float(scores[label]))
        contrasted = replace(target, quantity="logit", against=against)
        expected = plain.explain(image, [contrasted])[0]
        torch.testing.assert_close(
            torch.as_tensor(result.heatmaps)[index], torch.as_tensor(expected.heatmaps)[0], atol=1e-4, rtol=0
        )
    kept = BoxTarget(found.boxes_xyxy[0].tolist(), 1, found.source[0], quantity="x1")
    walked = torch.as_tensor(plain.explain(image, [kept])[0].heatmaps)
    torch.testing.assert_close(torch.as_tensor(cam.explain(image, [kept])[0].heatmaps), walked)


def test_a_strong_rival_is_contrasted() -> None:
    detector = load_demo_detector()
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias[2] += 12.0  # a buoy is likely everywhere
    adapter = adapt(detector, target_layers=["backbone.stride4"])
    image = draw_scene(28).image
    box = next(t for t in adapter.targets_of(adapter.predict(image)[0]) if t.label == 1)
    by_hand = ReachCAM(adapter, contrast=False).explain(image, [replace(box, quantity="logit", against=2)])[0]
    torch.testing.assert_close(
        torch.as_tensor(ReachCAM(adapter).explain(image, [box])[0].heatmaps), torch.as_tensor(by_hand.heatmaps)
    )


def test_default_layers_reach_the_wake_unlike_the_last_layer() -> None:
    detector = load_demo_detector()
    adapter = adapt(detector)
    assert find_context_layers(adapter) == ["backbone.stride2", "backbone.stride4"]
    cam = ReachCAM(adapter)
    assert cam.adapter.layer_names == ["backbone.stride2", "backbone.stride4"]
    assert ReachCAM(adapt(detector, target_layers=["backbone.stride8"])).adapter.layer_names == ["backbone.stride8"]
    scene = draw_scene(28)
    wake = next(iter(scene.ghost_boxes_xyxy))
    verdict = certify_wake(detector, scene, wake)
    found = adapter.predict(scene.image)[0]
    index = int((found.boxes_xyxy - torch.tensor(verdict.box_xyxy)).abs().sum(1).argmin())
    heatmap = torch.as_tensor(cam.explain(scene.image, [adapter.targets_of(found)[index]])[0].heatmaps)[0]
    mask = torch.from_numpy(scene.object(wake).mask)
    assert verdict.certified and verdict.outside_fraction >= 0.9
    assert bool(mask.flatten()[heatmap.argmax()])
    assert float(heatmap[mask].sum() / heatmap.sum()) > 0.3


def test_stages_are_detected_across_shortcuts() -> None:
    from torchvision.models import resnet18, vgg11

    assert find_context_layers(adapt(resnet18().eval(), image_size=320)) == ["layer1", "layer2"]
    assert find_context_layers(adapt(resnet18().eval(), image_size=160)) == ["relu", "layer1"]  # 20 cells are too few
    vgg = vgg11(init_weights=False).features.eval()
    assert find_context_layers(adapt(vgg, image_size=320, target_layers="20"), count=4) == ["1", "4", "9", "14"]


def test_reach_warnings_name_given_layers_only() -> None:
    """What lies beyond the layers' own choice has no part in the score, so there is nothing to warn of."""
    adapter = adapt(load_demo_detector())
    image = torch.from_numpy(draw_scene(42).image).permute(2, 0, 1)
    found = adapter.predict(image, top_k=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReachWarning)
        ReachCAM(adapter).explain(image, found)
    with pytest.warns(ReachWarning):
        ReachCAM(adapter, ["backbone.stride16"]).explain(image, found)
