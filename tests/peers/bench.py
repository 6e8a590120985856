"""Speed and memory of detcam next to grad-cam, measured in one process.

    python tests/peers/bench.py [--repeats 5] [--threads 2] [--only NAME ...] [--json FILE]

Each row runs two sides alternately, several times, and prints their medians and the ratio of these. Weights are random
and seeded: the speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_grad_cam as peers
import torch
from pytorch_grad_cam.metrics.road import ROADCombined as PeerROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget
from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget as PeerBoxTarget
from pytorch_grad_cam.utils.reshape_transforms import fasterrcnn_reshape_transform
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small, resnet18, resnet50
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import detcam
from detcam import DRISE, AblationCAM, GradCAM, ScoreCAM, adapt
from detcam.metrics import ROADCombined
from detcam.targets import BoxTarget, ClassifierOutputTarget

warnings.simplefilter("ignore")

PAUSE_SECONDS = 0.3
"""Pause between two sides."""
MIN_MILLISECONDS = 100.0
"""A side that takes less runs twice."""


@dataclass(frozen=True)
class Row:
    """A comparison: medians of two sides in `unit`, and the goal for their ratio `slow / fast`."""

    name: str
    slow_side: str
    slow: float
    fast_side: str
    fast: float
    goal: str
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        return self.slow / self.fast


BENCHES: dict[str, Callable[[int], list[Row]]] = {}
"""Benchmarks by name. Each takes the number of repeats."""


def bench(function: Callable[[int], list[Row]]) -> Callable[[int], list[Row]]:
    """Add a function to `BENCHES`."""
    BENCHES[function.__name__] = function
    return function


def elapsed(side: Callable[[], object]) -> float:
    """Return the duration of one run in milliseconds."""
    start = time.perf_counter()
    side()
    return (time.perf_counter() - start) * 1000


def medians(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Return the median duration of each side in milliseconds, after one warm-up run each.

    The sides alternate, so that other load on the machine slows all of them. The threads of a linear algebra library
    spin for tens of milliseconds after a call; the pause keeps them from slowing the next side. Waking threads takes
    milliseconds too, so a fast side runs once more, and the second run counts.
    """
    durations: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        for side, values in zip(sides, durations, strict=True):
            time.sleep(PAUSE_SECONDS)
            milliseconds = elapsed(side)
            if milliseconds < MIN_MILLISECONDS:
                milliseconds = elapsed(side)
            if repeat:
                values.append(milliseconds)
    return [statistics.median(values) for values in durations]


def forward_pass(model: nn.Module, *inputs: object) -> Callable[[], object]:
    """Return a function that runs a plain forward pass in inference mode."""

    def run() -> object:
        with torch.inference_mode():
            return model(*inputs)

    return run


def method_pair(
    method: str, model: nn.Module, layer: nn.Module, images: Tensor
) -> tuple[Callable[[], object], Callable[[], object], Callable[[], None]]:
    """Return runs of grad-cam's and detcam's method on the same input, and a function that removes grad-cam's hooks.

    grad-cam's run sets `requires_grad` first, as it is in a model that can be trained.
    """
    theirs = getattr(peers, method)(model, [] if method == "FullGrad" else [layer])
    ours = getattr(detcam, method)(model, None if method == "FullGrad" else [layer])
    count = len(images)

    def run_peer() -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        theirs(images, [PeerTarget(1)] * count)
        model.zero_grad(set_to_none=True)
        theirs.activations_and_grads.clear()

    return run_peer, lambda: ours(images, [ClassifierOutputTarget(1)] * count), theirs.activations_and_grads.release


@bench
def gradcam_resnet50(repeats: int) -> list[Row]:
    """GradCAM on ResNet-50, batch 8, last block."""
    model = resnet50().eval()
    images = torch.randn(8, 3, 224, 224)
    theirs, ours, release = method_pair("GradCAM", model, model.layer4[-1], images)
    slow, fast, forward = medians(repeats, theirs, ours, forward_pass(model, images))
    release()
    return [
        Row("GradCAM, ResNet-50, batch 8", "grad-cam", slow, "detcam", fast, ">= 3.0"),
        Row("GradCAM against a forward pass", "detcam", fast, "inference", forward, "<= 1.15"),
    ]


@bench
def boxes_fasterrcnn(repeats: int) -> list[Row]:
    """10 and 100 boxes on Faster R-CNN MobileNet-320 against one EigenCAM call of grad-cam per box."""
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, box_score_thresh=0.0, box_detections_per_img=100
    ).eval()
    image = torch.rand(3, 240, 320)
    adapter = adapt(model)
    (detections,) = adapter.predict(image)
    ours, theirs = GradCAM(adapter), peers.EigenCAM(model, [model.backbone], fasterrcnn_reshape_transform)
    boxes, labels = detections.boxes_xyxy.numpy(), detections.labels.tolist()

    def run_peer() -> None:
        for index in range(10):
            theirs(image[None], [PeerBoxTarget([labels[index]], boxes[index : index + 1])])

    slow, ten, hundred, forward = medians(
        repeats,
        run_peer,
        lambda: ours(image, [detections[:10]]),
        lambda: ours(image, [detections[:100]]),
        forward_pass(model, [image]),
    )
    theirs.activations_and_grads.release()
    return [
        Row("10 boxes, Faster R-CNN MobileNet-320", "grad-cam EigenCAM", slow, "detcam GradCAM", ten, ">= 12"),
        Row("100 boxes against 10", "100 boxes", hundred, "10 boxes", ten, "<= 6"),
        Row("10 boxes against a forward pass", "detcam", ten, "inference", forward, "reported"),
    ]


