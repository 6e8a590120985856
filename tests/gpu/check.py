"""Whether detcam gives on a GPU what it gives on the CPU, how fast, and with how much memory.

    python tests/gpu/check.py [--device cuda] [--quick]

Takes at most six minutes on a GPU, needs no network and no files: weights are random and seeded, or those of the
packaged demo detector. Prints a row per check and ends with 1 if a map differs from that of the CPU, or in half
precision from that in float32. ``--device cpu --quick`` runs the same checks on small networks.

* Methods: ten methods on a ResNet, against the CPU.
* Detectors: the boxes of a two-stage detector, YOLO and RT-DETR by their default method, against the CPU, and the time
  of ten boxes against a bare pass.
* Speed and memory: GradCAM on a batch of 8 against a bare pass, and against pytorch-grad-cam where it is installed.
* Precision: the maps of a trained detector, and the time of a large one, under autocast and in channels-last format,
  against float32.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision.models as zoo
from torch import Tensor, nn

import detcam
from detcam import METHODS, GradCAM
from detcam.adapters import Adapter, adapt
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import draw_scene
from detcam.targets import ClassifierOutputTarget

TEN_METHODS = (
    "gradcam", "hirescam", "gradcamplusplus", "xgradcam", "layercam",
    "fullgrad", "guidedbackprop", "ablationcam", "scorecam", "reciprocam",
)  # fmt: skip
BOXES = 10
MIN_CORRELATION = 0.999
"""Least correlation of a map in float32 with that of the CPU, whose sums are in another order."""
MIN_HALF_CORRELATION = 0.9
REPEATS = 5


@dataclass(frozen=True)
class Row:
    """A line of the table: what was checked, the values, and whether they are as they must be."""

    name: str
    values: str
    passed: bool = True


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the median duration of a call after one that warms up."""
    durations = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:])


def correlation(first: Any, second: Any) -> float:
    """Return the least correlation of two lists of maps; two constant maps are equal."""
    found = [1.0]
    for one, other in zip(np.asarray(first), np.asarray(second), strict=True):
        if one.std() or other.std():
            found.append(float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) if one.std() and other.std() else 0.0)
    return min(found)


def resnet(quick: bool) -> nn.Module:
    torch.manual_seed(0)
    return (zoo.resnet18 if quick else zoo.resnet50)().eval()


def detectors(quick: bool) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield name, network and side of the image: two-stage, YOLO and RT-DETR."""
    from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel

    torch.manual_seed(0)
    kinds: Any = zoo.detection
    build = kinds.fasterrcnn_mobilenet_v3_large_320_fpn if quick else kinds.fasterrcnn_resnet50_fpn
    yield "two-stage", build(weights=None, weights_backbone=None, box_score_thresh=0.0).eval(), 160 if quick else 640
    torch.manual_seed(0)
    yield "YOLO", DetectionModel("yolo11n.yaml", nc=80, verbose=False).eval(), 160 if quick else 640
    torch.manual_seed(0)
    name = "yolov8n-rtdetr.yaml" if quick else "rtdetr-l.yaml"
    yield "RT-DETR", RTDETRDetectionModel(name, nc=80, verbose=False).eval(), 160 if quick else 640


def image_of(side: int) -> Tensor:
    """An image with a few large shapes, the same on every machine."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    return nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0].clamp(0, 1)


def check_methods(device: torch.device, quick: bool) -> Iterator[Row]:
    """Compare ten methods on a classifier with the CPU."""
    model = resnet(True)
    there = copy.deepcopy(model).to(device)
    inputs = torch.stack([image_of(96), image_of(96).flip(2)])
    for name in TEN_METHODS:
        options = {"top_channels": 16} if name == "scorecam" else {}
        targets = [ClassifierOutputTarget(1), ClassifierOutputTarget(5)]
        expected = METHODS[name](model, **options)(inputs, targets)
        cam = METHODS[name](there, **options)
        actual = cam(inputs.to(device), targets)
        least = correlation(expected, actual)
        yield Row(f"{name} against the CPU", f"correlation {least:.5f}", least >= MIN_CORRELATION)


def boxes_of(adapter: Adapter, image: Tensor) -> Any:
    return adapter.with_score_threshold(0.0).predict(image)[0][:BOXES]


def maps_of(adapter: Adapter, image: Tensor, boxes: Any) -> Any:
    return detcam.explain(adapter, image, targets=[boxes])[0].heatmaps


