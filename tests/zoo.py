"""One small, seeded model per adapter, with images in which it finds something, and the methods that explain it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam.adapters import adapt, detector
from detcam.adapters.base import Adapter
from detcam.cam import BaseCAM
from detcam.methods import METHODS
from detcam.methods.common.attention_base import AttentionCAM
from detcam.testing.methods import TargetsPerImage, default_targets
from detcam.testing.models import random_images
from tests.helpers import TinyCNN


@dataclass(frozen=True)
class Example:
    """A model, its adapter and two images of different sizes."""

    model: nn.Module
    adapter: Adapter
    images: list[Tensor]


def wake(model: nn.Module, images: Any) -> nn.Module:
    """Deep random networks put out next to nothing; normalized by what they see, they answer to their input."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(images)
    for norm, before in zip(norms, momentum, strict=True):
        norm.eval()
        norm.momentum = before
    return model


Maker = Callable[[], tuple[nn.Module, Adapter]]

ZOO: dict[str, Maker] = {}
TASKS: dict[str, str] = {}
"""What each model of the zoo does, known without building it."""

TRANSFORMERS = frozenset({"own_detr", "vit", "hf_detr"})
"""Models with attention layers."""

QUICK: dict[str, dict[str, Any]] = {
    "scorecam": {"top_channels": 4},
    "ablationcam": {"ratio_channels_to_ablate": 0.5},
    "rise": {"passes": 10},
    "drise": {"passes": 10},
    "occlusion": {"grid": 4},
    "vps": {"regions": 3},
    "phasewin": {"regions": 3},
    "vxcode": {"grid": 2},
    "sess": {"scales": 2},
}
"""Settings with which methods of many passes take few."""


def register(task: str) -> Callable[[Maker], Maker]:
    def add(maker: Maker) -> Maker:
        ZOO[maker.__name__], TASKS[maker.__name__] = maker, task
        return maker

    return add


@functools.cache
def shared(name: str) -> Example:
    """An example that is built once per process, for tests that check that it stays as it is.

    Skips the test where its library is missing.
    """
    torch.manual_seed(0)
    model, adapter = ZOO[name]()
    return Example(model, adapter, random_images())


@functools.cache
def shared_targets(name: str) -> TargetsPerImage:
    """The default targets of a shared example's images."""
    case = shared(name)
    return default_targets(case.adapter, case.images)


def example(name: str) -> Example:
    """A copy of an example that a test may change."""
    return copy.deepcopy(shared(name))


def applies(method: str, model: str) -> bool:
    """Whether a method explains a model of the zoo."""
    cls = METHODS[method]
    return TASKS[model] in cls.tasks and (model in TRANSFORMERS or not issubclass(cls, AttentionCAM))


def pairs(models: Iterable[str]) -> list[tuple[str, str]]:
    """(model, method) of every method that explains each of the models."""
    return [(model, method) for model in models for method in METHODS if applies(method, model)]


def quick(method: str, adapter: Adapter) -> BaseCAM:
    """A method on an adapter, with few passes."""
    return METHODS[method](adapter, **QUICK.get(method, {}))


