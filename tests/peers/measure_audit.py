"""The cost of an audit, in forward passes of the detector in the same process.

    python tests/peers/measure_audit.py [--detector demo|fasterrcnn|yolo|yolox] [--explain 200] [--images N]
        [--threads 2] [--memory] [--profile FILE]

``demo`` audits the demo detector on drawn scenes; ``fasterrcnn`` and ``yolo`` are the reference detectors of blood
cells in ../shared/data; ``yolox`` is a YOLOX-Nano on photographs. The script prints the CPU time per case of
explanation, verification and controls, in forward passes, as a whole and by part; the counted forward passes; the time
of matching relative to detection; the time to write a hundred cases; and with ``--memory`` the peak memory for half of
the images and for all, each in a new process. A forward pass is one image's share of a batch of eight in inference
mode, with the detector's head and its suppression of boxes. Its CPU time is measured after every batch of images, so
that other load on the machine affects both; the median counts.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import detcam
from detcam.adapters import Adapter, adapt
from detcam.auditing import Audit
from detcam.auditing.explainer import ErrorExplainer
from detcam.auditing.pipeline import DEFAULT_METHOD
from detcam.data.annotations import Annotations
from detcam.data.images import load_image
from tests.auditing.scenes import write_scenes
from tests.peers.audit_parts import PartTimer
from tests.peers.measure_photographs import CLASS_MAPS, PHOTOGRAPHS, build

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DEMO_SCENES = range(1_000_000, 1_000_072)
BATCH = 8
RUNS = 3
"""Number of timed forward passes after each batch of explained images."""


def reference_models() -> ModuleType:
    """Import the module that builds the reference models."""
    path = DATA / "models" / "build.py"
    spec = importlib.util.spec_from_file_location("reference_models", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise SystemExit(f"no {path}; --detector demo needs no data")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def detector_and_annotations(detector: str, scratch: Path) -> tuple[Adapter, Annotations]:
    """Return a detector and annotated images; `scratch` is the folder of the drawn scenes."""
    if detector == "demo":
        from detcam.demo.model import load_demo_detector
        from detcam.synthetic.harbor import DEMO_NAMES

        file = write_scenes(scratch, DEMO_SCENES)
        return adapt(load_demo_detector(), names=DEMO_NAMES), Annotations.load(file, scratch / "images")
    models = reference_models()
    names = list(models.BCCD_NAMES)
    annotations = Annotations.load(DATA / "bccd" / "test.json", DATA / "bccd" / "images")
    if detector == "yolox":
        annotations = Annotations.load(PHOTOGRAPHS / "val.json", PHOTOGRAPHS / "images")
        return build("yolox")[0], annotations
    if detector == "yolo":
        return adapt(models.bccd_yolo(), image_size=320), annotations
    return adapt(models.bccd_fasterrcnn(), names=["background", *names]), annotations


class ForwardPassTimer:
    """Times forward passes of eight images between the parts of an audit."""

    def __init__(self, adapter: Adapter, annotations: Annotations) -> None:
        self.adapter = adapter.without_layers()
        count = adapter.max_batch_size or BATCH
        self.batch = self.adapter.prepare([load_image(path) for path in annotations.paths[:count]])
        self.times: list[float] = []
        self.run()
        self.times.clear()

    def run(self) -> None:
        """Run one forward pass and keep its CPU time in seconds."""
        start = time.process_time()
        with torch.inference_mode():  # adapters may run the head when the output is read
            self.adapter.detections(self.adapter.outputs(self.adapter.forward(self.batch), self.batch), self.batch)
        self.times.append(time.process_time() - start)

    def after_each(self, function: Callable[..., Any], parts: PartTimer) -> Callable[..., Any]:
        """Wrap a function so that a timed forward pass follows each call, which belongs to no part."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            with parts.paused():
                for _ in range(RUNS):
                    self.run()
            return result

        return wrapped

    @property
    def seconds_per_image(self) -> float:
        """Median CPU time of a forward pass per image."""
        return statistics.median(self.times) / len(self.batch.inputs)


