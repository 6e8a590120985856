"""SESS against grad-cam's implementation and against a window-by-window computation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import ODAM, SESS, GradCAM, HiResCAM, adapt
from detcam.adapters import detector, segmenter
from detcam.detections import Source
from detcam.geometry import normalize
from detcam.methods.common.sliding_windows import Window, sliding_windows
from detcam.methods.sess import window_score
from detcam.targets import BoxTarget, ClassifierOutputTarget, MaskTarget, SemanticSegmentationTarget
from tests.helpers import TinyCNN, tensors

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def starts(length: int, window: int) -> list[int]:
    found = list(range(0, length - window + 1, window))
    return found if found[-1] + window == length else [*found, length - window]


def literal_sess(model: nn.Module, layer: nn.Module, label: int, scales: int, drop: float) -> Tensor:
    """The paper's steps, one window after the other."""
    side, found = 32, []
    for number in range(scales):
        scaled_side = round(side * (1 + 2 / 7 * number))
        scaled = F.interpolate(IMAGE, (scaled_side, scaled_side), mode="bilinear")
        for top in starts(scaled_side, side):
            for left in starts(scaled_side, side):
                window = scaled[:, :, top : top + side, left : left + side]
                score = float(model(window).detach().softmax(1)[0, label])
                found.append((score, window, scaled_side, top, left))
    found.sort(key=lambda one: -one[0])
    total, count = torch.zeros(side, side), torch.zeros(side, side)
    for score, window, scaled_side, top, left in found[: len(found) - int(drop * len(found))]:
        heatmap = tensors(GradCAM(model, [layer])(window, [ClassifierOutputTarget(label)]))[0]
        laid = torch.zeros(scaled_side, scaled_side)
        laid[top : top + side, left : left + side] = heatmap
        laid = F.interpolate(laid[None, None], (side, side), mode="bilinear")[0, 0]
        total += score * laid * (laid > 1e-4)
        count += laid > 1e-4
    return normalize((total / count.clamp(min=1))[None])[0]


