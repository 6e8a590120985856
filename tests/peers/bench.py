"""Side-by-side timings with grad-cam, as ratios from one process.

    python tests/peers/bench.py [--repeats 5] [--threads 2] [--only NAME ...] [--json FILE]

Every row runs both sides in turn, several times, and prints the medians and their ratio. Weights are random and
seeded: speed does not depend on them.
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

import torch
from torch import nn

warnings.simplefilter("ignore")


@dataclass(frozen=True)
class Row:
    """One comparison: medians in milliseconds (or MiB) of the two sides, and what their ratio should be."""

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


PAUSE = 0.3
"""Seconds between two sides."""
QUICK = 100.0
"""Milliseconds: sides that take less are run twice."""

BENCHES: dict[str, Callable[[int], list[Row]]] = {}


def bench(function: Callable[[int], list[Row]]) -> Callable[[int], list[Row]]:
    BENCHES[function.__name__] = function
    return function


def once(side: Callable[[], object]) -> float:
    """Milliseconds of a single run."""
    start = time.perf_counter()
    side()
    return (time.perf_counter() - start) * 1000


def medians(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Median milliseconds of each side, run in turn so that a busy machine slows all alike; one warm-up each.

    Threads of a linear algebra library go on spinning for some tens of milliseconds behind a call: the pause keeps one
    side's from slowing the next. Waking threads takes milliseconds too, so a side that is quick runs once more and the
    second time counts.
    """
    times: list[list[float]] = [[] for _ in sides]
    for round_number in range(repeats + 1):
        for side, found in zip(sides, times, strict=True):
            time.sleep(PAUSE)
            taken = once(side)
            if taken < QUICK:
                taken = once(side)
            if round_number:
                found.append(taken)
    return [statistics.median(found) for found in times]


def bare(model: nn.Module, *inputs: object) -> Callable[[], object]:
    """A plain inference pass."""

    def run() -> object:
        with torch.inference_mode():
            return model(*inputs)

    return run


@bench
def gradcam_resnet50(repeats: int) -> list[Row]:
    """GradCAM on ResNet-50, batch 8, last block."""
    from pytorch_grad_cam import GradCAM as Peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget
    from torchvision.models import resnet50

    from detcam import GradCAM
    from detcam.targets import ClassifierOutputTarget

    model = resnet50().eval()
    images = torch.randn(8, 3, 224, 224)
    theirs, ours = Peer(model, [model.layer4[-1]]), GradCAM(model, [model.layer4[-1]])

    def peer() -> object:
        for parameter in model.parameters():  # leave the peer what its users give it: a model that can train
            parameter.requires_grad_(True)
        found = theirs(images, [PeerTarget(1)] * 8)
        model.zero_grad(set_to_none=True)
        theirs.activations_and_grads.clear()
        return found

    slow, fast, plain = medians(
        repeats, peer, lambda: ours(images, [ClassifierOutputTarget(1)] * 8), bare(model, images)
    )
    theirs.activations_and_grads.release()
    return [
        Row("GradCAM, ResNet-50, batch 8", "grad-cam", slow, "detcam", fast, ">= 3.0"),
        Row("GradCAM against a bare pass", "detcam", fast, "inference", plain, "<= 1.15"),
    ]


@bench
def boxes_fasterrcnn(repeats: int) -> list[Row]:
    """Ten and a hundred boxes on Faster R-CNN MobileNet-320 against EigenCAM asked box by box."""
    from pytorch_grad_cam import EigenCAM as Peer
    from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget as PeerTarget
    from pytorch_grad_cam.utils.reshape_transforms import fasterrcnn_reshape_transform
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    from detcam import GradCAM, adapt

    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, box_score_thresh=0.0, box_detections_per_img=100
    ).eval()
    image = torch.rand(3, 240, 320)
    adapter = adapt(model)
    found = adapter.predict(image)[0]
    ours, theirs = GradCAM(adapter), Peer(model, [model.backbone], fasterrcnn_reshape_transform)
    boxes, labels = found.boxes_xyxy.numpy(), found.labels.tolist()

    def peer() -> None:
        for index in range(10):
            theirs(image[None], [PeerTarget([labels[index]], boxes[index : index + 1])])

    slow, ten, hundred, plain = medians(
        repeats,
        peer,
        lambda: ours(image, [found[:10]]),
        lambda: ours(image, [found[:100]]),
        bare(model, [image]),
    )
    theirs.activations_and_grads.release()
    return [
        Row("10 boxes, Faster R-CNN MobileNet-320", "grad-cam EigenCAM", slow, "detcam GradCAM", ten, ">= 12"),
        Row("100 boxes against 10", "100 boxes", hundred, "10 boxes", ten, "<= 6"),
        Row("10 boxes against a bare pass", "detcam", ten, "inference", plain, "reported"),
    ]


