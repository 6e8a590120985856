"""Audits of real photographs, checked without detcam's verification.

    python tests/peers/measure_photographs.py [--detector yolox|fastestdet] [--part train|val] [--explain 60]
        [--method NAME] [--threads 1] [--cases FILE]

An audit explains the false positives with the highest scores. Then each confirmed evidence region is painted with the
mean color of a ring around it, in the photograph, and the network is asked again with its own preprocessing and decode
function: is the detection (same class, an IoU of at least 0.5, a score above the threshold) gone, or, for an error of
location, does its box lie on its object? The same region, moved to random positions, is painted likewise. For a case
that names a cause outside the box, the parts of the evidence outside and inside the box are painted alone: the
statement is true if the first ends the detection and the second does not. Detections that the check's own preprocessing
does not reproduce are left out.

The data (COCO photographs, YOLOX-Nano and FastestDet as ONNX) lie in ../shared/data. Constants are chosen on ``train``;
``val`` is for the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import detcam
from detcam.adapters import Adapter, detector
from detcam.auditing.case import AuditCase
from detcam.auditing.sentences import is_outside
from tests.adapters.custom_models import fastestdet_decode, yolox_decode

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PHOTOGRAPHS = DATA / "coco_tiny"
SCORE_THRESHOLD = 0.3
RING = 0.35
"""Width of the ring around a region, relative to the square root of its area."""
RANDOM_POSITIONS = 2
CLASS_MAPS = {
    "couch": "sofa",
    "airplane": "aeroplane",
    "dining table": "diningtable",
    "potted plant": "pottedplant",
    "motorcycle": "motorbike",
    "tv": "tvmonitor",
}


@dataclass(frozen=True)
class Network:
    """A network with its own preprocessing and decode function.

    Attributes:
        module: the network.
        decode: from its output to boxes (1, N, 4) in input pixels, class scores (1, N, C) and, for some, objectness.
        size: height and width of its input.
        prepare: from an (H, W, 3) uint8 RGB image to its input (1, 3, size, size), and the scales (x, y) of boxes.
    """

    module: nn.Module
    decode: Callable[[Tensor], tuple[Tensor, ...]]
    size: int
    prepare: Callable[[np.ndarray], tuple[Tensor, tuple[float, float]]]

    @torch.inference_mode()
    def score(self, image: np.ndarray, case: AuditCase) -> float:
        """The highest score of a case's class among boxes that overlap its box by at least one half.

        0 if, for an error of location, the box with that score lies on its object.
        """
        inputs, (scale_x, scale_y) = self.prepare(image)
        boxes, scores = self.decode(self.module(inputs))[:2]
        scale = torch.tensor([scale_x, scale_y, scale_x, scale_y])
        target = torch.tensor(case.box_xyxy) * scale
        height, width = image.shape[0] * scale_y, image.shape[1] * scale_x
        limits = torch.tensor([width, height, width, height])
        candidates = boxes[0].clamp(min=0).minimum(limits)
        near = overlap(candidates, target) >= (0.8 if case.type == "duplicate" else 0.5)
        if not bool(near.any()):
            return 0.0
        of_class = scores[0, :, case.label].where(near, torch.tensor(-1.0))
        best = int(of_class.argmax())
        if case.type == "localization" and case.ground_truth is not None:
            reaches = overlap(candidates[best : best + 1], torch.tensor(case.ground_truth.box_xyxy) * scale) >= 0.5
            return 0.0 if bool(reaches) else float(of_class[best])
        return float(of_class[best])


def overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of boxes (N, 4) with one box (4,)."""
    top, bottom = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    shared = (bottom - top).clamp(min=0).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) + (box[2:] - box[:2]).prod() - shared
    return shared / union.clamp(min=1e-9)


