"""Stand-ins for packages that are not installed in continuous integration, with outputs of the same form."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES


class Siamese(nn.Module):
    """Two images, one backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.head((self.backbone(after) - self.backbone(before)).abs().mean((2, 3)))


class Bench(nn.Module):
    """As effdet's `DetBenchPredict`: (B, N, 6) corners, score and class from 1, sorted by score."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.fpn = nn.Conv2d(3, 5, 16, 16)
        self.config = SimpleNamespace(image_size=(64, 64))

    def forward(self, images: Tensor) -> Tensor:
        rows = self.model.fpn(images).flatten(2).mT
        scores, labels = rows[..., :2].sigmoid().max(-1)
        order = scores.argsort(1, descending=True)[..., None]
        corner = torch.arange(rows.shape[1]).to(rows)[:, None] % 4 * 12
        boxes = torch.cat([corner, corner, corner + 16, corner + 16], 1).expand(len(rows), -1, -1)
        rows = torch.cat([boxes, scores[..., None], labels[..., None] + 1.0], -1)
        return rows.gather(1, order.expand(-1, -1, 6))


class Yolox(nn.Module):
    """As LibreYOLO's YOLOX: per level (B, 5 + C, h, w), scores after the sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 8, 8)
        self.heads = nn.ModuleList(nn.Conv2d(4, 7, step, step) for step in (1, 2, 4))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.stem(images / 255)
        maps = [head(features) for head in self.heads]
        return [torch.cat([level[:, :4], level[:, 4:].sigmoid()], 1) for level in maps]


class Detr(nn.Module):
    """As DETR: logits and boxes, fractions of the input, of each query."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 7, 16, 3), nn.ReLU(), nn.Conv2d(8, 8, 7, 2, 3), nn.ReLU())
        self.head = nn.Linear(8, 5 * 6)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        queries = self.head(self.backbone(images).square().mean((2, 3))).unflatten(1, (5, 6))
        return {"pred_logits": queries[..., :2], "pred_boxes": (queries[..., 2:] * 0.1 + 0.4).clamp(0.1, 0.9)}


BOXES = np.array([[10.0, 20.0, 60.0, 70.0], [30.0, 30.0, 90.0, 80.0]])


def findings(image: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two boxes, whose scores are the brightness in them."""
    image = np.asarray(image)
    assert image.dtype == np.uint8 and image.ndim == 3
    scores = np.array([image[int(y1) : int(y2), int(x1) : int(x2)].mean() / 255 for x1, y1, x2, y2 in BOXES])
    return BOXES, scores, np.array([0, 1])


def sliced_prediction(image: Any, model: Any, slice_height: int, slice_width: int, verbose: int) -> SimpleNamespace:
    """As `sahi.predict.get_sliced_prediction`."""
    found = [
        SimpleNamespace(
            bbox=SimpleNamespace(to_xyxy=box.tolist),
            score=SimpleNamespace(value=float(score)),
            category=SimpleNamespace(id=int(label)),
        )
        for box, score, label in zip(*findings(image), strict=True)
    ]
    return SimpleNamespace(object_prediction_list=found)


def inference_detector(model: Any, image: Any) -> SimpleNamespace:
    """As `mmdet.apis.inference_detector`."""
    boxes, scores, labels = map(torch.from_numpy, findings(image))
    return SimpleNamespace(pred_instances=SimpleNamespace(bboxes=boxes, scores=scores, labels=labels))


class Instances(SimpleNamespace):
    """As detectron2's `Instances`."""

    def to(self, device: str) -> Instances:
        return self


def predictor(image: Any) -> dict[str, Instances]:
    """As detectron2's `DefaultPredictor`."""
    boxes, scores, labels = map(torch.from_numpy, findings(image))
    return {"instances": Instances(pred_boxes=SimpleNamespace(tensor=boxes), scores=scores, pred_classes=labels)}


def rf_detr(**options: Any) -> SimpleNamespace:
    """As RF-DETR's own package."""
    return SimpleNamespace(model=SimpleNamespace(model=Detr(), resolution=96))


def sliced_model() -> Any:
    """The detector of the demo as a model of SAHI, where it is installed."""
    if importlib.util.find_spec("sahi") is None:
        return SimpleNamespace(category_mapping={"0": "boat", "1": "buoy"})
    from sahi import AutoDetectionModel

    return AutoDetectionModel.from_pretrained(
        model_type="torchvision",
        model=load_demo_detector(),
        confidence_threshold=0.3,
        category_mapping={str(index): name for index, name in enumerate(DEMO_NAMES)},
        device="cpu",
    )


def modules() -> dict[str, ModuleType]:
    """The modules that the page imports, by name; the packages themselves where they are installed."""
    made: dict[str, dict[str, Any]] = {
        "mmdet": {},
        "mmdet.apis": {"inference_detector": inference_detector},
    }
    if importlib.util.find_spec("effdet") is None:
        made["effdet"] = {"create_model": lambda name, **options: Bench()}
    if importlib.util.find_spec("libreyolo") is None:
        made["libreyolo"] = {"LibreYOLOX": lambda path, **options: SimpleNamespace(model=Yolox())}
    if importlib.util.find_spec("sahi") is None:
        made["sahi"], made["sahi.predict"] = {}, {"get_sliced_prediction": sliced_prediction}
    if importlib.util.find_spec("rfdetr") is None:
        made["rfdetr"] = {"RFDETRNano": rf_detr}
    found = {}
    for name, members in made.items():
        found[name] = ModuleType(name)
        vars(found[name]).update(members)
    return found


def names() -> dict[str, Any]:
    """The variables that the page expects."""
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    volumes = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return {
        "classifier": mobilenet_v3_small().eval(),
        "siamese": Siamese().eval(),
        "before": torch.rand(1, 3, 32, 48),
        "after": torch.rand(1, 3, 32, 48),
        "volume_network": volumes.eval(),
        "sliced_model": sliced_model(),
        "mmdet_model": object(),
        "predictor": predictor,
    }
