"""AblationCAM against its formula, and replay of the layers after a target layer."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detcam.perturbation.replay
from detcam import AblationCAM, ReciproCAM, ScoreCAM
from detcam.adapters import adapt
from detcam.targets import BoxTarget, ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN
from tests.methods.perturbing import IMAGES, TARGETS, TargetLike, Tokens, activation, changed_scores, count_runs
from tests.zoo import example

pytestmark = pytest.mark.filterwarnings("ignore")


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
def test_ablation_cam_equals_its_formula(name: str) -> None:
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
    # Score -4. Without the left channel 0: it lowers the target's score, -4 / |-4|.
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


def test_ablation_cam_of_tokens_keeps_the_class_token() -> None:
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
    case = example("faster_rcnn")
    unet = adapt(example("smp_unet").model, image_size=64)
    for adapter, layers in ((case.adapter, None), (unet, ["decoder.blocks.0"])):
        image = case.images[0]
        found = adapter.predict(image)[0].filter(top_k=2)
        cam = method(adapter, layers)
        together = cam.explain(image, [found])[0]
        monkeypatch.setattr(detcam.perturbation.replay, "MAX_PASS_BYTES", 2**19)
        cam.batch_size = 3
        torch.testing.assert_close(
            torch.as_tensor(cam.explain(image, [found])[0].heatmaps),
            torch.as_tensor(together.heatmaps),
            atol=1e-5,
            rtol=0,
        )
        monkeypatch.undo()


def test_only_downstream_layers_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyCNN()
    cam = AblationCAM(model, ["relu1"])
    runs = count_runs(model)
    monkeypatch.setattr(detcam.perturbation.replay, "MAX_PASS_BYTES", 1)
    cam.explain(IMAGES[:1], TARGETS[:1])
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
def test_skip_connections_and_in_place_operations(name: str) -> None:
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


def test_models_that_cannot_be_replayed_are_named() -> None:
    coupled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).eval()
    with pytest.raises(RuntimeError, match="downstream of target layer 0 do not reproduce their scores"):
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