def check_detectors(device: torch.device, quick: bool) -> Iterator[Row]:
    """Compare boxes of three kinds of detectors with the CPU, and their time with a bare pass."""
    for name, model, side in detectors(quick):
        image = image_of(side)
        adapter = adapt(model)
        boxes = boxes_of(adapter, image)
        expected = maps_of(adapter, image, boxes)
        on_device = adapt(copy.deepcopy(model).to(device))
        least = correlation(expected, maps_of(on_device, image, boxes))
        ours = seconds(lambda a=on_device, i=image, b=boxes: maps_of(a, i, b), device)
        batch = on_device.prepare([image])

        def bare(a: Adapter = on_device, b: Any = batch) -> None:
            with torch.inference_mode():
                a.detections(a.outputs(a.forward(b), b), b)

        passed = len(boxes) > 0 and least >= MIN_CORRELATION
        yield Row(f"{name}, {len(boxes)} boxes against the CPU", f"correlation {least:.5f}", passed)
        plain = seconds(bare, device)
        yield Row(f"{name}, {len(boxes)} boxes against a pass", f"{ours * 1e3:.1f} ms / {plain * 1e3:.1f} ms")


def peak_bytes(run: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak of the device's memory during a call in MiB, beyond what is in use; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def check_speed(device: torch.device, quick: bool) -> Iterator[Row]:
    """Time and memory of GradCAM on a batch of 8, against a bare pass and pytorch-grad-cam."""
    model: Any = resnet(quick).to(device)
    inputs = torch.rand(8, 3, *[64 if quick else 224] * 2, generator=torch.Generator().manual_seed(2)).to(device)
    cam = GradCAM(model, [model.layer4[-1]])

    def bare() -> None:
        with torch.inference_mode():
            model(inputs)

    sides: dict[str, Callable[[], object]] = {
        "a bare pass": bare,
        "detcam": lambda: cam(inputs, [ClassifierOutputTarget(1)] * 8),
    }
    try:
        import pytorch_grad_cam as peers
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget
    except ImportError:
        yield Row("pytorch-grad-cam", "not installed")
    else:
        theirs = peers.GradCAM(model, [model.layer4[-1]])

        def run_peer() -> None:
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            theirs(inputs, [PeerTarget(1)] * 8)
            model.zero_grad(set_to_none=True)
            theirs.activations_and_grads.clear()

        sides["grad-cam"] = run_peer
    for name, run in sides.items():
        took, peak = seconds(run, device), peak_bytes(run, device)
        memory = "" if peak is None else f", peak memory {peak:.0f} MiB"
        yield Row(f"GradCAM, batch 8: {name}", f"{took * 1e3:.1f} ms{memory}")


def check_precision(device: torch.device, quick: bool) -> Iterator[Row]:
    """Maps of a trained two-stage detector, and time of a large one, under autocast and in channels-last format.

    The gradients of random weights are below the smallest number in float16, those of trained ones are not.
    """
    _, model, side = next(detectors(quick))
    trained, scene = adapt(load_demo_detector().to(device)), draw_scene(0).image
    boxes = boxes_of(trained, scene)
    expected = maps_of(trained, scene, boxes)
    image = image_of(side)
    adapter = adapt(model.to(device))
    timed = boxes_of(adapter, image)
    plain = seconds(lambda: maps_of(adapter, image, timed), device)
    cases: list[tuple[str, torch.dtype | None]] = [("bfloat16", torch.bfloat16), ("float16", torch.float16)]
    for name, dtype in [*cases, ("channels last", None)]:
        if dtype is None:
            for network in (model, trained.model):
                network.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            least = correlation(expected, maps_of(trained, scene, boxes))
            took = seconds(lambda: maps_of(adapter, image, timed), device)
        wanted = MIN_HALF_CORRELATION if dtype else MIN_CORRELATION
        yield Row(f"two-stage, {name}", f"correlation {least:.5f}, {plain / took:.2f} times as fast", least >= wanted)


CHECKS = (check_methods, check_detectors, check_speed, check_precision)


def main(arguments: list[str] | None = None) -> int:
    """Run all checks, print the table, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu")
    parser.add_argument("--quick", action="store_true", help="small networks, which a CPU runs in a minute")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # for the comparison with the CPU
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"detcam {detcam.__version__}, PyTorch {torch.__version__}, {name}")
    failed, started = 0, time.perf_counter()
    for check in CHECKS:
        for row in check(device, options.quick):
            print(f"{'ok  ' if row.passed else 'FAIL'} {row.name:45} {row.values}", flush=True)
            failed += not row.passed
    print(f"{failed} failed, {time.perf_counter() - started:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