@pytest.mark.parametrize("drop", [0.0, 0.7])
def test_the_map_equals_a_step_by_step_computation(drop: float) -> None:
    model = TinyCNN()
    cam = SESS(model, [model.conv2], scales=5, pre_filter=drop, smooth=False)
    found = tensors(cam(IMAGE, [[ClassifierOutputTarget(1), ClassifierOutputTarget(0)]]))[0]
    for heatmap, label in zip(found, (1, 0), strict=True):
        expected = literal_sess(model, model.conv2, label, 5, drop)
        torch.testing.assert_close(heatmap, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_the_same_as_grad_cam(pool: Any) -> None:
    peers = pytest.importorskip("pytorch_grad_cam.sess", reason="grad-cam is not installed")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget

    model = TinyCNN()
    peer = peers.SESS(model, [model.conv2], num_scales=4, pre_filter_ratio=0.5, pool=pool, smooth=False)
    expected = torch.as_tensor(peer(IMAGE, [PeerTarget(2)]))
    peer.base_cam.activations_and_grads.release()
    cam = SESS(model, [model.conv2], scales=4, pre_filter=0.5, pool=pool, smooth=False, theta=0.0)
    torch.testing.assert_close(tensors(cam(IMAGE, [ClassifierOutputTarget(2)])), expected, atol=2e-3, rtol=0)


def test_one_scale_is_the_base_method() -> None:
    model = TinyCNN()
    cam = SESS(model, [model.conv2], scales=1, base_method=HiResCAM, smooth=False, theta=0.0)
    expected = tensors(HiResCAM(model, [model.conv2])(IMAGE, [ClassifierOutputTarget(1)]))
    torch.testing.assert_close(tensors(cam(IMAGE, [ClassifierOutputTarget(1)])), expected, atol=1e-5, rtol=0)


def test_detectors_use_a_position_preserving_method() -> None:
    from tests.zoo import example

    assert type(SESS(TinyCNN()).base) is GradCAM
    assert type(SESS(example("own_detector").adapter).base) is ODAM


def test_windows_cover_every_scale_once() -> None:
    windows = list(sliding_windows((20, 30), 4, 0.5))
    assert [window.scaled_hw for window in windows] == [(20, 30)] + [(30, 45)] * 4 + [(40, 60)] * 4 + [(50, 75)] * 9
    for scaled_hw in {window.scaled_hw for window in windows}:
        covered = torch.zeros(scaled_hw)
        for window in windows:
            if window.scaled_hw == scaled_hw:
                part = window.crop(covered[None, None])
                assert part.shape[-2:] == (20, 30)
                part += 1
        assert covered.min() == 1
    assert len(list(sliding_windows((224, 224), 12, 2 / 7))) == sum(
        math.ceil(1 + 2 / 7 * number) ** 2 for number in range(12)
    )


def test_boxes_and_masks_in_windows() -> None:
    # An image of 40 x 80 pixels lies as 20 x 40 on the input; at twice the size a window begins at x 40, y 0.
    window = Window((40, 80), (40, 0), (20, 40))
    source = Source("proposal", box_xyxy=(50.0, 4.0, 60.0, 10.0))
    moved = window.target(BoxTarget((50, 4, 60, 10), 1, source), (40, 80))
    assert moved == BoxTarget((20, 8, 40, 20), 1)  # x: 2 * 50 - 80, y: 2 * 4
    assert window.target(BoxTarget((30, 4, 60, 10), 1, source), (40, 80)) is None, "a third of the box is cut off"
    assert window.target(BoxTarget((39.5, 4, 60, 24), 1), (40, 80)) is None, "cut at the left and below"
    assert window.target(BoxTarget((39.5, 4, 60, 10), 1), (40, 80)) == BoxTarget((0, 8, 40, 20), 1)
    mask = torch.zeros(40, 80, dtype=torch.bool)
    mask[4:10, 30:60] = True
    seen = window.target(MaskTarget(2, mask), (40, 80)).mask
    expected = torch.zeros(40, 80, dtype=torch.bool)
    expected[8:20, 0:40] = True
    assert torch.equal(seen, expected)
    assert window.target(MaskTarget(2, mask.flip(1)), (40, 80)).mask.any()
    far = torch.zeros(40, 80, dtype=torch.bool)
    far[30:, :10] = True
    assert window.target(MaskTarget(2, far), (40, 80)) is None
    whole = Window((20, 40), (0, 0), (20, 40))
    assert whole.target(BoxTarget((50, 4, 60, 10), 1, source), (40, 80)).source == source
    with pytest.raises(TypeError, match="cannot map SemanticSegmentationTarget into a window of the image"):
        window.target(SemanticSegmentationTarget(0, torch.ones(4, 4)), (40, 80))


class Blobs(nn.Module):
    """Scores every cell of 8 x 8 pixels by how red it is."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 8, stride=8, bias=False)
        self.head = nn.Conv2d(2, 2, 1, bias=False)
        with torch.no_grad():
            self.features.weight.zero_()
            self.features.weight[0, 0] = 1 / 64
            self.features.weight[1, 1] = 1 / 64
            self.head.weight.zero_()
            self.head.weight[0, 0] = self.head.weight[1, 1] = 4

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def red_square(size: tuple[int, int], top: int, left: int) -> Tensor:
    image = torch.zeros(3, *size)
    image[0, top : top + 8, left : left + 8] = 1.0
    image[1, -8:, -8:] = 1.0
    return image


def test_a_box_is_explained_in_the_windows_that_contain_it() -> None:
    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = torch.meshgrid(torch.arange(raw.shape[2]), torch.arange(raw.shape[3]), indexing="ij")
        corners = torch.stack([columns, rows], -1).reshape(1, -1, 2) * 8.0
        return torch.cat([corners, corners + 8], -1).expand(len(raw), -1, -1), (raw - 2).sigmoid().flatten(2).mT

    model = Blobs().eval()
    adapter = detector(model, decode, image_size=64, target_layers="features", score_threshold=0.6)
    image = red_square((64, 64), 16, 8)
    found = adapter.predict(image)[0]
    red = found.filter(labels=[0])
    assert red.boxes_xyxy.tolist() == [[8, 16, 16, 24]]
    result = SESS(adapter, base_method=HiResCAM, scales=3, step=0.5, pre_filter=0.0).explain(image, [red])[0]
    torch.testing.assert_close(result.scores, red.scores, atol=1e-5, rtol=0)
    heatmap = torch.as_tensor(result.heatmaps)[0]
    assert heatmap[16:24, 8:16].mean() > 0.5 and heatmap[:, 40:].max() < 0.05
    assert result.sampling is not None and result.sampling.passes == 1 + 4 + 4


def test_a_region_is_explained_in_the_windows_that_contain_it() -> None:
    model = Blobs().eval()
    adapter = segmenter(model, target_layers="features", image_size=64, mean=(0, 0, 0), std=(1, 1, 1))
    image = red_square((48, 64), 32, 16)
    mask = torch.zeros(48, 64, dtype=torch.bool)
    mask[32:40, 16:24] = True
    heatmap = tensors(SESS(adapter, base_method=HiResCAM, scales=3, pre_filter=0.0)(image, [MaskTarget(0, mask)]))[0][0]
    assert heatmap[mask].mean() > 0.5 and heatmap[:16].max() < 0.1 and heatmap[:, 44:].max() < 0.1


def test_scores_of_windows() -> None:
    logits = torch.tensor([1.0, 3.0, 0.5])
    adapter = adapt(TinyCNN())
    expected = float(logits.softmax(0)[1])
    assert window_score(adapter, ClassifierOutputTarget(1), logits) == pytest.approx(expected)
    assert window_score(adapter, lambda output: output[0] - 2, logits) == pytest.approx(1 / (1 + math.e))
    assert window_score(adapter, lambda output: output[1] * -1000, logits) >= 0


def test_wrong_arguments_are_refused() -> None:
    model = TinyCNN()
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"scales": 0}, "at least 1 scale"),
        ({"step": 0.0}, "step above 0"),
        ({"pre_filter": 1.0}, "from 0 to below 1"),
        ({"theta": -0.1}, "from 0 to below 1"),
        ({"pool": "sum"}, "pool to be one of mean, max"),
    )
    for options, words in cases:
        with pytest.raises(ValueError, match=words):
            SESS(model, **options)
