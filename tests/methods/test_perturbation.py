"""Methods that change activations or inputs, each against its formula written out slowly, and against known answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

import detcam.behind
from detcam import AblationCAM, Occlusion, ReciproCAM, ScoreCAM
from detcam.adapters import detector
from detcam.images import load_image
from detcam.targets import BoxTarget, ClassifierOutputTarget, FasterRCNNBoxScoreTarget
from tests.helpers import Snapshot, TinyCNN
from tests.zoo import example

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))
TargetLike = Callable[[Tensor], Tensor]
TARGETS = [[ClassifierOutputTarget(0), ClassifierOutputTarget(2)], [ClassifierOutputTarget(1)]]


def changed_scores(
    model: nn.Module, layer: nn.Module, image: Tensor, target: TargetLike, change: Callable[[Tensor], Tensor]
) -> float:
    """The target's score in a plain pass through the whole network, with the layer's output changed."""
    handle = layer.register_forward_hook(lambda module, inputs, output: change(output.clone()))
    try:
        with torch.no_grad():
            return float(target(model(image[None])[0]))
    finally:
        handle.remove()


def activation(model: nn.Module, layer: nn.Module, image: Tensor) -> Tensor:
    """What a layer puts out for one image, (C, h, w)."""
    kept: list[Tensor] = []
    changed_scores(
        model, layer, image, lambda output: output.sum(), lambda output: kept.append(output.clone()) or output
    )
    return kept[0][0]


def without_channel(output: Tensor, channel: int) -> Tensor:
    output[:, channel] = 0
    return output


def slow_ablation(model: nn.Module, layer: nn.Module, image: Tensor, target: TargetLike) -> Tensor:
    model, image = copy.deepcopy(model).double(), image.double()
    layer = dict(model.named_modules())[layer] if isinstance(layer, str) else layer
    a = activation(model, layer, image)
    y = changed_scores(model, layer, image, target, lambda output: output)
    total = torch.zeros_like(a[0])
    for k in range(len(a)):
        y_k = changed_scores(model, layer, image, target, lambda output, k=k: without_channel(output, k))
        total += (y - y_k) / abs(y) * a[k]
    return total


@pytest.mark.parametrize("name", ["conv1", "relu1", "conv2", "relu2"])
def test_ablation_cam_is_its_formula(name: str) -> None:
    model = TinyCNN(inplace=True)
    before = Snapshot(model)
    results = AblationCAM(model, [name]).explain(IMAGES, TARGETS)
    before.check()
    assert not any("forward" in vars(module) for module in model.modules())
    scores = torch.cat([result.scores for result in results])
    assert (scores < 0).any() and (scores > 0).any(), "both signs are to be tested"
    for image, targets, result in zip(IMAGES, TARGETS, results, strict=True):
        for target, found in zip(targets, result.saliency[0], strict=True):
            expected = slow_ablation(model, name, image, target).float()  # type: ignore[arg-type]
            torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


class TwoChannels(nn.Module):
    """Two channels, 1 on the left half and 1 on the right half; the score is 3 times the left sum minus the right."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.zeros(len(x), 2, 2, 4)
        maps[:, 0, :, :2] = 1
        maps[:, 1, :, 2:] = 1
        sums = self.layer(maps).sum((2, 3))
        return torch.stack([3 * sums[:, 0] - sums[:, 1], -sums[:, 0]], 1)


def test_ablation_cam_by_hand() -> None:
    targets = [[lambda y: y[0], lambda y: y[1]]]
    result = AblationCAM(TwoChannels(), ["layer"]).explain(torch.zeros(1, 3, 4, 8), targets)[0]
    # Score 12 - 4 = 8. Without the left channel -4: weight 12 / 8. Without the right one 12: weight -4 / 8.
    torch.testing.assert_close(result.saliency[0][0], torch.tensor([[1.5, 1.5, -0.5, -0.5]] * 2))
    # Score -4. Without the left channel 0: it speaks against the target, -4 / |-4|.
    torch.testing.assert_close(result.saliency[0][1], torch.tensor([[-1.0, -1.0, 0.0, 0.0]] * 2))


