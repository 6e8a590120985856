"""What tools of other packages do with a box of three kinds of detectors, and what it costs.

    python tests/peers/measure_tools.py [--python NAME=INTERPRETER ...] [--only TEXT]

Each pair of a tool and a detector runs in a process of its own, with random weights and an image of 500 x 375 pixels:
one box, then ten. Printed are the forward passes (images that went through the first convolution), the processor time
as a multiple of a bare forward pass, the growth of the peak memory, the size of the maps, and whether the maps of two
boxes differ. Each tool is used through its own code for such a detector where it has some, else with the score of the
box as a function of the image.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

IMAGE_HW, TENSOR_HW = (375, 500), (384, 512)
BOXES = 10
CLASSES = 5
Box = tuple[int, list[float], int]
"""Index of a detection in the output, its box in pixels of the tensor, and its class."""


def torchvision_model() -> nn.Module:
    """A Faster R-CNN that reports every box."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES, "box_score_thresh": 0.0}
    return fasterrcnn_mobilenet_v3_large_320_fpn(**options).eval()


def yolo_model() -> nn.Module:
    """A YOLO11n."""
    from ultralytics import YOLO

    model: nn.Module = YOLO("yolo11n.yaml", task="detect", verbose=False).model.eval()
    return model


def detr_model() -> nn.Module:
    """A DETR with a small ResNet."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )
    backbone.out_features = ["stage4"]
    small = {"d_model": 128, "encoder_layers": 3, "decoder_layers": 3, "num_queries": 50, "num_labels": CLASSES}
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, **small
    )
    return DetrForObjectDetection(config).eval()


MODELS = {"Faster R-CNN": torchvision_model, "YOLO11n": yolo_model, "DETR": detr_model}


def forward(model: nn.Module, batch: Tensor) -> Any:
    """The output of a detector."""
    return model(list(batch)) if hasattr(model, "roi_heads") else model(batch)


def score(model: nn.Module, batch: Tensor, box: Box) -> Tensor:
    """The score (B,) of a detection, matched by position for DETR and YOLO and by overlap for Faster R-CNN."""
    from torchvision.ops import box_iou

    index, corners, label = box
    output = forward(model, batch)
    if hasattr(output, "logits"):
        return output.logits.softmax(-1)[:, index, label]
    if isinstance(output, tuple):
        return output[0][:, 4 + label, index]
    scores = []
    for found in output:
        overlap = box_iou(torch.tensor([corners]), found["boxes"].detach())[0] * (found["labels"] == label)
        scores.append(found["scores"][overlap.argmax()] if len(overlap) and overlap.max() > 0.5 else batch.sum() * 0)
    return torch.stack(scores)


def boxes_of(model: nn.Module, batch: Tensor) -> list[Box]:
    """The ten best detections of the model, by its own output."""
    with torch.no_grad():
        output = forward(model, batch)
    if hasattr(output, "logits"):
        best = output.logits.softmax(-1)[0, :, :-1]
        center, size = output.pred_boxes[0].split(2, -1)
        boxes = torch.cat([center - size / 2, center + size / 2], -1) * torch.tensor(batch.shape[:1:-1] * 2)
    elif isinstance(output, tuple):
        best = output[0][0, 4:].T
        center, size = output[0][0, :4].T.split(2, -1)
        boxes = torch.cat([center - size / 2, center + size / 2], -1)
    else:
        found = output[0]
        return [(row, found["boxes"][row].tolist(), int(found["labels"][row])) for row in range(BOXES)]
    values, labels = best.max(-1)
    return [(int(row), boxes[row].tolist(), int(labels[row])) for row in values.argsort(descending=True)[:BOXES]]


def last_convolution(model: nn.Module) -> nn.Module:
    """The layer that tutorials choose: the last of the backbone, or the last before the head."""
    if hasattr(model, "roi_heads"):
        return [module for module in model.backbone.body.modules() if isinstance(module, nn.Conv2d)][-1]  # type: ignore[union-attr]
    if hasattr(model, "config"):
        return model.model.input_projection  # type: ignore[union-attr,return-value]  # the backbone is frozen
    return model.model[-2]  # type: ignore[index,return-value]


# A tool takes the detector, the tensor (1, 3, H, W), the image (H, W, 3) uint8 and boxes, and returns their maps.


def detcam_method(name: str) -> Callable[..., Any]:
    def run(model: nn.Module, batch: Tensor, image: np.ndarray, boxes: list[Box]) -> Any:
        import detcam

        options = {"score_threshold": 0.0, "top_k": len(boxes)}
        return detcam.explain(model, image, name, **options)[0].heatmaps

    return run


def gradcam(name: str) -> Callable[..., Any]:
    def run(model: nn.Module, batch: Tensor, image: np.ndarray, boxes: list[Box]) -> Any:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget
        from pytorch_grad_cam.utils.reshape_transforms import fasterrcnn_reshape_transform

        layers, options = [last_convolution(model)], {}
        network: nn.Module = model
        if hasattr(model, "roi_heads") and name == "EigenCAM":  # with gradients, the pyramid's mapping is no tensor
            layers, options = [model.backbone], {"reshape_transform": fasterrcnn_reshape_transform}  # type: ignore[list-item]
        if not hasattr(model, "roi_heads"):
            network = FirstTensor(model)  # grad-cam iterates over the output, one entry per image
        maps = []
        with getattr(pytorch_grad_cam, name)(network, layers, **options) as cam:
            for index, corners, label in boxes:
                if hasattr(model, "roi_heads"):
                    target: Any = FasterRCNNBoxScoreTarget([label], torch.tensor([corners]))
                elif hasattr(model, "config"):
                    target = lambda output, index=index, label=label: output[index, label]  # noqa: E731
                else:
                    target = lambda output, index=index, label=label: output[4 + label, index]  # noqa: E731
                maps.append(cam(batch, targets=[target])[0])
        return maps

    return run


class FirstTensor(nn.Module):
    """A detector of transformers that returns its class scores alone, or one of ultralytics its decoded boxes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> Tensor:
        output = self.model(batch)
        first: Tensor = output[0] if isinstance(output, tuple) else output.logits
        return first