@bench
def boxes_yolo(repeats: int) -> list[Row]:
    """20 boxes on YOLO11n at 640 pixels against a forward pass."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel("yolo11n.yaml", nc=80, verbose=False).eval()
    image = torch.rand(3, 640, 640)
    ours = GradCAM(adapt(model))
    targets = [BoxTarget((40.0 + 25 * i, 60.0 + 20 * i, 120.0 + 25 * i, 150.0 + 20 * i), i) for i in range(20)]
    explained, forward = medians(repeats, lambda: ours(image, targets), forward_pass(model, image[None]))
    return [Row("20 boxes, YOLO11n at 640", "detcam", explained, "inference", forward, "<= 8")]


def measure_peak(library: str, method: str, batch: int, channel: multiprocessing.connection.Connection) -> None:
    """Send the peak memory in MiB of a method on ResNet-50, in addition to that of the model and its input."""
    torch.set_num_threads(2)
    model = resnet50().eval()
    images = torch.randn(batch, 3, 224, 224)
    package, target = (peers, PeerTarget(1)) if library == "grad-cam" else (detcam, ClassifierOutputTarget(1))
    cam = getattr(package, method)(model, [model.layer4[-1]])
    before = process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which a child process inherits
    cam(images, [target] * batch)
    channel.send(process_memory("VmHWM") - before)


def process_memory(field: str) -> float:
    """Return a field of the memory status of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


