"""Networks of ultralytics with random weights that find something, and what they say by their own forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import Detections
from detcam.trace import Trace, guarded

pytest.importorskip("ultralytics")

from ultralytics import RTDETR, YOLO
from ultralytics.nn import tasks
from ultralytics.utils.nms import non_max_suppression

CLASSES, SIZE = 3, 160
OPTIONS = {"conf": 0.15, "iou": 0.5, "max_det": 6}
MODELS = {
    "-seg": tasks.SegmentationModel,
    "-obb": tasks.OBBModel,
    "-pose": tasks.PoseModel,
    "-cls": tasks.ClassificationModel,
    "rtdetr": tasks.RTDETRDetectionModel,
}
SUPPRESSING = ["yolov5n", "yolov8n", "yolov9t", "yolo11n", "yolo12n", "yolov8n-seg", "yolo11n-obb", "yolo11n-pose"]
END_TO_END = ["yolov10n", "yolo26n", "yolo26n-seg", "yolo26n-obb", "yolo26n-pose"]
QUERIES = ["yolov8n-rtdetr"]
NAMES = [*SUPPRESSING, *END_TO_END, *QUERIES]


def make_image(seed: int, height: int, width: int) -> Tensor:
    """Smooth noise, 8 bits deep as files are: (3, height, width) in [0, 1]."""
    coarse = torch.rand(1, 3, 12, 14, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    return (smooth * 255).round() / 255


IMAGES = [make_image(0, 120, 150), make_image(1, 150, 100), make_image(2, 120, 150)]


@cache
def network(name: str) -> Any:
    """Random weights, with statistics that make the layers' outputs vary over positions."""
    torch.manual_seed(5)
    kind = next((model for part, model in MODELS.items() if part in name), tasks.DetectionModel)
    shape = {"data_kpt_shape": (5, 3)} if "-pose" in name else {}
    architecture = tasks.yaml_model_load(f"{name}.yaml")
    if name in QUERIES:  # 60 queries and two layers of the decoder, instead of 300 and six
        architecture["head"][-1][-1] = ["nc", 256, 60, 4, 8, 2]
    model = kind(architecture, nc=CLASSES, verbose=False, **shape)
    model.eval()
    head = model.model[-1]
    last = [level[-1] for part in ("cv2", "cv3") for level in getattr(head, part, None) or []]
    last += [level[-1] for part in ("cv2", "cv3") for level in getattr(head, f"one2one_{part}", None) or []]
    for part in (part for name_of, part in head.named_children() if name_of.startswith("one2one")):
        for layer in (layer for layer in part.modules() if isinstance(layer, nn.Conv2d)):
            layer.reset_parameters()  # it starts as a copy of the one-to-many branch
    spread(model, last)
    for layer in getattr(head, "dec_score_head", []):
        layer.bias.data.fill_(-1.0)
    for layer in getattr(head, "dec_bbox_head", []):
        layer.layers[-1].weight.data.normal_(0, 0.05)
    if name in END_TO_END:
        model.end2end = True
    return model