def captum(name: str) -> Callable[..., Any]:
    def run(model: nn.Module, batch: Tensor, image: np.ndarray, boxes: list[Box]) -> Any:
        import captum.attr

        maps = []
        for box in boxes:
            function = lambda images, box=box: score(model, images, box)  # noqa: E731
            if name == "LayerGradCam":
                found = captum.attr.LayerGradCam(function, last_convolution(model)).attribute(batch)[0, 0]
            else:
                explainer = captum.attr.IntegratedGradients(function)
                found = explainer.attribute(batch, internal_batch_size=10)[0].sum(0)
            maps.append(found.detach().numpy())
        return maps

    return run


def xplique_saliency(model: nn.Module, batch: Tensor, image: np.ndarray, boxes: list[Box]) -> Any:
    import tensorflow as tf
    from xplique.attributions import Saliency
    from xplique.wrappers import TorchWrapper
    from xplique_adapters.object_detection import torch as adapters

    if hasattr(model, "roi_heads"):
        boxed: Any = adapters.TorchvisionBoxesModelWrapper(model, nb_classes=CLASSES)
    elif hasattr(model, "config"):
        boxed = adapters.DetrBoxesModelWrapper(model, image_size=TENSOR_HW)
    else:
        boxed = adapters.Yolo11RawBoxesModelWrapper(model)
    boxed.output_as_list = False
    explainer = Saliency(
        TorchWrapper(boxed.eval(), "cpu", is_channel_first=True), operator="object detection", batch_size=1
    )
    inputs = np.moveaxis(batch.numpy(), 1, -1)
    with torch.no_grad():
        rows = boxed(batch)[0].numpy()  # this pass finds the boxes
    maps = []
    for index, _, _ in boxes:
        row = rows[index]
        maps.append(np.asarray(explainer(tf.constant(inputs), tf.constant(row[None, None])))[0].squeeze())
    return maps


