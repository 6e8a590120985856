"""Scores of changed images: the protocols against literal versions, and regions of the network's input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from detcam import GradCAM
from detcam.adapters import adapt, detector, segmenter
from detcam.adapters.base import Adapter
from detcam.data.images import load_image
from detcam.demo.model import load_demo_detector
from detcam.geometry import Geometry
from detcam.metrics import CamMultImageConfidenceChange, Deletion, MetricWarning, ROADCombined
from detcam.metrics.metric_input import MetricImage, read_metric_input
from detcam.metrics.scoring import as_probability
from detcam.segmenter_output import SegmenterOutput
from detcam.synthetic.harbor import draw_scene
from detcam.targets import BoxTarget, MaskTarget, SemanticSegmentationTarget
from tests.helpers import Snapshot

SCENE = draw_scene(3)
OTHER = draw_scene(10)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return adapt(load_demo_detector())


def literal(protocol: str, output: Any, plain: Any, target: BoxTarget) -> float:
    """A box's score, detection by detection."""

    def iou(box: Tensor) -> float:
        return float(box_iou(torch.tensor([target.box_xyxy]), box[None].float())[0, 0])

    def vector(where: Any, box: Tensor, label: int, source: Any) -> Tensor:
        return where.candidates([BoxTarget(tuple(box.tolist()), label, source)]).class_scores[0].float()

    if protocol == "pinned":
        return float(output.score([target])[0])
    if protocol in ("matched", "vps"):
        best, score = 0.0, 0.0
        for box, classes in zip(*output.raw_candidates(target.label), strict=True):
            fit = iou(box) * float(classes[target.label])
            if fit > best:
                best, score = fit, float(classes[target.label])
        return best if protocol == "vps" else score
    if protocol == "odam":

        def match(where: Any) -> float:
            found = where.detections()
            rows = zip(found.boxes_xyxy, found.labels.tolist(), found.scores.tolist(), strict=True)
            return max((s for box, label, s in rows if label == target.label and iou(box) > 0.5), default=0.0)

        return match(output) / match(plain)
    found = output.detections()
    own = vector(plain, torch.tensor(target.box_xyxy), target.label, target.source)
    values = [0.0]
    for box, label, source in zip(found.boxes_xyxy, found.labels.tolist(), found.source, strict=True):
        other = vector(output, box, label, source)
        values.append(iou(box) * float(own @ other / (own.norm() * other.norm())))
    return max(values)


@pytest.mark.parametrize("protocol", ["pinned", "matched", "odam", "vps", "drise"])
def test_protocols_match_direct_implementations(protocol: Any, adapter: Adapter) -> None:
    detections = adapter.predict(SCENE.image)[0]
    count = len(detections)
    targets: list[Any] = adapter.targets_of(detections)
    metric_input = read_metric_input(
        adapter, [SCENE.image], [targets], [torch.rand(count, 192, 256)], probability=False
    )
    batch = adapter.prepare([load_image(SCENE.image)])
    dims = torch.tensor([1.0, 0.7, 0.35, 0.0])
    snapshot = Snapshot(adapter.model)

    def dimmed_scores(image: MetricImage) -> Tensor:
        scored = image.scored(protocol, batch_size=5)
        indices = [i for i in range(count) for _ in dims]
        images = (scored.image * dims[:, None, None, None]).repeat(count, 1, 1, 1)
        scores = scored.scores(indices, lambda part: images[part]).view(count, -1)
        return torch.cat([scores, scored.original[:, None]], 1)

    found = metric_input.evaluate(dimmed_scores, len(dims) + 1)
    snapshot.check()
    with torch.no_grad():
        outputs = [
            adapter.outputs(adapter.forward(one), one)[0]
            for one in (type(batch)(batch.inputs * dim, batch.geometries) for dim in dims)
        ]
        wanted = [[literal(protocol, out, outputs[0], target) for out in [*outputs, outputs[0]]] for target in targets]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-4, rtol=0)
    assert float(found.max() - found.min()) > 0.5, "the dimmed images must matter"


def test_odam_protocol_needs_iou_above_half_and_the_class(adapter: Adapter) -> None:
    found = adapter.predict(SCENE.image)[0]
    x1, y1, x2, y2 = found.boxes_xyxy[0].tolist()
    label, wide = int(found.labels[0]), x2 - x1
    targets: list[Any] = [
        BoxTarget((x1 + share * wide, y1, x2 + share * wide, y2), kind)  # IoU (1 - share) / (1 + share)
        for share, kind in ((0.25, label), (0.42, label), (0.25, 3 - label))
    ]
    metric_input = read_metric_input(adapter, [SCENE.image], [targets], [torch.rand(3, 192, 256)])
    assert metric_input.evaluate(lambda image: image.scored("odam").original).tolist() == [1, 0, 0]


