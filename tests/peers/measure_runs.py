"""Runs over many images: speed of two workers, memory of the driver, and time per image.

    python tests/peers/measure_runs.py workers [--images 256] [--repeats 3] [--model demo]
    python tests/peers/measure_runs.py growth [--counts 1000,5000,20000]

``workers`` explains drawn scenes with the demo detector, or a network of ultralytics with random weights and ten boxes,
on Ray, with one and with two workers of one thread, in turn. Each worker is pinned to a core of its own, where it also
reads and writes images. Its rate is that between the first and the last shard, without the start of Ray. ``growth``
runs a small detector on drawn patterns of 64 x 48 pixels, as many as the counts say, each in a new process:
explanations without targets, which show what a run costs by itself, and an audit that explains nothing. It prints the
processor time per image and the peak memory beyond that of the first count, per image and per detection.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import detcam
from detcam.adapters import Adapter, adapt, detector
from detcam.demo.model import load_demo_detector
from detcam.explanation.batch import explain_files
from detcam.explanation.image_files import find_images
from detcam.runs import RayEngine
from detcam.synthetic.harbor import DEMO_NAMES
from tests.auditing.scenes import write_scenes
from tests.peers.measure_explain import build

CELL = 16


def small_detector() -> Adapter:
    """A detector with a box for each cell of 16 x 16 pixels, as red as the cell."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, CELL, CELL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].weight[0, 0] = 4 / CELL**2  # type: ignore[index]

    def decode(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count, _, height, width = raw.shape
        ys, xs = torch.meshgrid(torch.arange(height) * CELL, torch.arange(width) * CELL, indexing="ij")
        boxes = torch.stack([xs, ys, xs + CELL, ys + CELL], -1).flatten(0, 1).float()
        return boxes.expand(count, -1, 4), raw.sigmoid().flatten(2).transpose(1, 2)

    return detector(model.eval(), decode, names=["red"], target_layers=["0"])


def write_patterns(folder: Path, count: int) -> Path:
    """Images of random cells, with one label each; returns the annotation file."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    names = [f"{number:06}.png" for number in range(count)]
    for name in names:
        cells = generator.integers(0, 256, (48 // CELL, 64 // CELL, 3), dtype=np.uint8)
        Image.fromarray(cells.repeat(CELL, 0).repeat(CELL, 1)).save(folder / "images" / name, compress_level=1)
    images = [{"id": number, "file_name": name, "width": 64, "height": 48} for number, name in enumerate(names, 1)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [16, 16, 16, 16], "area": 256, "iscrowd": 0}
             for n in range(1, count + 1)]  # fmt: skip
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "red"}]}))
    return path


def measure_growth(kind: str, count: int) -> dict[str, float]:
    """Run in this process; return processor seconds and the peak memory in bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = write_patterns(folder, count)
        adapter, start = small_detector(), time.process_time()
        detections = 0
        if kind == "explain":
            paths = find_images([str(folder / "images")])
            explain_files(
                adapter, paths, folder / "out", "odam", on_progress=lambda *_: None, score_threshold=1.0, batch_size=32
            )
        else:
            found = detcam.audit(
                adapter, folder / "images", labels, out=folder / "out", explain=0, explain_missed=0, batch_size=32
            )
            detections = sum(each.false_positives + each.true_positives for each in found.analysis.classes.values())
        seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak, "detections": detections}


def print_growth(counts: list[int]) -> None:
    """Print time and memory for each count of images."""
    for kind in ("explain", "audit"):
        first: dict[str, float] = {}
        for count in counts:
            command = [sys.executable, __file__, "one", "--kind", kind, "--counts", str(count)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found: dict[str, float] = json.loads(output.splitlines()[-1])
            first = first or {**found, "count": count}
            milliseconds, peak = 1e3 * found["seconds"] / count, found["peak"] / 2**20
            text = f"{kind} {count} images: {milliseconds:.2f} ms an image, {peak:.0f} MiB"
            if count > first["count"]:
                more = found["peak"] - first["peak"]
                text += f", {more / (count - first['count']):.0f} bytes more an image"
                if found["detections"]:
                    text += f", {more / (found['detections'] - first['detections']):.0f} a detection"
            print(text, flush=True)


def print_workers(model: str, count: int, repeats: int) -> None:
    """Print the images per second of one and of two workers, and the ratio of each repetition."""
    selection = {} if model == "demo" else {"score_threshold": 0.0, "top_k": 10}
    adapter = adapt(load_demo_detector(), names=DEMO_NAMES) if model == "demo" else build(model)
    pinned = str(Path(__file__).with_name("one_core.py"))
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = find_images([str(write_scenes(folder, range(1_000_000, 1_000_000 + count)).parent / "images")])
        for repeat in range(repeats):
            rates = {}
            for workers in (1, 2) if repeat % 2 == 0 else (2, 1):
                times: list[float] = []

                def on_progress(*_: Any, times: list[float] = times) -> None:
                    times.append(time.perf_counter())

                engine = RayEngine(workers=workers, imports=(pinned,))
                out = folder / f"{repeat}-{workers}"
                explain_files(adapter, paths, out, "odam", on_progress=on_progress, engine=engine, **selection)
                # The images of a shard arrive together: those of each worker's first one are left out.
                first = min(index for index, each in enumerate(times) if each > times[0] + 0.2 * (times[-1] - times[0]))
                rates[workers] = (len(times) - first) / (times[-1] - times[first - 1])
            ratios.append(rates[2] / rates[1])
            print(f"{rates[1]:.2f} and {rates[2]:.2f} images per second: {ratios[-1]:.2f} times", flush=True)
    print(f"median {statistics.median(ratios):.2f} times")


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["workers", "growth", "one"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="demo", help="demo, or a network of ultralytics such as yolo11n")
    parser.add_argument("--counts", default="1000,5000,20000")
    parser.add_argument("--kind", default="audit")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts = [int(text) for text in options.counts.split(",")]
    if options.part == "workers":
        print_workers(options.model, options.images, options.repeats)
    elif options.part == "growth":
        print_growth(counts)
    else:
        print(json.dumps(measure_growth(options.kind, counts[0])))


if __name__ == "__main__":
    main()