class Backbone(nn.Module):
    """Two strides and a two-level pyramid."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 4, 1), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.down = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.further = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.down(self.stem(x))
        return {"0": first, "1": self.further(first)}


SIZES: dict[str, Any] = {"min_size": 96, "max_size": 160}


def anchors(per_cell: int) -> Any:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(((24,), (48,)), ((0.5, 1.0, 2.0)[:per_cell],) * 2)


@register("detection")
def faster_rcnn() -> tuple[nn.Module, Adapter]:
    from torchvision.models.detection import FasterRCNN
    from torchvision.ops import MultiScaleRoIAlign

    model = FasterRCNN(
        Backbone(),
        num_classes=4,
        rpn_anchor_generator=anchors(3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2),
        box_score_thresh=0.0,
        box_detections_per_img=3,
        **SIZES,
    ).eval()
    return model, adapt(model)


@register("detection")
def mask_rcnn() -> tuple[nn.Module, Adapter]:
    from torchvision.models.detection import MaskRCNN
    from torchvision.ops import MultiScaleRoIAlign

    model = MaskRCNN(
        Backbone(),
        num_classes=3,
        rpn_anchor_generator=anchors(3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1"], 6, 2),
        box_score_thresh=0.0,
        box_detections_per_img=2,
        **SIZES,
    ).eval()
    return model, adapt(model)


@register("detection")
def retinanet() -> tuple[nn.Module, Adapter]:
    from torchvision.models.detection import RetinaNet

    model = RetinaNet(
        Backbone(), 4, anchor_generator=anchors(3), score_thresh=0.0, detections_per_img=3, **SIZES
    ).eval()
    return model, adapt(model)


@register("detection")
def fcos() -> tuple[nn.Module, Adapter]:
    from torchvision.models.detection import FCOS

    model = FCOS(Backbone(), 4, anchor_generator=anchors(1), score_thresh=0.0, detections_per_img=3, **SIZES).eval()
    return model, adapt(model)


@register("detection")
def ssdlite() -> tuple[nn.Module, Adapter]:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4, score_thresh=0.0, detections_per_img=3
    ).eval()
    model.transform.fixed_size = (96, 96)  # a tenth of the pixels, for speed; anchors follow the input's size
    return wake(model, [torch.rand(3, 96, 128)] * 2), adapt(model)


def calm(model: nn.Module) -> nn.Module:
    """Random YOLO heads saturate: every score is 1 without gradient. Smaller last layers keep scores near 0.5."""
    head: Any = model.model[-1]  # type: ignore[index]
    for name in ("cv3", "one2one_cv3"):
        for branch in getattr(head, name, ()):
            branch[-1].weight.data *= 0.02
            branch[-1].bias.data.zero_()
    return model


@register("detection")
def yolo() -> tuple[nn.Module, Adapter]:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="ultralytics is not installed")
    model = calm(tasks.DetectionModel("yolo11n.yaml", nc=3, verbose=False).eval())
    return wake(model, torch.rand(16, 3, 64, 64)), adapt(model, image_size=64, conf=0.0, max_det=3)


@register("detection")
def yolo_segment() -> tuple[nn.Module, Adapter]:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="ultralytics is not installed")
    model = calm(tasks.SegmentationModel("yolov8n-seg.yaml", nc=3, verbose=False).eval())
    return wake(model, torch.rand(16, 3, 64, 64)), adapt(model, image_size=64, conf=0.0, max_det=2)


@register("detection")
def yolo_end_to_end() -> tuple[nn.Module, Adapter]:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="ultralytics is not installed")
    model = calm(tasks.DetectionModel("yolov10n.yaml", nc=3, verbose=False).eval())
    return wake(model, torch.rand(16, 3, 64, 64)), adapt(model, image_size=64, conf=0.0, max_det=2)


@register("segmentation")
def smp_unet() -> tuple[nn.Module, Adapter]:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    model = smp.Unet("resnet18", encoder_depth=3, encoder_weights=None, decoder_channels=(32, 16, 8), classes=3).eval()
    del model.encoder.layer3, model.encoder.layer4  # unused at this depth, and nine tenths of the weights
    return model, adapt(model, image_size=32)


@register("segmentation")
def lraspp() -> tuple[nn.Module, Adapter]:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    return model, adapt(model, image_size=64)


@register("classification")
def classifier() -> tuple[nn.Module, Adapter]:
    model = TinyCNN()
    return model, adapt(model, image_size=64)


@register("embedding")
def embedding() -> tuple[nn.Module, Adapter]:
    from detcam.adapters import embedder

    model = TinyCNN()
    return model, embedder(model, image_size=64)


@register("detection")
def own_detector() -> tuple[nn.Module, Adapter]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 3, 4, 1)
    ).eval()

    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        cells = torch.stack(torch.meshgrid(torch.arange(raw.shape[3]), torch.arange(raw.shape[2]), indexing="xy"), -1)
        corners = cells.reshape(1, -1, 2) * 16.0
        return torch.cat([corners, corners + 16], -1).expand(len(raw), -1, -1), raw.sigmoid().flatten(2).mT

    return model, detector(model, decode, image_size=96, max_detections=3, target_layers="0")


@register("segmentation")
def own_segmenter() -> tuple[nn.Module, Adapter]:
    from detcam.adapters import segmenter

    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 3, 3, 2, 1)).eval()
    return model, segmenter(model, image_size=32)


@register("detection")
def own_detr() -> tuple[nn.Module, Adapter]:
    from tests.methods.transformers import tiny_detr

    return tiny_detr()


@register("classification")
def vit() -> tuple[nn.Module, Adapter]:
    from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

    from tests.methods.transformers import loud

    stem = [ConvStemConfig(8, 3, 2)] * 3
    model = loud(VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=5, conv_stem_configs=stem))
    return model, adapt(model, image_size=32)


def transformers_detector(name: str) -> tuple[nn.Module, Adapter]:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.adapters.transformers.detectors import DETECTORS, PROCESSORS, image_processor

    model = DETECTORS[name]()
    processor = image_processor(PROCESSORS.get(name, "RTDetr"))
    return model, adapt(model, processor=processor, score_threshold=0.0, max_detections=3)


@register("detection")
def hf_detr() -> tuple[nn.Module, Adapter]:
    return transformers_detector("detr")


@register("detection")
def hf_rt_detr() -> tuple[nn.Module, Adapter]:
    return transformers_detector("rt_detr")


@register("segmentation")
def hf_segformer() -> tuple[nn.Module, Adapter]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.adapters.transformers.segmenters import segformer

    model = segformer()
    return model, adapt(model, processor=transformers.SegformerImageProcessor(size={"height": 64, "width": 64}))


@register("detection")
def hf_mask2former() -> tuple[nn.Module, Adapter]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.adapters.transformers.segmenters import mask2former

    model = mask2former()
    processor = transformers.Mask2FormerImageProcessor(size={"height": 64, "width": 64})
    return model, adapt(model, processor=processor, score_threshold=0.3)
