"""Mask targets against slow loops over pixels, and detections of a segmentation network against its output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import GradCAM, HiResCAM
from detcam.adapters import segmenter
from detcam.geometry import Geometry
from detcam.segmenter_output import SegmenterOutput
from detcam.targets import MaskErrorTarget, MaskTarget, SemanticSegmentationTarget
from tests.helpers import tensors

pytestmark = pytest.mark.filterwarnings("ignore::detcam.ReachWarning")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


class TinySegmenter(nn.Module):
    """Logits at half the input's resolution, after a layer at a quarter of it."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4, padding=2), nn.Tanh())
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.classifier = nn.Conv2d(6, channels, 3, padding=1)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.up(self.features(x)))


def make_image(height: int = 20, width: int = 28) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(2))


REGIONS = {"blob": (slice(3, 11), slice(5, 19)), "pixel": (slice(13, 14), slice(21, 22)), "whole": None}
SIZES: dict[str, dict[str, Any]] = {
    "own size, padded": {"multiple": 16},
    "enlarged, padded": {"image_size": (39, 51), "multiple": 8},
    "reduced": {"image_size": (12, 16)},
}


def region(name: str) -> Tensor | None:
    where = REGIONS[name]
    if where is None:
        return None
    mask = torch.zeros(20, 28, dtype=torch.bool)
    mask[where] = True
    mask[0, 0] = name == "blob"  # more than one rectangle
    return mask


def own_input(image: Tensor, image_size: tuple[int, int] | None = None, multiple: int = 1) -> Tensor:
    """Resize, normalize, pad; written down again."""
    size = image_size or (image.shape[1], image.shape[2])
    if size != tuple(image.shape[1:]):
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    normalized = [(image[c] - MEAN[c]) / STD[c] for c in range(3)]
    pad = [-size[1] % multiple, -size[0] % multiple]
    return F.pad(torch.stack(normalized)[None], (0, pad[0], 0, pad[1])).double()


def literal(logits: Tensor, mask: Tensor | None, scale_hw: tuple[float, float], canvas_hw: tuple[int, int]) -> Tensor:
    """Mean over the region's pixels; each pixel's value is the mean over the cells under it, by area."""
    image_hw = (20, 28)
    total, area = logits.new_zeros(()), 0.0
    for y in range(image_hw[0]):
        for x in range(image_hw[1]):
            if mask is not None and not mask[y, x]:
                continue
            rows = [v * scale_hw[0] * logits.shape[0] / canvas_hw[0] for v in (y, y + 1)]
            columns = [v * scale_hw[1] * logits.shape[1] / canvas_hw[1] for v in (x, x + 1)]
            for i in range(int(rows[0]), min(int(np.ceil(rows[1] - 1e-9)), logits.shape[0])):
                for j in range(int(columns[0]), min(int(np.ceil(columns[1] - 1e-9)), logits.shape[1])):
                    part = (min(i + 1, rows[1]) - max(i, rows[0])) * (min(j + 1, columns[1]) - max(j, columns[0]))
                    total = total + part * logits[i, j]
                    area += part
    return total / area


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("where", REGIONS)
@pytest.mark.parametrize(("channels", "label", "against"), [(3, 2, None), (3, 0, 1), (1, 1, None), (1, 0, None)])
def test_value_and_gradient_equal_a_loop_over_pixels(
    size: str, where: str, channels: int, label: int, against: int | None
) -> None:
    model, image, options = TinySegmenter(channels), make_image(), SIZES[size]
    adapter = segmenter(model, mean=MEAN, std=STD, target_layers="features", **options)
    target = MaskTarget(label, region(where), against=against)
    result = HiResCAM(adapter).explain(image, [[target]])[0]

    inputs = own_input(image, **options)
    features = model.features(inputs).detach().requires_grad_(True)
    logits = model.classifier(model.up(features))[0]
    signed = {0: -logits[0], 1: logits[0]} if channels == 1 else dict(enumerate(logits))
    chosen = signed[label] - signed[against] if against is not None else signed[label]
    resized = options.get("image_size", (20, 28))
    scale = (resized[0] / 20, resized[1] / 28)
    value = literal(chosen, region(where), scale, (inputs.shape[2], inputs.shape[3]))
    (gradient,) = torch.autograd.grad(value, features)
    assert float(result.scores[0]) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    assert gradient.abs().max() > 1e-6
    torch.testing.assert_close(
        result.saliency[0][0].double(), (gradient * features.detach())[0].sum(0), rtol=1e-6, atol=1e-9
    )