def test_an_unmatched_box_has_no_value(adapter: Adapter) -> None:
    nowhere = BoxTarget((2.0, 2.0, 30.0, 20.0), 1)
    with pytest.warns(MetricWarning, match="1 of 1"):
        value = Deletion(protocol="odam", steps=2).measure(
            adapter, [SCENE.image], [[nowhere]], [torch.rand(1, 192, 256)]
        )
    assert value.isnan().all()


def test_images_of_several_sizes_without_detections_and_many_boxes(adapter: Adapter) -> None:
    """Values belong to their own image and target, whatever else is in the call."""
    blank = np.full((100, 140, 3), 90, np.uint8)
    images = [SCENE.image, blank, OTHER.image]
    targets = [adapter.targets_of(found) for found in adapter.predict(images)]
    assert [len(row) > 0 for row in targets] == [True, False, True]
    heatmaps = [torch.rand(len(t), *i.shape[:2]) for t, i in zip(targets, images, strict=True)]
    metric = Deletion(steps=3)
    together = metric.measure(adapter, images, targets, heatmaps)
    apart = [
        metric.measure(adapter, [image], [[target]], [heatmap[None]])
        for image, row, maps in zip(images, targets, heatmaps, strict=True)
        for target, heatmap in zip(row, maps, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=0)
    assert len(metric.measure(adapter, [blank], [[]], [torch.zeros(0, 100, 140)])) == 0


class Corner(nn.Module):
    """One box over the left half of the image; its score is the mean of the input's pixels that are not -1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(x[:, 0] * (x[:, 0] >= 0)).sum((1, 2)), (x[:, 0] == -1).sum((1, 2)).float()], 1)


def corner_adapter() -> Adapter:
    """Images of any size letterboxed into 32 x 32; padding is -1 on the network's input."""

    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        boxes = torch.tensor([[[4.0, 4.0, 20.0, 20.0]]]).expand(len(raw), -1, -1)
        return boxes, (raw[:, :1] / 1024)[:, None]

    return detector(
        Corner().eval(),
        decode,
        image_size=32,
        letterbox=True,
        preprocess=lambda x: torch.where(x == 114 / 255, -1.0, x),
        target_layers=[""],
        score_threshold=0.0,
    )


def test_fractions_exclude_padding() -> None:
    adapter = corner_adapter()
    image = torch.ones(3, 16, 64)  # becomes 8 x 32 pixels of the input
    target = BoxTarget((8.0, 0.0, 40.0, 16.0), 0)
    left = torch.zeros(1, 16, 64)
    left[:, :, :32] = 1
    seen: list[Tensor] = []

    def score_without_salient(image: MetricImage) -> Tensor:
        scored = image.scored()
        black = scored.image * (scored.heatmaps <= 0.5)[:, None]
        seen.extend([scored.heatmaps, scored.inputs(black)])
        return scored.scores([0], lambda part: black[part])

    score = read_metric_input(adapter, [image], [[target]], [left]).evaluate(score_without_salient)
    assert seen[0].shape == (1, 8, 32)
    torch.testing.assert_close(seen[0][0, :, :16], torch.ones(8, 16))
    torch.testing.assert_close(seen[0][0, :, 16:], torch.zeros(8, 16))
    plain = adapter.prepare([image]).inputs
    assert torch.equal(seen[1][:, :, :12], plain[:, :, :12]) and torch.equal(seen[1][:, :, 20:], plain[:, :, 20:])
    assert float(score) == pytest.approx(8 * 16 / 1024)  # half of the image's 8 x 32 pixels is left


def test_heatmaps_are_resized_by_averaging() -> None:
    heatmap = torch.rand(1, 16, 64)
    target = BoxTarget((8.0, 0.0, 40.0, 16.0), 0)
    metric_input = read_metric_input(corner_adapter(), [torch.ones(3, 16, 64)], [[target]], [heatmap])
    scored = MetricImage(heatmap, 0, [0], metric_input).scored()
    torch.testing.assert_close(scored.heatmaps, torch.nn.functional.avg_pool2d(heatmap, 2))


class Rivals(nn.Module):
    """Two boxes that fit the same object: one scores by the brightness of the left half, the other scores 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, :, :16].mean((1, 2)), torch.full((len(x),), 0.5)], 1)


def test_an_undetected_box_keeps_its_unperturbed_candidate() -> None:
    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        boxes = torch.tensor([[[4.0, 4.0, 20.0, 20.0], [5.0, 4.0, 21.0, 20.0]]])
        return boxes.expand(len(raw), -1, -1), raw[..., None]

    adapter = detector(Rivals().eval(), decode, image_size=32, target_layers=[""])
    left = torch.zeros(1, 32, 32)
    left[:, :, :16] = 1
    target = BoxTarget((4.0, 4.0, 21.0, 20.0), 0)
    for protocol, after in (("pinned", 0.0), ("matched", 0.5)):
        metric = CamMultImageConfidenceChange(protocol=protocol)  # type: ignore[arg-type]
        value = metric.measure(adapter, [torch.ones(3, 32, 32)], [[target]], [1 - left])
        assert float(value) == pytest.approx(after - 1, abs=1e-6)


class Halves(nn.Module):
    """A segmenter whose one class is the image's red."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.conv.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("kind", ["exclusive", "multilabel", "binary"])
def test_probability_over_a_region(kind: str) -> None:
    logits = torch.randn((1 if kind == "binary" else 3, 4, 6), generator=torch.Generator().manual_seed(0))
    output = SegmenterOutput(
        logits, Geometry.identity((4, 6)), binary=kind == "binary", multilabel=kind == "multilabel"
    )
    region = torch.rand((4, 6), generator=torch.Generator().manual_seed(1)) < 0.4
    values = []
    for y, x in torch.nonzero(region).tolist():
        pixel = logits[:, y, x].double()
        alone = float(1 / (1 + torch.exp(-pixel[0 if kind == "binary" else 1])))
        values.append(alone if kind != "exclusive" else float(pixel[1].exp() / pixel.exp().sum()))
    found = as_probability(MaskTarget(1, region))(output)
    assert float(found) == pytest.approx(sum(values) / len(values), abs=1e-6)
    whole = MaskTarget(1, region, against=0)
    assert as_probability(whole) is whole


def test_masks() -> None:
    """A mask's evidence is where it is: removing it costs the whole logit, removing the rest nothing."""
    adapter = segmenter(Halves().eval(), image_size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1), target_layers=[""])
    image = torch.zeros(3, 16, 16)
    image[0, 4:12, 4:12] = 1
    region = torch.zeros(16, 16, dtype=torch.bool)
    region[4:12, 4:12] = True
    maps = torch.stack([region.float(), 1 - region.float()])
    found = CamMultImageConfidenceChange()([image], [maps], [[MaskTarget(0, region)] * 2], adapter)
    np.testing.assert_allclose(found, [0.0, -1.0], atol=1e-6)
    sure = CamMultImageConfidenceChange().measure(adapter, [image], [[MaskTarget(0, region)] * 2], [maps])
    drop = 0.5 - 1 / (1 + np.exp(-1))  # softmax of (1, 0), and of (0, 0) without the evidence
    np.testing.assert_allclose(sure, [0.0, drop], atol=1e-6)
    tensor = image[None]
    for target in (SemanticSegmentationTarget(0, region), MaskTarget(0, region)):
        road = ROADCombined([75], noise=0)
        good = road.measure(adapter, tensor, [target], maps[:1]).item()
        bad = road.measure(adapter, tensor, [target], maps[1:]).item()
        assert good > 0 > bad


