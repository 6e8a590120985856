"""How much the maps of each method differ under autocast from those in float32.

    python tests/peers/measure_precision.py [--scenes 2] [--boxes 2] [--bare]

Explains boxes of the demo detector in drawn scenes with every method, in float32 and under autocast to bfloat16 and
float16, and prints the median and the least correlation of the maps. Methods that compare scores switch autocast off;
they are listed without numbers. ``--bare`` prints instead how much faster passes of three networks are in each format,
in CPU time of one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detcam import METHODS
from detcam.adapters import adapt
from detcam.demo.model import load_demo_detector
from detcam.methods.common.attention_base import AttentionCAM
from detcam.synthetic.harbor import draw_scene
from detcam.utils.precision import autocast_to

HALF = ("bfloat16", "float16")


def measure_methods(scenes: int, boxes: int) -> None:
    """Print a row per method."""
    adapter: Any = adapt(load_demo_detector())
    images = [draw_scene(seed).image for seed in range(scenes)]
    found = [adapter.predict(image)[0][:boxes] for image in images]
    in_float32 = []
    print("| method | bfloat16 | float16 |\n|---|---|---|")
    for name, method in METHODS.items():
        try:
            cam = method(adapter)
        except (TypeError, ValueError):  # for another kind of network
            continue
        if adapter.task not in method.tasks or isinstance(cam, AttentionCAM):
            continue
        if cam.compares_scores:
            in_float32.append(name)
            continue
        maps = {}
        for precision in ("float32", *HALF):
            with autocast_to(precision):
                maps[precision] = [
                    heatmap
                    for image, targets in zip(images, found, strict=True)
                    for heatmap in cam([image], [targets])[0]
                ]
        cells = []
        for precision in HALF:
            values = [correlation(*pair) for pair in zip(maps["float32"], maps[precision], strict=True)]
            cells.append(f"{np.median(values):.3f} (least {min(values):.3f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\nfloat32 in any case: {', '.join(in_float32)}")


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of two maps; that with a constant map is 0."""
    if not first.std() or not second.std():
        return float(first.std() == second.std())
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def fastest(run: Callable[[], object]) -> float:
    """Return the least CPU time of three runs after one that warms up."""
    durations = []
    for _ in range(4):
        start = time.process_time()
        run()
        durations.append(time.process_time() - start)
    return min(durations[1:])


def measure_bare() -> None:
    """Print how much faster a forward pass is than in float32."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, fasterrcnn_resnet50_fpn
    from ultralytics.nn.tasks import DetectionModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain: Any = {"weights": None, "weights_backbone": None}
    networks: dict[str, tuple[nn.Module, Tensor]] = {
        "YOLO11n, 640": (DetectionModel("yolo11n.yaml", nc=80, verbose=False), torch.rand(2, 3, 640, 640)),
        "MobileNet pyramid, 320": (fasterrcnn_mobilenet_v3_large_320_fpn(**plain).backbone, torch.rand(4, 3, 320, 320)),
        "ResNet-50 pyramid, 800": (fasterrcnn_resnet50_fpn(**plain).backbone, torch.rand(1, 3, 800, 800)),
    }
    for name, (model, pixels) in networks.items():
        model.eval().requires_grad_(False)
        last = pixels.contiguous(memory_format=torch.channels_last)
        sides: dict[str, tuple[str, Tensor]] = {
            "float32": ("float32", pixels), "channels last": ("float32", last),
            "bfloat16": ("bfloat16", pixels), "bfloat16, channels last": ("bfloat16", last),
        }  # fmt: skip
        took = {}
        for side, (precision, inputs) in sides.items():
            with torch.inference_mode(), autocast_to(precision):
                took[side] = fastest(lambda model=model, inputs=inputs: model(inputs))
        print(name, {side: f"{took['float32'] / value:.2f} times as fast" for side, value in took.items()}, flush=True)


def main() -> None:
    """Run one of the measurements."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--boxes", type=int, default=2)
    parser.add_argument("--bare", action="store_true", help="measure passes alone")
    options = parser.parse_args()
    if options.bare:
        measure_bare()
    else:
        measure_methods(options.scenes, options.boxes)


if __name__ == "__main__":
    main()
