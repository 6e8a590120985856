"""What an audit costs, in bare passes of the detector in the same process.

    python tests/peers/measure_audit.py [--detector demo|fasterrcnn|yolo] [--explain 200] [--images N] [--threads 2]
        [--memory] [--profile FILE]

``demo`` audits the package's own detector on scenes that it draws, and needs nothing else; ``fasterrcnn`` and ``yolo``
are the reference detectors of blood cells in ../shared/data. Printed are: what explanation, verification and controls
take a case, in bare passes (one image's share of a batch of eight, in inference mode, timed after every batch of
images, so that a busy machine slows both alike); the passes that were counted; matching against detection; writing a
hundred cases; and with ``--memory`` the peak memory with half of the images and with all of them, each in a process
of its own.
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
from detcam.data.annotations import Annotations
from detcam.data.images import load_image
from tests.auditing.scenes import write_scenes

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DEMO_SCENES = range(1_000_000, 1_000_072)
BATCH = 8


def reference_models() -> ModuleType:
    """The module that builds the reference detectors."""
    path = DATA / "models" / "build.py"
    spec = importlib.util.spec_from_file_location("reference_models", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise SystemExit(f"no {path}; --detector demo needs no data")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def subject(detector: str, scratch: Path) -> tuple[Adapter, Annotations]:
    """A detector, and the images that it is audited on."""
    if detector == "demo":
        from detcam.demo.model import load_demo_detector
        from detcam.synthetic.harbour import DEMO_NAMES

        file = write_scenes(scratch, DEMO_SCENES)
        return adapt(load_demo_detector(), names=DEMO_NAMES), Annotations.load(file, scratch / "images")
    models = reference_models()
    names = list(models.BCCD_NAMES)
    truth = Annotations.load(DATA / "bccd" / "test.json", DATA / "bccd" / "images")
    if detector == "yolo":
        return adapt(models.bccd_yolo(), image_size=320), truth
    return adapt(models.bccd_fasterrcnn(), names=["background", *names]), truth


class Bare:
    """Times bare passes of eight images between the parts of an audit."""

    def __init__(self, adapter: Adapter, truth: Annotations) -> None:
        self.plain = adapter.without_layers()
        self.batch = self.plain.prepare([load_image(path) for path in truth.paths[:BATCH]])
        self.times: list[float] = []
        self.inside = 0.0
        self.run()
        self.times.clear()

    def run(self) -> float:
        """One pass, timed; its seconds."""
        start = time.perf_counter()
        with torch.inference_mode():
            self.plain.forward(self.batch)
        self.times.append(time.perf_counter() - start)
        return self.times[-1]

    def after_each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a bare pass after each call."""

        def called(*arguments: Any, **options: Any) -> Any:
            found = function(*arguments, **options)
            self.inside += self.run()
            return found

        return called

    @property
    def image(self) -> float:
        """Seconds an image, mean: what the whole audit is compared with."""
        return statistics.mean(self.times) / BATCH


def run(adapter: Adapter, truth: Annotations, out: Path, arguments: argparse.Namespace) -> Audit:
    """The audit that is measured."""
    return detcam.audit(
        adapter,
        truth.paths[0].parent,
        truth,
        out=out,
        explain=arguments.explain,
        explain_missed=0,
        score_threshold=arguments.score_threshold,
        method=arguments.method,
    )


def peak(channel: multiprocessing.connection.Connection, images: int, arguments: argparse.Namespace) -> None:
    """Peak memory of an audit of some images, in MiB."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        adapter, truth = subject(arguments.detector, Path(folder) / "data")
        run(adapter, truth[:images], Path(folder) / "out", arguments)
    status = Path("/proc/self/status").read_text().splitlines()
    channel.send(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024)


def peaks(count: int, arguments: argparse.Namespace) -> list[float]:
    """Peak memory with half of the images, and with all."""
    context = multiprocessing.get_context("spawn")
    found = []
    for images in (count // 2, count):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=peak, args=(send, images, arguments))
        process.start()
        found.append(receive.recv())
        process.join()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=("demo", "fasterrcnn", "yolo"), default="demo")
    parser.add_argument("--explain", type=int, default=200, help="how many false positives are explained")
    parser.add_argument("--images", type=int, help="only the first so many")
    parser.add_argument("--score-threshold", type=float, default=0.3)
    parser.add_argument("--method", default=detcam.auditing.__kwdefaults__["method"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="measure peak memory as well")
    parser.add_argument("--out", type=Path, help="keep the report in this folder")
    parser.add_argument("--profile", type=Path, help="write cProfile's statistics of the audit")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        adapter, truth = subject(arguments.detector, Path(folder) / "data")
        truth = truth[: arguments.images]
        bare = Bare(adapter, truth)
        profile = cProfile.Profile()
        with mock.patch.object(ErrorExplainer, "explain", bare.after_each(ErrorExplainer.explain)):
            if arguments.profile:
                profile.enable()
            found = run(adapter, truth, arguments.out or Path(folder) / "out", arguments)
            profile.disable()
        if arguments.profile:
            profile.dump_stats(arguments.profile)
    tell(found, bare, len(truth))
    if arguments.memory:
        half, whole = peaks(len(truth), arguments)
        print(f"peak memory: {half:.0f} MiB with {len(truth) // 2} images, {whole:.0f} MiB with {len(truth)}")


def tell(found: Audit, bare: Bare, images: int) -> None:
    """Print what was measured."""
    cases, spent = found.explained, found.timings
    count = max(len(cases), 1)
    kinds = {kind: sum(case.type == kind for case in cases) for kind in sorted({case.type for case in cases})}
    print(f"{images} images, {len(cases)} cases explained {json.dumps(kinds)}, {len(found.confirmed)} confirmed")
    print(f"average precision {found.analysis.average_precision:.3f}; {found.seconds:.1f} s in all")
    one = bare.image
    print(f"a bare pass takes {1000 * one:.1f} ms an image")
    print(f"detection: {spent['detecting']:.1f} s, {spent['detecting'] / images / one:.2f} bare passes an image")
    counted = sum(case.forward_passes for case in cases) / count
    passes = (spent["explaining"] - bare.inside + spent["comparing"]) / count / one
    print(f"a case: {passes:.1f} bare passes in time; {counted:.1f} forward passes counted")
    print(f"matching: {spent['matching'] / max(spent['detecting'], 1e-9):.2%} of detection")
    print(f"writing: {100 * spent['writing'] / count:.2f} s per hundred cases; grouping {spent['grouping']:.2f} s")


if __name__ == "__main__":
    main()