def test_ablation_cam_on_a_pyramid_and_boxes() -> None:
    case = example("faster_rcnn")
    adapter, image = case.adapter, case.images[0]
    found = adapter.predict(image)[0].filter(top_k=2)
    missed = BoxTarget((10.0, 12.0, 60.0, 70.0), 2, quantity="logit")
    targets = [*adapter.targets_of(found), missed]
    result = AblationCAM(adapter).explain(image, [targets])[0]
    batch = adapter.prepare([image])

    def scores(level: str | None, channel: int) -> Tensor:
        def ablate(module: nn.Module, inputs: Any, output: dict[str, Tensor]) -> dict[str, Tensor]:
            changed = {name: tensor.clone() for name, tensor in output.items()}
            if level is not None:
                changed[level][:, channel] = 0
            levels.update(output)
            return changed

        handle = case.model.backbone.register_forward_hook(ablate)  # type: ignore[union-attr,operator]
        try:
            with torch.no_grad():
                (row,) = adapter.score(adapter.outputs(adapter.forward(batch), batch), [targets])
        finally:
            handle.remove()
        return torch.stack(row).double()

    levels: dict[str, Tensor] = {}
    y = scores(None, 0)
    for name, saliency in zip(("0", "1"), result.saliency, strict=True):
        weights = torch.stack([(y - scores(name, k)) / y.abs() for k in range(levels[name].shape[1])], 1)
        expected = torch.tensordot(weights, levels[name][0].double(), 1).float()
        torch.testing.assert_close(saliency, expected, atol=1e-4 * float(expected.abs().max()) + 1e-6, rtol=0)
    assert all(any(float(level[k].abs().max()) > 0 for level in result.saliency) for k in range(len(targets)))


