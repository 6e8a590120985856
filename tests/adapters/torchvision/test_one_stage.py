"""RetinaNet, FCOS and SSD against torchvision's own forward pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from detcam import GradCAM, adapt
from detcam.adapters.windows import cut, reach
from detcam.detections import Source
from detcam.targets import BoxTarget
from tests.adapters.torchvision import contract
from tests.adapters.torchvision.contract import CLASSES, make_images

SMALL: dict[str, Any] = {"score_thresh": 0.0, "detections_per_img": 8, "topk_candidates": 30}
FPN: dict[str, Any] = {**SMALL, "min_size": 96, "max_size": 160}


class Patches(nn.Module):
    """Two levels of patches that do not overlap, so that a mirrored image gives mirrored maps."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, channels, 8, 8), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 2, 2), nn.Tanh())
        self.out_channels: Any = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.first(x)
        return OrderedDict([("0", fine), ("1", self.second(fine))])


class Centered(AnchorGenerator):
    """Anchors at the middle of the cells; torchvision puts them at the upper left corner."""

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        found: list[Tensor] = super().grid_anchors(grid_sizes, strides)
        return [anchors + torch.stack([x, y, x, y]) / 2 for anchors, (y, x) in zip(found, strides, strict=True)]


def anchors(ratios: tuple[float, ...] = (0.5, 1.0, 2.0), kind: type[AnchorGenerator] = AnchorGenerator) -> Any:
    return kind(((16.0,), (32.0,)), (ratios,) * 2)


def small_retinanet(**options: Any) -> Any:
    arguments = {"anchor_generator": anchors(), "min_size": 96, "max_size": 160, **SMALL, **options}
    return RetinaNet(Patches(), CLASSES, **arguments)


def small_fcos(**options: Any) -> Any:
    arguments = {"anchor_generator": anchors((1.0,)), "min_size": 96, "max_size": 160, **SMALL, **options}
    return FCOS(Patches(32), CLASSES, **arguments)


def small_ssd() -> Any:
    backbone = Patches()
    backbone.out_channels = [8, 8]
    return SSD(backbone, DefaultBoxGenerator([[2], [2, 3]]), (96, 128), CLASSES, **SMALL)


FAMILIES: dict[str, Callable[[], Any]] = {
    "small_retinanet": small_retinanet,
    "small_fcos": small_fcos,
    "small_ssd": small_ssd,
    "retinanet_resnet50_fpn": lambda: contract.reference("retinanet_resnet50_fpn", **FPN),
    "retinanet_resnet50_fpn_v2": lambda: contract.reference("retinanet_resnet50_fpn_v2", **FPN),
    "fcos_resnet50_fpn": lambda: contract.reference("fcos_resnet50_fpn", **FPN),
    "ssdlite320_mobilenet_v3_large": lambda: contract.reference("ssdlite320_mobilenet_v3_large", **SMALL),
    "ssd300_vgg16": lambda: contract.reference("ssd300_vgg16", **SMALL),
}
SMALL_ONES = ["small_retinanet", "small_fcos", "small_ssd"]