def test_the_whole_image_excludes_padding() -> None:
    geometry = Geometry((3, 5), (4, 8))
    logits = torch.full((2, 4, 8), 1e6)
    logits[:, :3, :5] = torch.arange(30.0).reshape(2, 3, 5)
    target = MaskTarget(1)
    assert float(target(SegmenterOutput(logits, geometry))) == pytest.approx(22.0)


def test_half_precision_neither_overflows_nor_vanishes() -> None:
    logits = torch.full((2, 256, 320), 300.0, dtype=torch.float16)
    geometry = Geometry.identity((256, 320))
    assert float(MaskTarget(0)(SegmenterOutput(logits, geometry))) == pytest.approx(300)
    pixel = torch.zeros(256, 320, dtype=torch.bool)
    pixel[100, 200] = True
    coarse = SegmenterOutput(logits[:, ::32, ::32], geometry)
    assert float(MaskTarget(0, pixel)(coarse)) == pytest.approx(300)


def test_mirrored_image_uses_the_mirrored_mask() -> None:
    image = torch.zeros(3, 16, 24)
    image[0, 4, 6] = image[0, 4, 17] = 1  # two equal spots, the mask on one
    mask = np.zeros((16, 24), bool)
    mask[4, 6] = True
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.abs()
    adapter = segmenter(model, mean=(0, 0, 0), std=(1, 1, 1), multiple=16, target_layers="0")
    heatmap = tensors(HiResCAM(adapter)(image, [MaskTarget(0, mask)], aug_smooth=True))[0][0]
    assert torch.nonzero(heatmap > 1e-3).tolist() == [[4, 6]]
    flipped = MaskTarget(0, mask, against=1).hflip(24)
    assert torch.nonzero(flipped.mask).tolist() == [[4, 17]] and flipped.against == 1


def test_the_target_copies_its_mask_and_has_its_box() -> None:
    mask = np.zeros((8, 9), np.uint8)
    mask[2:4, 5:9] = 255
    target = MaskTarget(1, mask, against=2)
    mask[:] = 0
    assert int(target.mask.sum()) == 8 and target.mask.dtype == torch.bool
    assert target.box_xyxy == (5.0, 2.0, 9.0, 4.0)
    assert MaskTarget(1).box_xyxy is None
    assert target.describe({1: "cat", 2: "dog"}) == "cat rather than dog"


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((8, 9), bool), "empty"),
        (np.ones((1, 8, 9), bool), r"\(H, W\)"),
        (np.arange(72).reshape(8, 9), "labels == class"),
        (np.linspace(0, 1, 72).reshape(8, 9), "probabilities > 0.5"),
    ],
)
def test_invalid_masks(mask: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskTarget(1, mask)


def test_errors_state_the_expectation() -> None:
    cam = GradCAM(segmenter(TinySegmenter(), names=["sky", "sea", "land"]))
    with pytest.raises(ValueError, match=r"height and width \(20, 28\); got \(28, 20\)"):
        cam(make_image(), [MaskTarget(1, torch.ones(28, 20))])
    with pytest.raises(ValueError, match="class index from 0 to 2"):
        cam(make_image(), [MaskTarget(3)])
    with pytest.raises(ValueError, match="class index from 0 to 2"):
        cam(make_image(), [MaskTarget(0, against=-1)])
    with pytest.raises(TypeError, match="segmentation network's output; got Tensor"):
        MaskTarget(1)(torch.zeros(3, 4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"channel of the model's output, 0 to 2; got 3"):
        SemanticSegmentationTarget(3, np.ones((4, 4)))(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"output's size \(4, 4\); got \(4, 5\)"):
        SemanticSegmentationTarget(0, np.ones((4, 5)))(torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match=r"class maps \(C, h, w\) for each image; got shape \(3,\)"):
        SemanticSegmentationTarget(0, np.ones((4, 4)))(torch.zeros(3))


def test_semantic_segmentation_target_sums_raw_output_under_the_mask() -> None:
    output = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    mask = np.zeros((4, 6), np.float32)
    mask[1, 2], mask[3, 5] = 1, 0.5
    expected = float(output[2, 1, 2] + 0.5 * output[2, 3, 5])
    wrapped = SegmenterOutput(output, Geometry.identity((4, 6)))
    for seen in (output, wrapped):
        assert float(SemanticSegmentationTarget(2, mask)(seen)) == pytest.approx(expected)
    mirrored = SemanticSegmentationTarget(2, mask).hflip(6)
    assert float(mirrored(output.flip(-1))) == pytest.approx(expected)


def test_exclusive_classes_equal_argmax_and_mean_softmax() -> None:
    logits = 3 * torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(3))
    logits[3] = -50  # never the greatest
    geometry = Geometry((13, 17), (12, 16), (16 / 17, 12 / 13))
    detections = SegmenterOutput(logits, geometry).detections({1: "cat"})
    resized = F.interpolate(logits[None], (13, 17), mode="bilinear")[0]
    labels, probabilities = resized.argmax(0), resized.softmax(0)
    assert sorted(detections.labels.tolist()) == [0, 1, 2] == labels.unique().tolist()
    assert detections.scores.tolist() == sorted(detections.scores.tolist(), reverse=True)
    for row, label in enumerate(detections.labels.tolist()):
        assert torch.equal(detections.masks[row], labels == label)  # type: ignore[index]
        assert float(detections.scores[row]) == pytest.approx(
            float(probabilities[label][labels == label].mean()), abs=1e-6
        )
        ys, xs = np.nonzero((labels == label).numpy())
        assert detections.boxes_xyxy[row].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert detections.source[row].kind == "region"
    without = SegmenterOutput(logits, geometry).detections({}, background=int(detections.labels[0]))
    assert without.labels.tolist() == detections.labels.tolist()[1:]


def test_independent_classes_equal_sigmoid_above_half() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(4))
    logits[1] = -1
    geometry = Geometry.identity((5, 7))
    detections = SegmenterOutput(logits, geometry, multilabel=True).detections({})
    assert sorted(detections.labels.tolist()) == [0, 2]
    for row, label in enumerate(detections.labels.tolist()):
        present = logits[label].sigmoid() > 0.5
        assert torch.equal(detections.masks[row], present)  # type: ignore[index]
        assert float(detections.scores[row]) == pytest.approx(float(logits[label].sigmoid()[present].mean()), abs=1e-6)