def spread(model: nn.Module, last: Sequence[nn.Module]) -> None:
    """Scale every convolution so that its output varies by 1 on the images; the head's last ones around a mean."""

    def scale(layer: Any, given: Any, output: Tensor) -> Tensor:
        axes = (0, 2, 3) if layer in last and layer.out_channels == CLASSES else (0, 1, 2, 3)
        factor = (1 / output.std(axes, keepdim=True)).reshape(-1, 1, 1, 1)
        layer.weight.data *= factor
        output = output * factor.reshape(1, -1, 1, 1)
        if layer in last:
            shift = (-2.0 if layer.out_channels == CLASSES else 2.0) - output.mean((0, 2, 3))
            layer.bias.data = layer.bias.data * factor.reshape(-1) + shift
            output = output + shift[:, None, None]
        return output

    handles = [layer.register_forward_hook(scale) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            layer.bias.data.zero_()
    with torch.no_grad():
        model(on_gray())
    for handle in handles:
        handle.remove()


def on_gray() -> Tensor:
    """The images in the middle of gray squares."""
    placed = []
    for image in IMAGES:
        x, y = (SIZE - image.shape[2]) // 2, (SIZE - image.shape[1]) // 2
        placed.append(F.pad(image, (x, SIZE - x - image.shape[2], y, SIZE - y - image.shape[1]), value=114 / 255))
    return torch.stack(placed)


def wrapped(name: str) -> Any:
    """The network as a user has it, in a `YOLO` object."""
    wrapper = (RTDETR if "rtdetr" in name else YOLO)(f"{name}.yaml")
    wrapper.model = network(name)
    wrapper.overrides["imgsz"] = SIZE
    return wrapper


def array(image: Tensor) -> np.ndarray:
    """As `YOLO.predict` takes it: (H, W, 3) uint8, BGR."""
    return (image * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]


def options(name: str) -> dict[str, Any]:
    """Thresholds; few boxes of RT-DETR, as each costs a backward pass through its whole decoder."""
    return {**OPTIONS, "max_det": 3} if "rtdetr" in name else OPTIONS


def literal_scalars(name: str, found: Any) -> list[Tensor]:
    """The scores of all detections, in order, read from the decoded output of the model's own forward pass."""
    decoded = found[0][0] if isinstance(found[0], tuple) else found[0]
    if name not in SUPPRESSING:  # rows x1, y1, x2, y2, score, class, best first
        return [row[4] for row in decoded[0] if row[4] > OPTIONS["conf"]][: options(name)["max_det"]]
    kept = non_max_suppression(
        decoded.detach().clone(), OPTIONS["conf"], OPTIONS["iou"], max_det=int(OPTIONS["max_det"]), nc=CLASSES,
        rotated="-obb" in name, return_idxs=True,
    )  # fmt: skip
    scores = decoded[0, 4 : 4 + CLASSES]
    return [scores[:, anchor].max() for anchor in kept[1][0].tolist()]


def literal_run(model: Any, inputs: Tensor, layers: Sequence[nn.Module]) -> tuple[Any, list[Tensor]]:
    """The model's own forward pass, and what the layers put out; the graph starts at the first of them."""
    leaves: list[Tensor] = []

    def hold(module: Any, given: Any, output: Tensor) -> Tensor:
        leaves.append(output if leaves else output.detach().requires_grad_(True))
        return leaves[-1].clone()

    handles = [layer.register_forward_hook(hold) for layer in layers]
    found = model(inputs)
    for handle in handles:
        handle.remove()
    return found, leaves


def gradients(adapter: Any, image: Tensor, targets: Callable[[Detections], Sequence[Any]] | None = None) -> Any:
    """Per target its value and the engine's gradient at each layer."""
    (found,) = adapter.predict([image])
    box_targets = adapter.targets_of(found) if targets is None else list(targets(found))
    with guarded(adapter.model, gradients=True):
        batch = adapter.prepare([image])
        trace = Trace(adapter.target_layers, adapter.layer_names, gradients=True)
        with trace:
            raw = adapter.forward(batch)
        scalars = adapter.score(adapter.outputs(raw, batch), [box_targets])[0]
        return batch.inputs, [
            (scalar.item(), [level for layer in trace.gradients(scalar, retain_graph=True) for level in layer])
            for scalar in scalars
        ]


def assert_same_gradients(fast: Any, scalars: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    assert len(fast) == len(scalars) > 0
    for (value, found), scalar in zip(fast, scalars, strict=True):
        slow = torch.autograd.grad(scalar, leaves, retain_graph=True, allow_unused=True)
        assert value == pytest.approx(scalar.item(), rel=1e-5, abs=1e-4)
        largest = max(float(level.abs().max()) for level in slow if level is not None)
        assert largest > 0
        for level, expected in zip(found, slow, strict=True):
            expected = torch.zeros_like(level) if expected is None else expected
            assert float((level - expected).abs().max()) <= 1e-4 * largest
