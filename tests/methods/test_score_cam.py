"""ScoreCAM against its formula, by hand, and of some channels."""

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

from detcam import AblationCAM, Occlusion, ScoreCAM
from detcam.adapters import detector
from detcam.data.images import load_image
from detcam.targets import BoxTarget, ClassifierOutputTarget, FasterRCNNBoxScoreTarget
from tests.helpers import Snapshot, TinyCNN
from tests.methods.perturbing import IMAGES, TARGETS, activation, count_runs
from tests.zoo import example

pytestmark = pytest.mark.filterwarnings("ignore")


def slow_score_weights(a: Tensor, image: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """ScoreCAM's weights (C, N) of the channels (C, h, w), one masked image after the other."""
    scores = []
    for channel in a:
        mask = F.interpolate(channel[None, None], image.shape[-2:], mode="bilinear", align_corners=True)[0]
        low, high = float(mask.min()), float(mask.max())
        scores.append(score(image * (mask - low) / (high - low if high > low else 1)))
    return torch.stack(scores).softmax(0)


@pytest.mark.parametrize("name", ["conv1", "relu2"])
def test_score_cam_equals_its_formula(name: str) -> None:
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
def test_boxes_matched_by_overlap(method: Any) -> None:
    case = example("faster_rcnn")
    image = case.images[0]
    found = case.adapter.predict(image)[0].filter(top_k=1)
    target = FasterRCNNBoxScoreTarget(found.labels.tolist(), found.boxes_xyxy, iou_threshold=0.9)
    result = method(case.adapter).explain(image, [[target]])[0]
    assert float(result.scores) == pytest.approx(1 + float(found.scores), abs=1e-3)
    assert float(result.heatmaps.max()) > 0.99


def test_an_undetected_box_keeps_its_best_candidate() -> None:
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
    every, two = ScoreCAM(model, ["conv2"]), ScoreCAM(model, ["conv2"], top_channels=2)
    runs = count_runs(model)
    together = every.explain(IMAGES[:1], [[ClassifierOutputTarget(k) for k in range(3)]])[0]
    assert runs["conv1"] == 1 + 5, "the image, and one pass for each of five channels, whatever the number of targets"
    for k in range(3):
        alone = ScoreCAM(model, ["conv2"]).explain(IMAGES[:1], [ClassifierOutputTarget(k)])[0]
        torch.testing.assert_close(alone.saliency[0][0], together.saliency[0][k])
    runs["conv1"] = 0
    two.explain(IMAGES[:1], TARGETS[:1])
    assert runs["conv1"] == 1 + 1 + 2, "the image twice, once to record, and the two channels"


def test_score_cam_of_some_channels(photos: Path) -> None:
    torch.manual_seed(0)
    model = resnet18().eval()
    image = load_image(photos / "horses.jpg")
    batch = F.interpolate(image[None], (128, 128), mode="bilinear", antialias=True) * 4 - 2
    exact = ScoreCAM(model, [model.layer4[-1]]).explain(batch)[0]
    some = ScoreCAM(model, [model.layer4[-1]], top_channels=64).explain(batch)[0]
    both = torch.stack([torch.as_tensor(exact.heatmaps).flatten(), torch.as_tensor(some.heatmaps).flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.98, "0.971 where the other channels' scores are left out"


def test_score_cam_of_as_many_channels_as_there_are() -> None:
    model = TinyCNN()
    exact = ScoreCAM(model, ["conv2"]).explain(IMAGES, TARGETS)
    for count in (5, 99):
        every = ScoreCAM(model, ["conv2"], top_channels=count).explain(IMAGES, TARGETS)
        for one, other in zip(every, exact, strict=True):
            torch.testing.assert_close(one.saliency[0], other.saliency[0])
    with pytest.raises(ValueError, match="top_channels"):
        ScoreCAM(model, top_channels=0)


def test_score_cam_of_some_channels_with_expensive_replay() -> None:
    model = TinyCNN()
    image, target = IMAGES[:1], ClassifierOutputTarget(1)
    found = ScoreCAM(model, ["relu1"], top_channels=2).explain(image, [target])[0].saliency[0][0]
    a = activation(model, model.relu1, image[0])
    best = a.square().sum((1, 2)).argsort(descending=True)[:2]
    with torch.no_grad():
        weights = slow_score_weights(a[best], image[0], lambda x: model(x[None])[0, 1])
    torch.testing.assert_close(found, torch.tensordot(weights, a[best], 1), atol=1e-5, rtol=1e-4)


def test_models_limited_to_one_memory_layout() -> None:
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