@bench
def boxes_yolo(repeats: int) -> list[Row]:
    """Twenty boxes on YOLO11n at 640 pixels against a bare pass."""
    from ultralytics.nn.tasks import DetectionModel

    from detcam import GradCAM, adapt
    from detcam.targets import BoxTarget

    torch.manual_seed(0)
    model = DetectionModel("yolo11n.yaml", nc=80, verbose=False).eval()
    image = torch.rand(3, 640, 640)
    ours = GradCAM(adapt(model))
    targets = [BoxTarget((40.0 + 25 * i, 60.0 + 20 * i, 120.0 + 25 * i, 150.0 + 20 * i), i) for i in range(20)]
    found, plain = medians(repeats, lambda: ours(image, targets), bare(model, image[None]))
    return [Row("20 boxes, YOLO11n at 640", "detcam", found, "inference", plain, "<= 8")]


def _peak(side: str, channel: multiprocessing.connection.Connection) -> None:
    """Peak memory of one side in a process of its own, above what the model and its input take."""
    from torchvision.models import resnet50

    torch.set_num_threads(2)
    model = resnet50().eval()
    images = torch.randn(8, 3, 224, 224)
    if side == "peer":
        from pytorch_grad_cam import GradCAM as Peer
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget

        cam, targets = Peer(model, [model.layer4[-1]]), [PeerTarget(1)] * 8
    else:
        from detcam import GradCAM
        from detcam.targets import ClassifierOutputTarget

        cam, targets = GradCAM(model, [model.layer4[-1]]), [ClassifierOutputTarget(1)] * 8
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew; a child inherits its parent's otherwise
    cam(images, targets)
    channel.send(_memory("VmHWM") - before)