def output_layers(model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """The last layers of the classification and of the regression head."""
    what, where = model.head.classification_head, model.head.regression_head
    if isinstance(model, SSD):
        last = [
            [part if isinstance(part, nn.Conv2d) else part[-1] for part in head.module_list] for head in (what, where)
        ]
        return last[0], last[1]
    return [what.cls_logits], [where.bbox_reg]


def build(family: str) -> Any:
    """A seeded model whose scores and boxes differ from anchor to anchor."""
    torch.manual_seed(1)
    model = FAMILIES[family]().eval()
    model = model if family == "ssd300_vgg16" else model.double()  # VGG is too slow in double precision
    what, where = output_layers(model)
    contract.spread(model, what, 1.0, -1.0)
    contract.spread(model, where, 0.3, 1.5 if isinstance(model, FCOS) else 0.0)
    if isinstance(model, FCOS):
        contract.spread(model, [model.head.regression_head.bbox_ctrness], 1.0)
    return model


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family != "ssd300_vgg16"])
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def everything(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Clipped boxes (N, 4) in image pixels and reported scores (N, C) of all anchors, by the plain formulas."""
    with torch.no_grad():
        ready, _ = model.transform([image])
        features = list(model.backbone(ready.tensors).values())
        predictions = {name: value[0] for name, value in model.head(features).items()}
        anchor_boxes = model.anchor_generator(ready, features)[0]
    scores = predictions["cls_logits"].softmax(-1) if isinstance(model, SSD) else predictions["cls_logits"].sigmoid()
    if isinstance(model, FCOS):
        scores = (scores * predictions["bbox_ctrness"].sigmoid()).sqrt()
        boxes = model.box_coder.decode(predictions["bbox_regression"], anchor_boxes)
    else:
        boxes = model.box_coder.decode_single(predictions["bbox_regression"], anchor_boxes)
    height, width = ready.image_sizes[0]
    limits = torch.tensor([width, height, width, height])
    scale = torch.tensor([image.shape[-1] / width, image.shape[-2] / height] * 2)
    return torch.minimum(boxes.clamp(min=0), limits) * scale, scores


def test_detections_are_the_models_own_and_stay_pinned(model: Any) -> None:
    contract.check_detections(model)


def test_gradients_are_those_of_the_whole_model(model: Any) -> None:
    contract.check_gradients(model)


@pytest.mark.parametrize("model", SMALL_ONES, indirect=True, scope="module")
def test_second_derivatives_are_exact_too(model: Any) -> None:
    contract.check_second_derivative(model)


def test_against_is_a_difference_of_scores(model: Any) -> None:
    contract.check_against(model, lambda image: everything(model, image)[1])


def test_no_detections(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "score_thresh", 2.0)
    contract.check_nothing_found(model)


def test_box_without_source_uses_the_best_candidate(model: Any) -> None:
    image = make_images()[1]
    boxes, scores = everything(model, image)
    targets, wanted = [], []
    for box, label in (((20.0, 10.0, 60.0, 60.0), 1), ((0.0, 0.0, 100.0, 128.0), 2), ((70.0, 90.0, 99.0, 120.0), 1)):
        fits = [
            contract.iou(box, anchor_box) * score
            for anchor_box, score in zip(boxes.tolist(), scores[:, label].tolist(), strict=True)
        ]
        best = max(range(len(fits)), key=fits.__getitem__)
        targets.append(BoxTarget(box, label))
        wanted.append(float(scores[best, label]))
    values, gradients = contract.ask(adapt(model), image, targets)
    assert values == pytest.approx(wanted, abs=1e-4)
    assert all(sum(bool(level.any()) for level in found) == 1 for found in gradients)


def test_reference_ssd() -> None:
    """In single precision, and once, because VGG is slow."""
    model = build("ssd300_vgg16")
    image = make_images()[0].float()
    adapter = adapt(model)
    found = adapter.predict(image)[0]
    literal = contract.Literal(model, image)
    torch.testing.assert_close(found.boxes_xyxy, literal.found["boxes"].detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.scores, literal.found["scores"].detach(), atol=1e-4, rtol=0)
    assert torch.equal(found.labels, literal.found["labels"])
    values, gradients = contract.ask(adapter, image, adapter.targets_of(found))
    assert values == pytest.approx(found.scores.tolist(), abs=1e-4)
    assert contract.relative_error(gradients[0], literal.gradients(literal.found["scores"][0])) < 1e-4


@pytest.mark.parametrize("model", ["small_fcos", "fcos_resnet50_fpn"], indirect=True, scope="module")
def test_objectness_is_the_centerness(model: Any) -> None:
    image = make_images()[0]
    adapter = adapt(model)
    found = adapter.predict(image)[0]
    literal = contract.Literal(model, image, [model.head])
    predictions = literal.seen[model.head]
    centerness = predictions["bbox_ctrness"][0, :, 0].sigmoid()
    scores = (predictions["cls_logits"][0].sigmoid() * centerness[:, None]).sqrt().detach()
    targets, rows = [], []
    for box, label, score, source in zip(found.boxes_xyxy, found.labels, found.scores, found.source, strict=True):
        targets.append(BoxTarget(tuple(box), int(label), source, "objectness"))
        rows.append(int((scores[:, label] - score).abs().argmin()))
    values, gradients = contract.ask(adapter, image, targets)
    assert values == pytest.approx(centerness[rows].tolist(), abs=1e-4)
    assert contract.relative_error(gradients[0], literal.gradients(centerness[rows[0]])) < 1e-4


def test_families_without_objectness_raise() -> None:
    model = build("small_retinanet")
    with pytest.raises(ValueError, match="no objectness"):
        contract.ask(adapt(model), make_images()[0], [BoxTarget((10, 10, 50, 50), 1, quantity="objectness")])


@pytest.mark.parametrize("model", SMALL_ONES, indirect=True, scope="module")
def test_target_layer_inside_the_head(model: Any) -> None:
    """Same scores; and the gradient at the last convolution's input, seen from the outside."""
    image = make_images()[0]
    where = "head.classification_head.module_list" if isinstance(model, SSD) else "head.classification_head.conv"
    layers = [f"{where}.{level}" for level in range(2)] if isinstance(model, SSD) else [where]
    plain = adapt(model)
    found = plain.predict(image)[0]
    adapter = adapt(model, target_layers=layers)
    values, gradients = contract.ask(adapter, image, adapter.targets_of(found))
    assert values == pytest.approx(found.scores.tolist(), abs=1e-4)
    for source, levels in zip(found.source, gradients, strict=True):
        assert [bool(level.any()) for level in levels] == [level == source.level for level in range(2)]


@pytest.mark.parametrize("family", SMALL_ONES)
def test_mirrored_source_gives_the_mirrored_detection(family: str) -> None:
    """With symmetric kernels and centered anchors a network commutes with mirroring, and so must the pinned anchor."""
    torch.manual_seed(1)
    options: dict[str, Any] = {"small_retinanet": {"anchor_generator": anchors(kind=Centered)}}
    options["small_fcos"] = {"anchor_generator": anchors((1.0,), kind=Centered)}
    build_one = {"small_retinanet": small_retinanet, "small_fcos": small_fcos, "small_ssd": small_ssd}[family]
    model = build_one(**options.get(family, {})).eval().double()
    what, where = output_layers(model)
    contract.spread(model, what, 1.0, -1.0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    for layer in where:  # a mirrored offset changes its sign, so boxes stay at their anchors
        layer.weight.data.zero_()
        layer.bias.data.fill_(1.0 if family == "small_fcos" else 0.0)
    image = make_images()[0]
    adapter = adapt(model)
    found, other = adapter.predict([image, image.flip(-1)])
    targets = [target.hflip(128) for target in adapter.targets_of(found)]
    values, _ = contract.ask(adapter, image.flip(-1), targets)
    assert values == pytest.approx(found.scores.tolist(), abs=1e-6)
    assert other.scores.tolist() == pytest.approx(found.scores.tolist(), abs=1e-6)
    assert GradCAM(adapter)(image, found, aug_smooth=True)[0].shape == (len(found), 96, 128)


def test_sources_of_another_model_are_refused() -> None:
    adapter = adapt(build("small_retinanet"))
    for source in (Source("anchor", 7, 0, (10.0, 10.0)), Source("anchor", 0, 5, (10.0, 10.0))):
        with pytest.raises(ValueError, match="another model"):
            contract.ask(adapter, make_images()[0], [BoxTarget((10, 10, 50, 50), 1, source)])
    with pytest.raises(ValueError, match="no center"):
        contract.ask(adapter, make_images()[0], [BoxTarget((10, 10, 50, 50), 1, Source("proposal"))])


@pytest.mark.parametrize("family", SMALL_ONES)
def test_unknown_heads_are_named(family: str) -> None:
    model = build(family)
    model.head = nn.Identity()
    with pytest.raises(TypeError, match="Identity"):
        adapt(model)


def test_reference_names_are_cocos() -> None:
    assert adapt(detection.fcos_resnet50_fpn(weights=None, weights_backbone=None)).names[18] == "dog"
    assert adapt(build("small_fcos")).names == {}


@pytest.mark.parametrize("size", [(5, 7), (9, 3), (12, 12)])
def test_a_window_equals_the_whole_map(size: tuple[int, int]) -> None:
    """Every cell, borders and corners included, where the head's own zero padding is felt."""
    head = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 5, padding=4, dilation=2)).double()
    radius = reach(head)
    assert radius == 5
    feature = torch.randn(1, 2, *size, dtype=torch.float64)
    whole = head(feature).flatten(2)[0]
    cells = torch.arange(size[0] * size[1])
    windows, inside = cut(feature, cells, radius)
    predictions = head(torch.cat(windows)).flatten(2)
    torch.testing.assert_close(predictions[cells, :, inside].T, whole)


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(1, 4),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(4, track_running_stats=False),
        Patches(),
    ],
)
def test_global_layers_get_the_whole_map(layer: nn.Module) -> None:
    assert reach(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), layer)) is None
