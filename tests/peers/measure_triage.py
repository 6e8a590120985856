"""How well an audit without annotations tells false from true detections, measured with labels that are held back.

    python tests/peers/measure_triage.py [--detector demo|fasterrcnn|yolo] [--images 24] [--split val] [--explain 100]
        [--order score|random]
    python tests/peers/measure_triage.py --detector planted --scenario mark --images 26 [--planted DIR]

Prints the area under the ROC of the trust that the audit assigns, of each of its signals, and of the score alone, with
95 % intervals from a bootstrap over images. False is a detection that matches no object with an IoU of 0.5. In the
demo's scenes, the boats at anchor count as objects. A planted detector is audited on scenes in which its cue misleads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torchvision.ops import box_iou

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import detcam
from detcam.adapters import Adapter
from detcam.auditing import AuditCase
from detcam.benchmarking.planted.detectors import detector_families
from detcam.benchmarking.planted.training_cache import TrainingCache
from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.demo.labels import label_anchored_boats, write_coco
from detcam.synthetic.harbor import draw_scene
from detcam.synthetic.shortcut_scenarios import SCENARIOS
from tests.peers.measure_audit import DATA, detector_and_annotations
from tests.peers.measure_compare import write_scenes


def planted(arguments: argparse.Namespace, folder: Path) -> tuple[Adapter, Annotations]:
    """A two-stage detector with a planted cause, and scenes in which it misleads."""
    family = detector_families()["two-stage"]
    adapter = family.adapter(TrainingCache(arguments.planted).detector(family, arguments.scenario))
    file = write_scenes(folder, arguments.scenario, arguments.images, family.first_label, arguments.first_scene)
    return adapter, Annotations.load(file, folder / "images")


def is_true(case: AuditCase, truth: GroundTruth) -> bool:
    same = truth.labels == case.label
    return bool((box_iou(torch.tensor([case.box_xyxy]), truth.boxes_xyxy[same]) >= 0.5).any()) if same.any() else False


def interval(labels: np.ndarray, values: np.ndarray, images: np.ndarray, other: np.ndarray | None = None) -> str:
    """The area under the ROC, and its interval; with other values, of the difference."""

    def area(rows: np.ndarray) -> float:
        if len(set(labels[rows].tolist())) < 2:
            return float("nan")
        difference = 0.0 if other is None else roc_auc_score(labels[rows], other[rows])
        return float(roc_auc_score(labels[rows], values[rows]) - difference)

    random, unique = np.random.default_rng(0), np.unique(images)
    rows_of = {image: np.flatnonzero(images == image) for image in unique}
    samples = [area(np.concatenate([rows_of[i] for i in random.choice(unique, len(unique))])) for _ in range(500)]
    low, high = np.nanquantile(samples, [0.025, 0.975])
    sign = "+" if other is not None else ""
    return f"{area(np.arange(len(labels))):{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=("demo", "fasterrcnn", "yolo", "planted"), default="demo")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--explain", type=int, default=100)
    parser.add_argument("--order", choices=("score", "random"), default="score", help="which detections are explained")
    parser.add_argument("--score-threshold", type=float, default=0.3)
    parser.add_argument("--scenario", choices=SCENARIOS, default="mark", help="of the planted detector")
    parser.add_argument("--planted", type=Path, default=Path("build/planted/detectors"), help="folder of its weights")
    parser.add_argument("--first-scene", type=int, default=1_100_000, help="first seed of its scenes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.detector == "planted":
            adapter, annotations = planted(arguments, Path(folder))
        else:
            adapter, annotations = detector_and_annotations(arguments.detector, Path(folder))
        if arguments.detector == "demo":
            scenes = [label_anchored_boats(draw_scene(60_000 + seed)) for seed in range(arguments.images)]
            file = write_coco(Path(folder) / "labeled", scenes)
            annotations = Annotations.load(file, file.parent / "images")
        elif arguments.detector != "planted":
            annotations = Annotations.load(DATA / "bccd" / f"{arguments.split}.json", DATA / "bccd" / "images")
        truths = {str(image.path): image for image in annotations.for_classes(adapter.names)[: arguments.images]}
        options = {
            "score_threshold": arguments.score_threshold, "explain": arguments.explain, "explain_order": arguments.order
        }  # fmt: skip
        found = detcam.audit(adapter, list(truths), **options)
        paths = dict(enumerate(truths.values(), 1))
        cases = found.explained
        labels = np.array([is_true(case, paths[int(case.image_id)]) for case in cases])
        images = np.array([int(case.image_id) for case in cases])
    scores = np.array([case.score for case in cases])
    trusts = np.array([case.trust for case in cases])
    print(f"{arguments.detector}: {len(cases)} detections, {int((~labels).sum())} of them false")
    print(f"score alone {interval(labels, scores, images)}")
    print(f"trust       {interval(labels, trusts, images)}; minus the score {interval(labels, trusts, images, scores)}")
    signals = [case.trust_signals or {} for case in cases]
    for name in ("stability", "typicality", "own content", "inside", "own class"):
        values = np.array([each.get(name, np.nan) for each in signals])
        known = ~np.isnan(values)
        if known.sum() > 10 and 0 < labels[known].mean() < 1:
            print(f"{name:11} {interval(labels[known], values[known], images[known])} of {int(known.sum())}")


if __name__ == "__main__":
    main()