def _memory(field: str) -> float:
    """A field of this process's memory status, in MiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


@bench
def memory(repeats: int) -> list[Row]:
    """Peak memory of GradCAM on ResNet-50, batch 8, each side in a fresh process."""
    context = multiprocessing.get_context("spawn")
    peaks: dict[str, float] = {}
    for side in ("peer", "detcam"):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_peak, args=(side, send))
        process.start()
        peaks[side] = receive.recv()
        process.join()
    return [
        Row("peak memory, ResNet-50, batch 8", "grad-cam", peaks["peer"], "detcam", peaks["detcam"], ">= 1.0", "MiB")
    ]


@bench
def ablationcam(repeats: int) -> list[Row]:
    """AblationCAM of every channel of the last block; the peer runs once."""
    from pytorch_grad_cam import AblationCAM as Peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget
    from torchvision.models import resnet18, resnet50

    from detcam import AblationCAM
    from detcam.targets import ClassifierOutputTarget

    rows = []
    for name, build, goal in (("ResNet-18, 512 channels", resnet18, 90), ("ResNet-50, 2048 channels", resnet50, 150)):
        torch.manual_seed(0)
        model = build().eval()
        image = torch.randn(1, 3, 224, 224)
        ours = AblationCAM(model, [model.layer4[-1]])
        (fast,) = medians(repeats, lambda ours=ours, image=image: ours(image, [ClassifierOutputTarget(1)]))
        theirs = Peer(model, [model.layer4[-1]])  # only now: its hooks would keep every variant of ours
        slow = once(lambda theirs=theirs, image=image: theirs(image, [PeerTarget(1)]))
        theirs.activations_and_grads.release()
        rows.append(Row(f"AblationCAM, {name}", "grad-cam", slow, "detcam", fast, f">= {goal}"))
    return rows


@bench
def scorecam(repeats: int) -> list[Row]:
    """ScoreCAM on ResNet-18: exact, with 64 channels, and with five targets."""
    from pytorch_grad_cam import ScoreCAM as Peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget
    from torchvision.models import resnet18

    from detcam import ScoreCAM
    from detcam.targets import ClassifierOutputTarget

    torch.manual_seed(0)
    model = resnet18().eval()
    image = torch.randn(1, 3, 224, 224)
    theirs, ours = Peer(model, [model.layer4[-1]]), ScoreCAM(model, [model.layer4[-1]])
    some = ScoreCAM(model, [model.layer4[-1]], top_channels=64)
    one, five = [ClassifierOutputTarget(1)], [[ClassifierOutputTarget(label) for label in range(5)]]
    slow, exact, top, shared = medians(
        repeats,
        lambda: theirs(image, [PeerTarget(1)]),
        lambda: ours(image, one),
        lambda: some(image, one),
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
    """D-RISE with 1000 masks and ten boxes against as many bare passes in batches of the same size."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    from detcam import DRISE, adapt
    from detcam.targets import BoxTarget

    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
    image = torch.rand(3, 240, 320)
    adapter = adapt(model)
    targets = [BoxTarget((10.0 + 20 * k, 20.0, 60.0 + 20 * k, 120.0), 1 + k) for k in range(10)]
    ours = DRISE(adapter, passes=1000)
    batch = [image] * ours.batch_size

    def passes() -> None:
        with torch.inference_mode():
            for _ in range(1000 // len(batch)):
                model(batch)

    found, plain = medians(min(repeats, 1), lambda: ours(image, targets), passes)
    return [Row("D-RISE, 1000 masks, 10 boxes", "detcam", found, "inference", plain, "<= 1.1")]


def _scorecam_peak(channel: multiprocessing.connection.Connection) -> None:
    """Peak memory of ScoreCAM on ResNet-50 in a process of its own, above what the model and its input take."""
    from torchvision.models import resnet50

    from detcam import ScoreCAM
    from detcam.targets import ClassifierOutputTarget

    torch.set_num_threads(2)
    model = resnet50().eval()
    image = torch.randn(1, 3, 224, 224)
    cam = ScoreCAM(model, [model.layer4[-1]])
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    cam(image, [ClassifierOutputTarget(1)])
    channel.send(_memory("VmHWM") - before)


@bench
def scorecam_memory(repeats: int) -> list[Row]:
    """Peak memory of ScoreCAM on ResNet-50 above the model."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_scorecam_peak, args=(send,))
    process.start()
    peak = receive.recv()
    process.join()
    return [Row("peak of ScoreCAM, ResNet-50", "detcam", peak, "allowed", 400.0, "<= 1.0", "MiB")]


@bench
def road(repeats: int) -> list[Row]:
    """ROADCombined on four images of 224 x 224 and smooth maps; a small network, so that the imputation shows."""
    import numpy as np
    from pytorch_grad_cam.metrics.road import ROADCombined as Peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget
    from scipy.ndimage import gaussian_filter
    from torchvision.models import mobilenet_v3_small

    from detcam.metrics import ROADCombined
    from detcam.targets import ClassifierOutputTarget

    model = mobilenet_v3_small().eval()
    images = torch.randn(4, 3, 224, 224)
    noise = np.random.default_rng(0).random((4, 224, 224))
    cams = np.float32([gaussian_filter(each, 16) for each in noise])
    cams -= cams.min((1, 2), keepdims=True)
    cams /= cams.max((1, 2), keepdims=True)
    slow, fast = medians(
        min(repeats, 3),
        lambda: Peer()(images, cams, [PeerTarget(1)] * 4, model),
        lambda: ROADCombined()(images, cams, [ClassifierOutputTarget(1)] * 4, model),
    )
    return [Row("ROADCombined, four 224 x 224 images", "grad-cam", slow, "detcam", fast, ">= 10")]


def _sides(
    method: str, model: nn.Module, layer: nn.Module, images: torch.Tensor
) -> tuple[Callable[[], object], Callable[[], object], Callable[[], object]]:
    """A method of the peer and ours on the same model and images, and what lets go of the peer's hooks."""
    import pytorch_grad_cam as peers
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PeerTarget

    import detcam
    from detcam.targets import ClassifierOutputTarget

    layers = [] if method == "FullGrad" else [layer]
    theirs = getattr(peers, method)(model, layers)
    ours = getattr(detcam, method)(model, layers or None)
    count = len(images)

    def peer() -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        theirs(images, [PeerTarget(1)] * count)
        model.zero_grad(set_to_none=True)
        theirs.activations_and_grads.clear()

    return peer, lambda: ours(images, [ClassifierOutputTarget(1)] * count), theirs.activations_and_grads.release


@bench
def components(repeats: int) -> list[Row]:
    """Principal components of activations, and FullGrad's sums over all layers."""
    from torchvision.models import resnet18, resnet50

    torch.manual_seed(0)
    wide = nn.Sequential(
        nn.Conv2d(3, 256, 7, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 9)
    )
    deep, shallow = resnet50().eval(), resnet18().eval()
    work = (
        ("EigenCAM, 256 channels of 56 x 56", "EigenCAM", wide.eval(), wide[1], 1, ">= 50"),
        ("EigenGradCAM, ResNet-50, batch 8", "EigenGradCAM", deep, deep.layer4[-1], 8, ">= 3"),
        ("KPCA-CAM, ResNet-50, batch 8", "KPCA_CAM", deep, deep.layer4[-1], 8, ">= 3"),
        ("FullGrad, ResNet-18, batch 4", "FullGrad", shallow, shallow.layer4[-1], 4, ">= 2"),
    )
    rows = []
    for name, method, model, layer, count, goal in work:
        peer, ours, release = _sides(method, model, layer, torch.randn(count, 3, 224, 224))
        slow, fast = medians(repeats, peer, ours)
        release()
        rows.append(Row(name, "grad-cam", slow, "detcam", fast, goal))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    print(f"{'work':40} {'':>18} {'':>10}   {'':>18} {'':>10} {'ratio':>8}  goal")
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