def prepare_yolox(image: np.ndarray) -> tuple[Tensor, tuple[float, float]]:
    """Resize with the aspect ratio kept, pad right and below with 114; BGR in 0 to 255."""
    scale = min(416 / image.shape[0], 416 / image.shape[1])
    width, height = int(image.shape[1] * scale), int(image.shape[0] * scale)
    canvas = np.full((416, 416, 3), 114, np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    inputs = torch.from_numpy(canvas[..., ::-1].transpose(2, 0, 1).astype(np.float32))[None]
    return inputs, (width / image.shape[1], height / image.shape[0])


def prepare_fastestdet(image: np.ndarray) -> tuple[Tensor, tuple[float, float]]:
    """Stretch to 352 pixels; BGR in 0 to 1."""
    small = cv2.resize(image, (352, 352), interpolation=cv2.INTER_LINEAR)
    inputs = torch.from_numpy(small[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255)[None]
    return inputs, (352 / image.shape[1], 352 / image.shape[0])


def build(name: str) -> tuple[Adapter, Network]:
    """The adapter of a detector for the audit, and the same network for the check."""
    import onnx2torch

    names = (DATA / "fastestdet" / "coco.names").read_text().splitlines()
    if name == "yolox":
        module = onnx2torch.convert(str(DATA / "yolox_nano" / "yolox_nano.onnx")).eval()
        adapter = detector(
            module,
            yolox_decode,
            image_size=416,
            letterbox="top-left",
            preprocess=lambda rgb: rgb.flip(0) * 255,
            max_batch_size=1,
            names=names,
        )
        return adapter, Network(module, yolox_decode, 416, prepare_yolox)
    module = onnx2torch.convert(str(DATA / "fastestdet" / "fastestdet.onnx")).eval()
    adapter = detector(
        module, fastestdet_decode, image_size=352, preprocess=lambda rgb: rgb.flip(0), max_batch_size=1, names=names
    )
    return adapter, Network(module, fastestdet_decode, 352, prepare_fastestdet)


def paint(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Paint each connected part of a region (H, W) bool with the mean color of a ring around it."""
    painted = image.copy()
    count, parts = cv2.connectedComponents(region.astype(np.uint8))
    for part in range(1, count):
        inside = (parts == part).astype(np.uint8)
        width = max(2, round(RING * float(inside.sum()) ** 0.5))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
        ring = (cv2.dilate(inside, kernel) > 0) & ~region
        painted[inside > 0] = image[ring if ring.any() else ~region].mean(0) if not region.all() else 128
    return painted


def moved(region: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
    """A region moved to a random position where it does not overlap itself."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    part = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for _ in range(200):
        top = int(generator.integers(0, region.shape[0] - part.shape[0] + 1))
        left = int(generator.integers(0, region.shape[1] - part.shape[1] + 1))
        result = np.zeros_like(region)
        result[top : top + part.shape[0], left : left + part.shape[1]] = part
        if not (result & region).any():
            return result
    return None


def box_mask(case: AuditCase) -> np.ndarray:
    """The pixels of a case's box, and of the object that it concerns."""
    mask = np.zeros(case.image_size_hw, bool)
    for x1, y1, x2, y2 in [case.box_xyxy] + ([case.ground_truth.box_xyxy] if case.ground_truth else []):
        mask[max(int(y1), 0) : round(y2), max(int(x1), 0) : round(x2)] = True
    return mask


def check(network: Network, case: AuditCase, folder: Path, files: dict[str, Any]) -> dict[str, Any]:
    """Check one case by painting."""
    image = cv2.imread(str(PHOTOGRAPHS / "images" / case.file_name))[..., ::-1].copy()
    stored = cv2.imread(str(folder / files["evidence"]), cv2.IMREAD_GRAYSCALE)
    region = cv2.resize(stored, image.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0

    def gone(removed: np.ndarray) -> bool:
        return network.score(paint(image, removed), case) < SCORE_THRESHOLD

    generator = np.random.default_rng(sum(case.id.encode()))
    random = [each for each in (moved(region, generator) for _ in range(RANDOM_POSITIONS)) if each is not None]
    inside = box_mask(case)
    return {
        "original": network.score(image, case),
        "gone": gone(region),
        "random": len(random),
        "random_kills": sum(gone(each) for each in random),
        "outside_true": gone(region & ~inside) and not gone(region & inside),
    }


def says_context(case: AuditCase) -> bool:
    """Whether the audit says that the cause lies outside the box."""
    return case.background_type == "context" or (case.confirmed and is_outside(case))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=["yolox", "fastestdet"], default="yolox")
    parser.add_argument("--part", choices=["train", "val"], default="val")
    parser.add_argument("--explain", type=int, default=60)
    parser.add_argument("--method", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", type=Path, help="write one line a case to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    adapter, network = build(arguments.detector)
    options = {} if arguments.method is None else {"method": arguments.method}
    known = set(adapter.names.values())
    categories = {
        each["name"] for each in json.loads((PHOTOGRAPHS / f"{arguments.part}.json").read_text())["categories"]
    }
    class_map = {name: other for name, other in CLASS_MAPS.items() if name in categories - known}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        found = detcam.audit(
            adapter,
            PHOTOGRAPHS / "images",
            PHOTOGRAPHS / f"{arguments.part}.json",
            out=folder,
            score_threshold=SCORE_THRESHOLD,
            explain=arguments.explain,
            explain_missed=0,
            class_map=class_map or None,
            **options,
        )
        seconds = time.perf_counter() - start
        entries = {entry["id"]: entry["files"] for entry in json.loads((folder / "audit.json").read_text())["cases"]}
        explained = [case for case in found.cases if case.trials or case.method]
        confirmed = found.confirmed
        checks = {case.id: check(network, case, folder, entries[case.id]) for case in confirmed}
    image = np.zeros((416, 416, 3), np.uint8)
    inputs, _ = network.prepare(image)
    times = []
    with torch.inference_mode():
        for _ in range(20):
            begin = time.perf_counter()
            network.module(inputs)
            times.append(time.perf_counter() - begin)
    bare = statistics.median(times)
    context = [case for case in explained if says_context(case)]
    true_context = sum(case.id in checks and checks[case.id]["outside_true"] for case in context)
    checked = [each for each in checks.values() if each["original"] >= SCORE_THRESHOLD]
    gone = sum(each["gone"] for each in checked)
    random = sum(each["random"] for each in checked)
    kills = sum(each["random_kills"] for each in checked)
    explaining = found.timings["explaining"]
    areas = [case.evidence_fraction for case in confirmed]
    print(f"{arguments.detector}, {arguments.part}, method {arguments.method or 'default'}: {len(explained)} explained")
    print(f"confirmed {len(confirmed)} of {len(explained)}: {len(confirmed) / max(len(explained), 1):.0%}")
    print(
        f"{len(checked)} of these are detections for the check as well; gone: {gone}: {gone / max(len(checked), 1):.0%}"
    )
    print(f"random positions that end it: {kills} of {random}: {kills / max(random, 1):.1%}")
    print(f"median area of the evidence: {statistics.median(areas) if areas else float('nan'):.2%} of the image")
    print(f"said context: {len(context)}, true: {true_context}")
    passes = statistics.mean(case.forward_passes for case in explained)
    print(
        f"explaining: {explaining:.0f} s, {explaining / max(len(explained), 1) / bare:.1f} bare passes a case "
        f"(of {bare * 1000:.0f} ms); counted {passes:.1f}; all {seconds:.0f} s"
    )
    print("proposals of confirmed cases:", dict(Counter(case.proposal for case in confirmed)))
    print("verdicts:", dict(Counter(case.verdict for case in explained)))
    print(
        "not confirmed:", dict(Counter(case.reason.split("(")[0][:60] for case in explained if case.id not in checks))
    )
    if arguments.cases:
        lines = [
            json.dumps(
                {
                    "id": case.id,
                    "name": case.name,
                    "type": case.type,
                    "score": case.score,
                    "verdict": case.verdict,
                    "proposal": case.proposal,
                    "area": case.evidence_fraction,
                    "reason": case.reason,
                    "passes": case.forward_passes,
                    "location": case.evidence_location,
                    "background": case.background_type,
                    "check": checks.get(case.id),
                }
            )
            for case in sorted(explained, key=lambda case: -case.score)
        ]
        arguments.cases.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