@pytest.mark.filterwarnings("ignore::detcam.ReachWarning")
def test_targets_come_from_the_explanation_or_from_the_model(adapter: Adapter) -> None:
    explained = GradCAM(adapter).explain([SCENE.image])
    heatmaps, metric = torch.as_tensor(explained[0].heatmaps), Deletion(steps=2)
    wanted = metric.measure(adapter, [SCENE.image], [list(explained[0].targets)], [heatmaps])
    assert len(wanted) == len(adapter.predict(SCENE.image)[0]) > 1
    for targets, maps in ((None, explained), (None, [heatmaps]), (adapter.predict(SCENE.image), [heatmaps.numpy()])):
        torch.testing.assert_close(metric.measure(adapter, [SCENE.image], targets, maps), wanted)
    torch.testing.assert_close(metric.measure(adapter.model, SCENE.image, None, explained), wanted)
    two = GradCAM(adapter).explain([SCENE.image], [list(explained[0].targets[3:5])])
    torch.testing.assert_close(metric.measure(adapter, [SCENE.image], None, two), wanted[3:5])
    with pytest.raises(ValueError, match="predictions; got 1"):
        metric.measure(adapter, [SCENE.image], None, [heatmaps[:1]])


def test_half_precision_models_are_scored() -> None:
    model, heatmap = Halves().eval().to(torch.bfloat16), torch.rand(1, 16, 16)
    image = torch.rand(1, 3, 16, 16)
    region = torch.ones(16, 16, dtype=torch.bool)
    for fill in ("blur", "mean", "linear"):
        target = [SemanticSegmentationTarget(0, region)]
        value = Deletion(steps=3, fill=fill).measure(segmenter(model, target_layers=[""]), image, target, heatmap)
        exact = Deletion(steps=3, fill=fill).measure(
            segmenter(Halves().eval(), target_layers=[""]), image, target, heatmap
        )
        assert float(value) == pytest.approx(float(exact), rel=0.02)