def ultralytics_visualize(model: nn.Module, batch: Tensor, image: np.ndarray, boxes: list[Box]) -> Any:
    from ultralytics import YOLO

    if not hasattr(model, "yaml"):
        raise TypeError("models of ultralytics only")
    yolo = YOLO("yolo11n.yaml", task="detect", verbose=False)
    yolo.model = model
    with tempfile.TemporaryDirectory() as folder:
        yolo.predict(image[..., ::-1], visualize=True, verbose=False, project=folder, conf=0.0, save=False)
        return [np.asarray(Image.open(path)) for path in list(Path(folder).rglob("*_cam.jpg"))[:1]]


TOOLS: dict[str, tuple[str, Callable[..., Any]]] = {
    "detcam ODAM": ("torch", detcam_method("odam")),
    "grad-cam EigenCAM": ("grad-cam", gradcam("EigenCAM")),
    "grad-cam GradCAM": ("grad-cam", gradcam("GradCAM")),
    "ultralytics visualize": ("ultralytics-opencv-headless", ultralytics_visualize),
    "captum LayerGradCam": ("captum", captum("LayerGradCam")),
    "captum IntegratedGradients": ("captum", captum("IntegratedGradients")),
    "xplique Saliency": ("xplique", xplique_saliency),
}


SLOW = ("captum IntegratedGradients",)
"""Tools that are measured for one box: each further box costs the same again."""


def peak_mib() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare_seconds(model: nn.Module, batch: Tensor) -> float:
    """Processor time of a forward pass, the median of five."""
    seconds = []
    with torch.no_grad():
        for _ in range(5):
            start = time.process_time()
            forward(model, batch)
            seconds.append(time.process_time() - start)
    return sorted(seconds)[2]


def measure(tool: str, kind: str) -> dict[str, Any]:
    """Run a tool on a detector."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MODELS[kind]()
    image = np.random.default_rng(0).integers(0, 255, (*IMAGE_HW, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    batch = nn.functional.interpolate(tensor, TENSOR_HW, mode="bilinear")
    boxes = boxes_of(model, batch)
    run = TOOLS[tool][1]
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    sizes: list[tuple[int, ...]] = []
    handle = first.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape)))
    run(model, batch, image, boxes[:1])  # imports and first calls
    handle.remove()
    bare = bare_seconds(model, batch if hasattr(model, "roi_heads") else torch.rand(1, *sizes[0][1:]))
    result: dict[str, Any] = {"version": metadata.version(TOOLS[tool][0]), "bare_ms": round(1000 * bare)}
    passes = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal passes
        passes += len(output)

    first.register_forward_hook(count)
    before = peak_mib()
    for number in (1,) if tool in SLOW else (1, BOXES):
        passes, start = 0, time.process_time()
        maps = [np.asarray(each, dtype=np.float32) for each in run(model, batch, image, boxes[:number])]
        result[f"passes_{number}"] = passes
        result[f"times_{number}"] = (time.process_time() - start) / bare
    result |= {"mib": peak_mib() - before, "shape": list(maps[0].shape), "maps": len(maps)}
    differ = [not np.allclose(maps[0], other, atol=1e-3 * np.abs(maps[0]).max()) for other in maps[1:]]
    result |= {"differ": sum(differ), "finite": bool(all(np.isfinite(each).all() and each.any() for each in maps))}
    return result


def main() -> None:
    """Measure every pair in a process of its own, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", nargs="*", default=[], help="NAME=INTERPRETER for tools whose name begins with NAME"
    )
    parser.add_argument("--only", default="", help="pairs whose name contains this text")
    parser.add_argument("--pair", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pair:
        print(json.dumps(measure(*arguments.pair)))
        return
    interpreters = dict(each.split("=", 1) for each in arguments.python)
    for tool in TOOLS:
        for kind in MODELS:
            if arguments.only not in f"{tool}, {kind}":
                continue
            python = next((path for name, path in interpreters.items() if tool.startswith(name)), sys.executable)
            done = subprocess.run([python, __file__, "--pair", tool, kind], capture_output=True, text=True, check=False)
            lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
            print(f"{tool}, {kind}: {lines[-1] if lines else done.returncode}", flush=True)


if __name__ == "__main__":
    main()