class Tokens(nn.Module):
    """Patches, a class token, a block that mixes them, and a head that reads the class token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 6))
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6 * 36, 6 * 36)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1))
        return self.head(torch.tanh(self.mix(tokens.flatten(1)).unflatten(1, (36, 6)))[:, 0])


def test_ablation_cam_of_tokens_leaves_the_class_token() -> None:
    model = Tokens().eval()
    image = torch.rand(3, 20, 28)
    result = AblationCAM(model, ["norm"]).explain(image[None], [[ClassifierOutputTarget(1)]])[0]

    def ablate(output: Tensor, channel: int) -> Tensor:
        output[:, 1:, channel] = 0
        return output

    target = ClassifierOutputTarget(1)
    a = activation(model, model.norm, image)
    y = changed_scores(model, model.norm, image, target, lambda output: output)
    expected = sum(
        (y - changed_scores(model, model.norm, image, target, lambda output, k=k: ablate(output, k)))
        / abs(y)
        * a[1:, k].reshape(5, 7)
        for k in range(6)
    )
    torch.testing.assert_close(result.saliency[0][0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", [AblationCAM, ScoreCAM, partial(ScoreCAM, top_channels=3), ReciproCAM])
def test_chunks_change_nothing(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for case, layers in ((example("faster_rcnn"), None), (example("smp_unet"), ["decoder.blocks.1"])):
        image = case.images[0]
        found = case.adapter.predict(image)[0].filter(top_k=2)
        cam = method(case.adapter, layers)
        together = cam.explain(image, [found])[0]
        monkeypatch.setattr(detcam.behind, "CHUNK_BYTES", 2**19)
        cam.batch_size = 3
        torch.testing.assert_close(cam.explain(image, [found])[0].heatmaps, together.heatmaps, atol=1e-5, rtol=0)
        monkeypatch.undo()


def count_runs(model: nn.Module) -> dict[str, int]:
    """From now on, how many items went through the forward method of each child."""
    runs = {name: 0 for name, _ in model.named_children()}
    for name, module in model.named_children():
        plain = module.forward

        def counted(*inputs: Tensor, name: str = name, plain: Callable[..., Tensor] = plain) -> Tensor:
            runs[name] += len(inputs[0])
            return plain(*inputs)

        module.forward = counted  # type: ignore[method-assign]
    return runs


def test_only_what_lies_behind_the_layer_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyCNN()
    runs = count_runs(model)
    monkeypatch.setattr(detcam.behind, "CHUNK_BYTES", 1)
    AblationCAM(model, ["relu1"]).explain(IMAGES[:1], TARGETS[:1])
    assert runs["conv1"] == runs["relu1"] == 2, "once for the maps, once to record"
    assert model.conv1.forward.__name__ == "counted", "a forward method of the user's own is put back"
    live = int((activation(model, model.relu1, IMAGES[0]).flatten(1).amax(1) > 0).sum())
    assert runs["conv2"] - 1 == 2 + 4 + live, "the passes above, four that probe, one for each live channel"


class Skips(nn.Module):
    """A long way round by concatenation, a change in place of what went round, and one head run on two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, 2, 1)
        self.deep = nn.Conv2d(4, 4, 3, 2, 1)
        self.head = nn.Conv2d(4, 3, 1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        round_about = self.down(x)
        deep = self.deep(round_about)
        round_about += 1
        round_about.clamp_(min=0.5)
        scores = [self.head(level).flatten(2) for level in (round_about, deep)]
        return torch.cat(scores, 2).square().mean(2)


@pytest.mark.parametrize("name", ["down", "deep"])
def test_skip_connections_and_changes_in_place(name: str) -> None:
    model = Skips()
    result = AblationCAM(model, [name]).explain(IMAGES[:1], TARGETS[:1])[0]
    for target, found in zip(TARGETS[0], result.saliency[0], strict=True):
        expected = slow_ablation(model, name, IMAGES[0], target).float()  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_layer_that_runs_twice_has_two_levels() -> None:
    model = Skips()
    result = AblationCAM(model, ["head"]).explain(IMAGES[:1], TARGETS[:1])[0]
    assert [tuple(level.shape) for level in result.saliency] == [(2, 10, 14), (2, 5, 7)]
    target = TARGETS[0][1]
    for nth, found in enumerate(result.saliency):
        ran: list[Tensor] = []

        def change(output: Tensor, channel: int | None, nth: int = nth, ran: list[Tensor] = ran) -> Tensor:
            ran.append(output.clone())
            return output if channel is None or len(ran) != nth + 1 else without_channel(output, channel)

        y = changed_scores(model, model.head, IMAGES[0], target, lambda output: change(output, None))
        a, total = ran[nth][0], torch.zeros_like(ran[nth][0, 0])
        for k in range(3):
            ran.clear()
            y_k = changed_scores(model, model.head, IMAGES[0], target, lambda output, k=k: change(output, k))
            total += (y - y_k) / abs(y) * a[k]
        torch.testing.assert_close(found[1], total, atol=1e-5, rtol=1e-4)


def test_ablating_some_channels_takes_those_with_the_most_energy() -> None:
    model = TinyCNN()
    a = activation(model, model.conv2, IMAGES[0])
    best = a.square().sum((1, 2)).argsort(descending=True)[:2].tolist()
    target = TARGETS[0][0]
    y = changed_scores(model, model.conv2, IMAGES[0], target, lambda output: output)
    without = [
        changed_scores(model, model.conv2, IMAGES[0], target, lambda o, k=k: without_channel(o, k)) for k in best
    ]
    expected = sum((y - y_k) / abs(y) * a[k] for k, y_k in zip(best, without, strict=True))
    cam = AblationCAM(model, ["conv2"], ratio_channels_to_ablate=0.4)
    found = cam.explain(IMAGES[:1], [[target]])[0].saliency[0][0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="ratio_channels_to_ablate"):
        AblationCAM(model, ["conv2"], ratio_channels_to_ablate=0.0)


def test_models_that_cannot_be_repeated_are_named() -> None:
    coupled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).eval()
    with pytest.raises(RuntimeError, match="behind target layer 0 does not repeat itself"):
        AblationCAM(coupled, ["0"]).explain(IMAGES[:1], [[lambda y: y.square().sum()]])
    model = TinyCNN()
    with pytest.raises(ValueError, match="computes new values"):
        AblationCAM(model, ["conv1"], lambda output: output.abs()).explain(IMAGES[:1], TARGETS[:1])
    before = Snapshot(model)
    calls: list[int] = []

    def fails_later(output: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise KeyError("stop")
        return output[0]

    with pytest.raises(KeyError):
        AblationCAM(model, ["conv1"]).explain(IMAGES[:1], [[fails_later]])
    before.check()
    assert not any("forward" in vars(module) for module in model.modules())


def slow_score_weights(a: Tensor, image: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """ScoreCAM's weights (C, N) of the channels (C, h, w), one masked picture after the other."""
    scores = []
    for channel in a:
        mask = F.interpolate(channel[None, None], image.shape[-2:], mode="bilinear", align_corners=True)[0]
        low, high = float(mask.min()), float(mask.max())
        scores.append(score(image * (mask - low) / (high - low if high > low else 1)))
    return torch.stack(scores).softmax(0)


@pytest.mark.parametrize("name", ["conv1", "relu2"])
def test_score_cam_is_its_formula(name: str) -> None:
    model = TinyCNN(inplace=True)
    with torch.no_grad():
        model.conv2.bias[1] = -1e3  # a channel that is zero everywhere
    before = Snapshot(model)
    results = ScoreCAM(model, [name]).explain(IMAGES, TARGETS)
    before.check()
    slow = copy.deepcopy(model).double()
    for image, targets, result in zip(IMAGES.double(), TARGETS, results, strict=True):
        a = activation(slow, getattr(slow, name), image)
        with torch.no_grad():
            weights = slow_score_weights(a, image, lambda x: slow(x[None])[0])
        for target, found in zip(targets, result.saliency[0], strict=True):
            expected = torch.tensordot(weights[:, target.category], a, 1).float()
            torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


class Brightness(nn.Module):
    """The layer's two channels are the left and the right half; the score is the right half's brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.zeros(len(x), 2, 4, 4)
        halves[:, 0, :, :2] = halves[:, 1, :, 2:] = 1
        self.layer(halves)
        return x[:, 0, :, 2:].sum((1, 2))[:, None] / 8 * torch.ones(1, 2)


def test_score_cam_by_hand() -> None:
    result = ScoreCAM(Brightness(), ["layer"]).explain(torch.full((1, 3, 4, 4), 2.0), [[lambda y: y[0]]])[0]
    # Seen through the left half the score is 0, through the right half 2.
    e = torch.tensor(2.0).exp()
    row = torch.stack([1 / (1 + e), 1 / (1 + e), e / (1 + e), e / (1 + e)])
    torch.testing.assert_close(result.saliency[0][0], row.expand(4, 4))


def test_score_cam_on_a_padded_pyramid_and_boxes() -> None:
    case = example("faster_rcnn")
    adapter, image = case.adapter, case.images[1]
    targets = [BoxTarget((10.0, 12.0, 60.0, 70.0), 2, quantity="logit"), BoxTarget((5.0, 50.0, 60.0, 99.0), 1)]
    result = ScoreCAM(adapter).explain(image, [targets])[0]
    batch = adapter.prepare([image])
    assert batch.geometries[0].input_size_hw[1] > batch.inputs.shape[-1] - 32
    rows, columns = batch.geometries[0].valid_cells(batch.geometries[0].input_size_hw)
    kept: dict[str, Tensor] = {}
    handle = case.model.backbone.register_forward_hook(lambda m, i, o: kept.update(o) and None)  # type: ignore[union-attr,operator]
    with torch.no_grad():
        adapter.forward(batch)
    handle.remove()
    for name, saliency in zip(("0", "1"), result.saliency, strict=True):
        scores = []
        for channel in kept[name][0]:
            mask = F.interpolate(channel[None, None], batch.inputs.shape[-2:], mode="bilinear", align_corners=True)[0]
            low, high = mask[0, rows, columns].min(), mask[0, rows, columns].max()
            seen = replace(batch, inputs=batch.inputs * ((mask - low) / (high - low + 1e-8)).clamp(0, 1))
            with torch.no_grad():
                scores.append(torch.stack(adapter.score(adapter.outputs(adapter.forward(seen), seen), [targets])[0]))
        expected = torch.tensordot(torch.stack(scores).softmax(0).T, kept[name][0], 1)
        torch.testing.assert_close(saliency, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("method", [AblationCAM, partial(ScoreCAM, top_channels=2)])
def test_boxes_that_are_found_again_by_overlap(method: Any) -> None:
    case = example("faster_rcnn")
    image = case.images[0]
    found = case.adapter.predict(image)[0].filter(top_k=1)
    target = FasterRCNNBoxScoreTarget(found.labels.tolist(), found.boxes_xyxy, iou_threshold=0.9)
    result = method(case.adapter).explain(image, [[target]])[0]
    assert float(result.scores) == pytest.approx(1 + float(found.scores), abs=1e-3)
    assert float(result.heatmaps.max()) > 0.99


def test_a_box_that_nobody_detected_stays_where_it_fits_best() -> None:
    """Two candidates share a box: one scores the pixel (2, 2), the other always 0.5 and must not step in."""

    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.stack([raw[:, 0, 2, 2], torch.full((len(raw),), 0.5)], 1)
        return torch.tensor([[[0.0, 0.0, 8.0, 8.0]] * 2]).expand(len(raw), -1, -1), scores[..., None]

    layer = nn.Conv2d(3, 1, 1, bias=False)
    nn.init.constant_(layer.weight, 1 / 3)
    adapter = detector(nn.Sequential(layer), decode, target_layers=["0"])
    result = Occlusion(adapter, grid=2, window=1).explain(torch.ones(3, 8, 8), [[BoxTarget((0, 0, 8, 8), 0)]])[0]
    assert result.saliency[0][0, ::4, ::4].tolist() == [[pytest.approx(1.0), 0.0], [0.0, 0.0]]


def test_score_cam_shares_its_passes() -> None:
    model = TinyCNN()
    runs = count_runs(model)
    together = ScoreCAM(model, ["conv2"]).explain(IMAGES[:1], [[ClassifierOutputTarget(k) for k in range(3)]])[0]
    assert runs["conv1"] == 1 + 5, "the picture, and one pass for each of five channels, whatever the number of targets"
    for k in range(3):
        alone = ScoreCAM(model, ["conv2"]).explain(IMAGES[:1], [ClassifierOutputTarget(k)])[0]
        torch.testing.assert_close(alone.saliency[0][0], together.saliency[0][k])
    runs["conv1"] = 0
    ScoreCAM(model, ["conv2"], top_channels=2).explain(IMAGES[:1], TARGETS[:1])
    assert runs["conv1"] == 1 + 1 + 2, "the picture twice, once to record, and the two channels"


def test_score_cam_of_some_channels(photos: Path) -> None:
    torch.manual_seed(0)
    model = resnet18().eval()
    picture = load_image(photos / "horses.jpg")
    batch = F.interpolate(picture[None], (160, 160), mode="bilinear", antialias=True) * 4 - 2
    exact = ScoreCAM(model, [model.layer4[-1]]).explain(batch)[0]
    some = ScoreCAM(model, [model.layer4[-1]], top_channels=64).explain(batch)[0]
    both = torch.stack([exact.heatmaps.flatten(), some.heatmaps.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.98
    every = ScoreCAM(model, [model.layer4[-1]], top_channels=512).explain(batch)[0]
    torch.testing.assert_close(every.heatmaps, exact.heatmaps)
    with pytest.raises(ValueError, match="top_channels"):
        ScoreCAM(model, top_channels=0)


def test_score_cam_of_some_channels_where_the_rest_is_too_dear_to_predict() -> None:
    model = TinyCNN()
    image, target = IMAGES[:1], ClassifierOutputTarget(1)
    found = ScoreCAM(model, ["relu1"], top_channels=2).explain(image, [target])[0].saliency[0][0]
    a = activation(model, model.relu1, image[0])
    best = a.square().sum((1, 2)).argsort(descending=True)[:2]
    with torch.no_grad():
        weights = slow_score_weights(a[best], image[0], lambda x: model(x[None])[0, 1])
    torch.testing.assert_close(found, torch.tensordot(weights, a[best], 1), atol=1e-5, rtol=1e-4)


def test_models_that_know_one_memory_layout() -> None:
    class Flat(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv2(self.relu1(self.conv1(x))).view(len(x), 5, -1).mean(2))

    model = Flat()
    model.head(torch.zeros(1, 5))
    found = ScoreCAM(model, ["relu1"]).explain(IMAGES[:1], TARGETS[:1])[0].saliency[0]
    a = activation(model, model.relu1, IMAGES[0])
    with torch.no_grad():
        weights = slow_score_weights(a, IMAGES[0], lambda x: model(x[None])[0])
    expected = torch.tensordot(weights[:, [0, 2]].T, a, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


KERNEL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).double() / 16


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("name", ["conv1", "relu2"])
def test_recipro_cam_is_its_formula(name: str, gaussian: bool) -> None:
    model = TinyCNN(inplace=True)
    before = Snapshot(model)
    results = ReciproCAM(model, [name], gaussian=gaussian).explain(IMAGES, TARGETS)
    before.check()
    slow = copy.deepcopy(model).double()
    for image, targets, result in zip(IMAGES.double(), TARGETS, results, strict=True):
        height, width = result.saliency[0].shape[1:]
        for target, found in zip(targets, result.saliency[0], strict=True):
            for i in range(height):
                for j in range(width):
                    mask = torch.zeros(height + 2, width + 2, dtype=torch.float64)
                    mask[i : i + 3, j : j + 3] = KERNEL
                    if not gaussian:
                        mask = (mask == 0.25).double()
                    seen = mask[1:-1, 1:-1]
                    score = changed_scores(slow, getattr(slow, name), image, target, lambda o, seen=seen: o * seen)
                    assert float(found[i, j]) == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_recipro_cam_of_tokens_shows_one_patch_beside_the_class_token() -> None:
    model = Tokens().eval()
    image, target = torch.rand(3, 20, 28), ClassifierOutputTarget(1)
    found = ReciproCAM(model, ["norm"], gaussian=False).explain(image[None], [[target]])[0].saliency[0][0]

    def hide(output: Tensor, patch: int) -> Tensor:
        kept = output[:, 1 + patch].clone()
        output[:, 1:] = 0
        output[:, 1 + patch] = kept
        return output

    expected = [
        changed_scores(model, model.norm, image, target, lambda output, n=n: hide(output, n)) for n in range(35)
    ]
    torch.testing.assert_close(found, torch.tensor(expected).reshape(5, 7), atol=1e-5, rtol=1e-4)


def test_recipro_cam_on_a_pyramid_and_boxes() -> None:
    case = example("faster_rcnn")
    adapter, image = case.adapter, case.images[0]
    target = BoxTarget((10.0, 12.0, 40.0, 50.0), 2, quantity="logit")
    result = ReciproCAM(adapter, gaussian=False).explain(image, [[target]])[0]
    batch = adapter.prepare([image])
    for y, x in ((2, 3), (4, 5), (11, 15)):

        def hide(
            module: nn.Module, inputs: Any, output: dict[str, Tensor], y: int = y, x: int = x
        ) -> dict[str, Tensor]:
            seen = torch.zeros_like(output["0"])
            seen[:, :, y, x] = output["0"][:, :, y, x]
            return {**output, "0": seen}

        handle = case.model.backbone.register_forward_hook(hide)  # type: ignore[union-attr,operator]
        with torch.no_grad():
            ((expected,),) = adapter.score(adapter.outputs(adapter.forward(batch), batch), [[target]])
        handle.remove()
        assert float(result.saliency[0][0, y, x]) == pytest.approx(float(expected), abs=1e-4)
    fine, coarse = (float(level[0].max() - level[0].min()) for level in result.saliency[:2])
    assert fine > 1e-3 and coarse == 0, "the box lies on the fine level alone"


class Sum(nn.Module):
    """Scores that are sums over the picture: of its first channel, and of its second channel's left half."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        return torch.stack([x[:, 0].sum((1, 2)), x[:, 1, :, : x.shape[3] // 2].sum((1, 2)), x[:, 2, 0, 0]], 1)


def test_occlusion_is_its_formula() -> None:
    model = TinyCNN()
    before = Snapshot(model)
    results = Occlusion(model, grid=5, window=2).explain(IMAGES, TARGETS)
    before.check()
    slow = copy.deepcopy(model).double()
    rows, columns = [round(i * 4) for i in range(6)], [round(i * 5.6) for i in range(6)]
    for image, targets, result in zip(IMAGES.double(), TARGETS, results, strict=True):
        assert result.sampling is not None and result.sampling.passes == 16
        for target, found in zip(targets, result.saliency[0], strict=True):
            total, count = torch.zeros(20, 28).double(), torch.zeros(20, 28).double()
            for i in range(4):
                for j in range(4):
                    hidden = image.clone()
                    here = (slice(rows[i], rows[i + 2]), slice(columns[j], columns[j + 2]))
                    hidden[:, here[0], here[1]] = 0
                    with torch.no_grad():
                        loss = float(target(slow(image[None])[0])) - float(target(slow(hidden[None])[0]))
                    total[here] += loss / 4
                    count[here] += 1
            expected = (total / count).float()
            torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()) + 1e-6, rtol=0)