def run_audit(adapter: Adapter, annotations: Annotations, out: Path, arguments: argparse.Namespace) -> Audit:
    """Run the measured audit."""
    known = set(adapter.names.values())
    class_map = {name: other for name, other in CLASS_MAPS.items() if arguments.detector == "yolox" and other in known}
    return detcam.audit(
        adapter,
        annotations.paths[0].parent,
        annotations,
        out=out,
        explain=arguments.explain,
        explain_missed=0,
        score_threshold=arguments.score_threshold,
        class_map=class_map or None,
        method=arguments.method,
    )


def measure_peak(channel: multiprocessing.connection.Connection, images: int, arguments: argparse.Namespace) -> None:
    """Send the peak memory in MiB of an audit of the first images."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        adapter, annotations = detector_and_annotations(arguments.detector, Path(folder) / "data")
        run_audit(adapter, annotations[:images], Path(folder) / "out", arguments)
    status = Path("/proc/self/status").read_text().splitlines()
    channel.send(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024)


def peak_memory(count: int, arguments: argparse.Namespace) -> list[float]:
    """Return the peak memory in MiB for half of the images and for all."""
    context = multiprocessing.get_context("spawn")
    peaks = []
    for images in (count // 2, count):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=measure_peak, args=(send, images, arguments))
        process.start()
        peaks.append(receive.recv())
        process.join()
    return peaks


def main() -> None:
    """Run the audit and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=("demo", "fasterrcnn", "yolo", "yolox"), default="demo")
    parser.add_argument("--explain", type=int, default=200, help="number of explained false positives")
    parser.add_argument("--images", type=int, help="maximum number of images")
    parser.add_argument("--score-threshold", type=float, default=0.3)
    parser.add_argument("--method", default=DEFAULT_METHOD, help="method name; see 'detcam methods'")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory")
    parser.add_argument("--out", type=Path, help="folder of the report; default: a temporary one")
    parser.add_argument("--profile", type=Path, help="file for the cProfile statistics of the audit")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        adapter, annotations = detector_and_annotations(arguments.detector, Path(folder) / "data")
        annotations = annotations[: arguments.images]
        timer = ForwardPassTimer(adapter, annotations)
        profile, parts = cProfile.Profile(), PartTimer()
        explain = timer.after_each(ErrorExplainer.explain, parts)
        with mock.patch.object(ErrorExplainer, "explain", explain), parts.active(adapter):
            if arguments.profile:
                profile.enable()
            audit = run_audit(adapter, annotations, arguments.out or Path(folder) / "out", arguments)
            profile.disable()
        if arguments.profile:
            profile.dump_stats(arguments.profile)
    report(audit, timer, parts, len(annotations))
    if arguments.memory:
        count = len(annotations)
        half, full = peak_memory(count, arguments)
        print(f"peak memory: {half:.0f} MiB for {count // 2} images, {full:.0f} MiB for {count}")


def report(audit: Audit, timer: ForwardPassTimer, parts: PartTimer, images: int) -> None:
    """Print the measurements."""
    cases, seconds, per_image = audit.explained, audit.timings, timer.seconds_per_image
    count = max(len(cases), 1)
    types = dict(Counter(sorted(case.type for case in cases)))
    print(f"{images} images, {len(cases)} cases explained {json.dumps(types)}, {len(audit.confirmed)} confirmed")
    print(f"average precision {audit.analysis.average_precision:.3f}; total time {audit.seconds:.1f} s")
    print(f"forward pass: {1000 * per_image:.1f} ms of CPU time per image")
    counted = sum(case.forward_passes for case in cases) / count
    passes = {name: each / count / per_image for name, each in parts.seconds.most_common()}
    print(f"case: the CPU time of {sum(passes.values()):.1f} forward passes; {counted:.1f} forward passes counted")
    print("| part | forward passes a case |\n|---|---|")
    for name, each in passes.items():
        print(f"| {name} | {each:.1f} |")
    print(f"detection: {seconds['detecting']:.1f} s")
    print(f"matching: {seconds['matching'] / max(seconds['detecting'], 1e-9):.2%} of detection")
    print(f"writing: {100 * seconds['writing'] / count:.2f} s per hundred cases; grouping: {seconds['grouping']:.2f} s")


if __name__ == "__main__":
    main()