def peak_memory(library: str, method: str, batch: int) -> float:
    """Run `measure_peak` in a new process and return its result."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure_peak, args=(library, method, batch, send))
    process.start()
    peak: float = receive.recv()
    process.join()
    return peak


@bench
def memory(repeats: int) -> list[Row]:
    """Peak memory of GradCAM on ResNet-50, batch 8."""
    theirs, ours = (peak_memory(library, "GradCAM", 8) for library in ("grad-cam", "detcam"))
    return [Row("peak memory, ResNet-50, batch 8", "grad-cam", theirs, "detcam", ours, ">= 1.0", "MiB")]


@bench
def scorecam_memory(repeats: int) -> list[Row]:
    """Peak memory of ScoreCAM on ResNet-50."""
    peak = peak_memory("detcam", "ScoreCAM", 1)
    return [Row("peak of ScoreCAM, ResNet-50", "detcam", peak, "allowed", 400.0, "<= 1.0", "MiB")]


@bench
def ablationcam(repeats: int) -> list[Row]:
    """AblationCAM of every channel of the last block; grad-cam runs once."""
    rows = []
    for name, build, goal in (("ResNet-18, 512 channels", resnet18, 90), ("ResNet-50, 2048 channels", resnet50, 150)):
        torch.manual_seed(0)
        model = build().eval()
        image = torch.randn(1, 3, 224, 224)
        ours = AblationCAM(model, [model.layer4[-1]])
        (fast,) = medians(repeats, lambda ours=ours, image=image: ours(image, [ClassifierOutputTarget(1)]))
        theirs = peers.AblationCAM(model, [model.layer4[-1]])  # created last: its hooks would store our variants
        slow = elapsed(lambda theirs=theirs, image=image: theirs(image, [PeerTarget(1)]))
        theirs.activations_and_grads.release()
        rows.append(Row(f"AblationCAM, {name}", "grad-cam", slow, "detcam", fast, f">= {goal}"))
    return rows


@bench
def scorecam(repeats: int) -> list[Row]:
    """ScoreCAM on ResNet-18: with all channels, with 64 channels, and with five targets."""
    torch.manual_seed(0)
    model = resnet18().eval()
    image = torch.randn(1, 3, 224, 224)
    layers = [model.layer4[-1]]
    theirs, ours = peers.ScoreCAM(model, layers), ScoreCAM(model, layers)
    ours_top = ScoreCAM(model, layers, top_channels=64)
    single, five = [ClassifierOutputTarget(1)], [[ClassifierOutputTarget(label) for label in range(5)]]
    slow, exact, top, shared = medians(
        repeats,
        lambda: theirs(image, [PeerTarget(1)]),
        lambda: ours(image, single),
        lambda: ours_top(image, single),
        lambda: ours(image, five),
    )
    theirs.activations_and_grads.release()
    return [
        Row("ScoreCAM, ResNet-18, 512 channels", "grad-cam", slow, "detcam", exact, ">= 1.6"),
        Row("ScoreCAM, top_channels=64", "grad-cam", slow, "detcam", top, ">= 10"),
        Row("ScoreCAM, 5 targets against 1", "5 targets", shared, "1 target", exact, "<= 1.1"),
    ]


@bench
def drise(repeats: int) -> list[Row]:
    """D-RISE with 1000 masks and 10 boxes against 1000 forward passes in batches of the same size."""
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
    image = torch.rand(3, 240, 320)
    targets = [BoxTarget((10.0 + 20 * k, 20.0, 60.0 + 20 * k, 120.0), 1 + k) for k in range(10)]
    ours = DRISE(adapt(model), passes=1000)
    batch = [image] * ours.batch_size

    def run_forward_passes() -> None:
        with torch.inference_mode():
            for _ in range(1000 // len(batch)):
                model(batch)

    explained, forward = medians(min(repeats, 1), lambda: ours(image, targets), run_forward_passes)
    return [Row("D-RISE, 1000 masks, 10 boxes", "detcam", explained, "inference", forward, "<= 1.1")]


@bench
def road(repeats: int) -> list[Row]:
    """ROADCombined on four images of 224 x 224 and smooth heatmaps; with a small network, the imputation dominates."""
    from scipy.ndimage import gaussian_filter

    model = mobilenet_v3_small().eval()
    images = torch.randn(4, 3, 224, 224)
    noise = np.random.default_rng(0).random((4, 224, 224))
    cams: Any = np.float32([gaussian_filter(each, 16) for each in noise])
    cams -= cams.min((1, 2), keepdims=True)
    cams /= cams.max((1, 2), keepdims=True)
    slow, fast = medians(
        min(repeats, 3),
        lambda: PeerROADCombined()(images, cams, [PeerTarget(1)] * 4, model),
        lambda: ROADCombined()(images, cams, [ClassifierOutputTarget(1)] * 4, model),
    )
    return [Row("ROADCombined, four 224 x 224 images", "grad-cam", slow, "detcam", fast, ">= 10")]


@bench
def components(repeats: int) -> list[Row]:
    """Principal components of activations, and FullGrad's sums over all layers."""
    torch.manual_seed(0)
    wide = nn.Sequential(
        nn.Conv2d(3, 256, 7, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 9)
    )
    deep, shallow = resnet50().eval(), resnet18().eval()
    comparisons = (
        ("EigenCAM, 256 channels of 56 x 56", "EigenCAM", wide.eval(), wide[1], 1, ">= 50"),
        ("EigenGradCAM, ResNet-50, batch 8", "EigenGradCAM", deep, deep.layer4[-1], 8, ">= 3"),
        ("KPCA-CAM, ResNet-50, batch 8", "KPCA_CAM", deep, deep.layer4[-1], 8, ">= 3"),
        ("FullGrad, ResNet-18, batch 4", "FullGrad", shallow, shallow.layer4[-1], 4, ">= 2"),
    )
    rows = []
    for name, method, model, layer, count, goal in comparisons:
        theirs, ours, release = method_pair(method, model, layer, torch.randn(count, 3, 224, 224))
        slow, fast = medians(repeats, theirs, ours)
        release()
        rows.append(Row(name, "grad-cam", slow, "detcam", fast, goal))
    return rows


@bench
def photographs(repeats: int) -> list[Row]:
    """Explanations of 100 photographs with ten boxes each, once, against decoding, detection and encoding alone."""
    from measure_explain import compare, total_cost

    folder = Path(__file__).resolve().parents[3] / "shared/data/coco_tiny/images"
    rows = []
    for name in ("yolo11n", "fasterrcnn_mobilenet_v3_large_320_fpn") if folder.is_dir() else ():
        ours, stages = compare(name, folder, 100)
        bare = total_cost(stages.values())
        title = f"100 photographs, {name.partition('_')[0]}"
        rows.append(Row(title, "detcam", ours.wall * 1000, "bare", bare.wall * 1000, "<= 1.5"))
        rows.append(Row(f"{title}, CPU time", "detcam", ours.cpu * 1000, "bare", bare.cpu * 1000, "reported"))
    return rows


def main() -> None:
    """Run the selected benchmarks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="runs per side")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--only", nargs="*", choices=list(BENCHES), default=list(BENCHES), help="names of benchmarks")
    parser.add_argument("--json", help="write the rows to this file as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    print(f"{'comparison':40} {'':>18} {'':>10}   {'':>18} {'':>10} {'ratio':>8}  goal")
    for name in arguments.only:
        for row in BENCHES[name](arguments.repeats):
            rows.append(row)
            print(
                f"{row.name:40} {row.slow_side:>18} {row.slow:10.1f} / {row.fast_side:>18} {row.fast:10.1f} "
                f"{row.ratio:8.2f}  {row.goal} {'' if row.unit == 'ms' else row.unit}",
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump([asdict(row) | {"ratio": row.ratio} for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
