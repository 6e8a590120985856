"""Explanations of photographs against what no explanation can save: decoding, bare passes and encoding.

    python tests/peers/measure_explain.py photographs PHOTO_FOLDER [--model NAME] [--count 100] [--threads 2]
    python tests/peers/measure_explain.py large [--megapixels 12]

``photographs`` explains images with ten boxes each by the default method, and writes overlays and heatmaps. The bare
side decodes the same files, detects boxes in the same batches in inference mode, and encodes the same overlays and
heatmaps, one after the other. The ratio of CPU time is that of the work; the ratio of elapsed time also shows what runs
in parallel.
The boxes of a network with random weights all lie on its coarsest level, where a backward pass costs most; ``--model
bccd`` is the YOLO11n of the reference data.
``large`` explains one drawn image of so many megapixels with ten boxes: CPU time and peak memory of each stage.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import detcam
from detcam.adapters import Adapter, adapt
from detcam.data.opening import IMAGE_SUFFIXES
from detcam.explanation.batch import DEFAULT_IMAGES_IN_MEMORY, explain_files
from detcam.explanation.writer import encode_heatmap, read_heatmap
from detcam.utils.batching import batches
from detcam.visualize.convert import encode_png
from tests.peers.measure_audit import reference_models

BOXES = 10
SELECTION = {"score_threshold": 0.0, "top_k": BOXES}


@dataclass(frozen=True)
class Cost:
    """Elapsed and CPU seconds of a block."""

    wall: float
    cpu: float


@contextmanager
def measured(costs: list[Cost]) -> Iterator[None]:
    """Append the cost of a block to a list."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    costs.append(Cost(time.perf_counter() - wall, time.process_time() - cpu))


def build(name: str) -> Adapter:
    """A detector with seeded random weights, or the reference detector of blood cells."""
    torch.manual_seed(0)
    if name == "bccd":
        return adapt(reference_models().bccd_yolo())
    if name.startswith("yolo"):
        from ultralytics.nn.tasks import DetectionModel

        return adapt(DetectionModel(f"{name}.yaml", nc=80, verbose=False).eval())
    import torchvision.models.detection as zoo

    model: nn.Module = getattr(zoo, name)(weights=None, weights_backbone=None, box_score_thresh=0.0)
    return adapt(model.eval())


def explain_photographs(adapter: Adapter, photographs: list[Path], out: Path) -> Cost:
    """Explain and write all images."""
    costs: list[Cost] = []
    failures: list[str] = []
    with measured(costs):
        explain_files(
            adapter,
            photographs,
            out,
            "auto",
            on_progress=lambda path, entry, message: failures.append(message) if message else None,
            **SELECTION,
        )
    if failures:
        raise RuntimeError(failures[0])
    return costs[0]


def bare(adapter: Adapter, photographs: list[Path], written: Path) -> dict[str, Cost]:
    """Decode all images, run the network, and encode the files that `explain_photographs` wrote."""
    stages: dict[str, list[Cost]] = {"decode": [], "forward": [], "encode": []}
    for group in batches(photographs, DEFAULT_IMAGES_IN_MEMORY):
        with measured(stages["decode"]):
            images = [adapter.reader.read(path) for path in group]
        groups = [adapter.prepare([images[index] for index in part]) for part in adapter.groups(images, len(images))]
        with measured(stages["forward"]), torch.inference_mode():
            for batch in groups:  # with the suppression of boxes, which torchvision's detectors contain
                adapter.detections(adapter.outputs(adapter.forward(batch), batch), batch)
    for path in sorted(written.glob("*.png")):
        if path.name.endswith(".heatmap.png"):
            heatmap = read_heatmap(path)
            with measured(stages["encode"]):
                encode_heatmap(heatmap)
        else:
            overlay = np.asarray(Image.open(path))
            with measured(stages["encode"]):
                encode_png(overlay)
    return {stage: total_cost(costs) for stage, costs in stages.items()}


def total_cost(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    listed = list(costs)
    return Cost(sum(cost.wall for cost in listed), sum(cost.cpu for cost in listed))


def compare(name: str, folder: Path, count: int) -> tuple[Cost, dict[str, Cost]]:
    """Return the cost of detcam, and that of each bare stage."""
    photographs = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)[:count]
    adapter = build(name)
    with tempfile.TemporaryDirectory() as out:
        explain_photographs(adapter, photographs[:4], Path(out, "first"))  # imports and caches
        ours = explain_photographs(adapter, photographs, Path(out, "all"))
        return ours, bare(adapter, photographs, Path(out, "all"))


def print_comparison(name: str, folder: Path, count: int) -> None:
    """Print the costs of detcam and of the bare stages."""
    ours, stages = compare(name, folder, count)
    total = total_cost(stages.values())
    print(f"{name}, {count} photographs, {torch.get_num_threads()} threads: seconds elapsed and of CPU")
    for stage, cost in {**stages, "bare": total, "detcam": ours}.items():
        print(f"  {stage:10} {cost.wall:8.2f} {cost.cpu:8.2f}")
    print(f"  {'ratio':10} {ours.wall / total.wall:8.2f} {ours.cpu / total.cpu:8.2f}")


def memory_in_use() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_memory(run: Callable[[], object]) -> float:
    """Return the peak memory of a call in MiB, beyond what is in use before."""
    before = memory_in_use()
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024 - before


def large(name: str, megapixels: float) -> None:
    """Print CPU time and peak memory of an image of so many megapixels with ten boxes."""
    height = round((megapixels * 1e6 / (4 / 3)) ** 0.5)
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 16, height // 12, 3), np.uint8)
    image = Image.fromarray(coarse).resize((round(height * 4 / 3), height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(np.int16) + generator.integers(-6, 7, (image.height, image.width, 1), np.int16)
    adapter = build(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
        del pixels, image
        small = Path(folder, "small.jpg")
        Image.open(path).resize((640, 480)).save(small)
        passes = peak_memory(lambda: detcam.explain(adapter, small, **SELECTION).save(Path(folder, "first")))
        costs: list[Cost] = []
        found: list[detcam.Explanation] = []

        def explain() -> None:
            with measured(costs):
                found.extend(detcam.explain(adapter, path, **SELECTION))

        def save() -> None:
            with measured(costs):
                found[0].save(Path(folder, "second"))

        peaks = [peak_memory(explain), peak_memory(save)]
        size = sum(file.stat().st_size for file in Path(folder, "second").iterdir()) / 2**20
    print(f"{name}, {megapixels} megapixels, {BOXES} boxes; a small image needs {passes:.0f} MiB")
    for stage, cost, peak in zip(("explain", "save"), costs, peaks, strict=True):
        print(f"  {stage:8} {cost.wall:6.2f} s, CPU {cost.cpu:6.2f} s, peak {peak:6.0f} MiB")
    print(f"  CPU of saving per box {costs[1].cpu / BOXES:.2f} s; files {size:.0f} MiB")


def main() -> None:
    """Run one of the measurements."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["photographs", "large"])
    parser.add_argument("folder", nargs="?", type=Path, help="folder of photographs")
    parser.add_argument("--model", default="yolo11n", help="yolo11n, bccd, or a detector of torchvision")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "large":
        large(options.model, options.megapixels)
    else:
        print_comparison(options.model, options.folder, options.count)


if __name__ == "__main__":
    main()