def test_one_channel_is_a_foreground() -> None:
    logits = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(5))
    geometry = Geometry.identity((5, 7))
    detections = SegmenterOutput(logits, geometry, binary=True).detections({0: "polyp"}, background=0)
    assert detections.labels.tolist() == [1] and detections.name(0) == "polyp"
    assert torch.equal(detections.masks[0], logits[0] > 0)  # type: ignore[index]
    nothing = SegmenterOutput(-logits.abs() - 0.1, geometry, binary=True).detections({})
    assert len(nothing) == 0 and nothing.masks is not None and nothing.masks.shape == (0, 5, 7)
    assert nothing.boxes_xyxy.shape == (0, 4)


def test_the_error_of_a_mask_counts_wrong_cells_alone() -> None:
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[2:5, 3:6] = True
    target = MaskErrorTarget((2, 1, 6, 5), 1, mask=mask)
    logits = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    total = 0.0
    for row in range(8):
        for column in range(8):  # half a pixel a cell
            on_object = bool(mask[int(1 + (row + 0.5) / 2), int(2 + (column + 0.5) / 2)])
            total += max(0.0, (-1 if on_object else 1) * float(logits[row, column]))
    value = target.mask_value(logits, (2.0, 1.0, 6.0, 5.0))
    assert float(value) == pytest.approx(total / 64, rel=1e-6)
    value.backward()
    assert logits.grad is not None and set((64 * logits.grad).unique().tolist()) == {-1.0, 0.0, 1.0}
    right = torch.where(mask, 1.0, -1.0)
    assert float(target.mask_value(right, (0.0, 0.0, 8.0, 6.0))) == 0
    assert float(target.mask_value(-right, (0.0, 0.0, 8.0, 6.0))) == 1
    outside = target.mask_value(torch.ones(1, 2), (-4.0, 0.0, 20.0, 6.0))  # centers at columns 2 and 14, row 3
    assert float(outside) == 1, "cells beyond the image take its nearest pixel"
    mirrored = target.hflip(8)
    assert mirrored.box_xyxy == (2, 1, 6, 5) and torch.equal(mirrored.mask, mask.flip(-1))
    with pytest.raises(ValueError, match=r"expected a mask of the image's height and width \(6, 9\)"):
        target.check((6, 9), {}, 3)