def test_occlusion_refined_everywhere_is_occlusion_of_single_cells() -> None:
    model = TinyCNN()
    fine = Occlusion(model, grid=8, window=1).explain(IMAGES[:1], TARGETS[:1])[0]
    refined = Occlusion(model, grid=8, refine=0.0).explain(IMAGES[:1], TARGETS[:1])[0]
    torch.testing.assert_close(refined.saliency[0], fine.saliency[0], atol=1e-6, rtol=1e-5)
    assert refined.sampling is not None and refined.sampling.passes == 16 + 64


def test_occlusion_refines_where_the_score_reacts() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[0, 0, 3:5, 9:11] = 1  # reacts in four cells around a corner of the grid, in one coarse block
    picture[0, 1, 20, 8] = 1
    cam = Occlusion(Sum(), grid=16, refine=0.5)
    both = cam.explain(picture, [[ClassifierOutputTarget(0), ClassifierOutputTarget(1)]])[0]
    assert both.sampling is not None and both.sampling.passes == 16 + 2 * 4 + 2 * 4 + 4
    expected = torch.zeros(32, 32)
    expected[2:6, 8:12] = 1
    torch.testing.assert_close(both.saliency[0][0], expected)
    expected = torch.zeros(32, 32)
    expected[20:22, 8:10] = 1
    torch.testing.assert_close(both.saliency[0][1], expected)
    for k in range(2):
        alone = cam.explain(picture, [ClassifierOutputTarget(k)])[0]
        torch.testing.assert_close(alone.saliency[0][0], both.saliency[0][k])
    nothing = cam.explain(picture, [ClassifierOutputTarget(2)])[0]
    assert nothing.sampling is not None and nothing.sampling.passes == 16 and float(nothing.heatmaps.max()) == 0


def test_occlusion_on_a_padded_picture_with_boxes() -> None:
    case = example("faster_rcnn")
    adapter, image = case.adapter, case.images[1]
    found = adapter.predict(image)[0].filter(top_k=2)
    result = Occlusion(adapter, grid=4, window=1).explain(image, [found])[0]
    batch = adapter.prepare([image])
    rows, columns = batch.geometries[0].valid_cells(batch.geometries[0].input_size_hw)
    hidden = batch.inputs.clone()
    high, wide = (rows.stop - rows.start), (columns.stop - columns.start)
    hidden[:, :, rows.start + round(high / 4) : rows.start + round(high / 2), columns.start : round(wide / 4)] = 0
    with torch.no_grad():
        seen = replace(batch, inputs=hidden)
        ((one, two),) = adapter.score(adapter.outputs(adapter.forward(seen), seen), [adapter.targets_of(found)])
    expected = found.scores - torch.stack([one, two])
    torch.testing.assert_close(
        result.saliency[0][:, rows.start + round(high / 4), columns.start], expected, atol=1e-5, rtol=0
    )
    for wrong in ({"window": 0}, {"window": 17}, {"refine": 2.0}, {"refine": 0.5, "grid": 12}):
        with pytest.raises(ValueError, match="expected"):
            Occlusion(adapter, **wrong)  # type: ignore[arg-type]
