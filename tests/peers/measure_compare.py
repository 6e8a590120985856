"""Detection power and false alarms of ``detcam compare`` on detectors with and without a planted cause.

    python tests/peers/measure_compare.py [--scenario mark] [--seeds 0 1] [--images 60] [--out build/compare]

Each seed trains a detector without the cue, and one with it; both are audited on scenes in which the cue misleads.
Comparing a detector without the cue with one that has it must give a new cause; comparing two trainings with other
seeds, both with the cue or both without, must give none. The script draws subsets of the scenes and prints in how many
of them a cause is called new, and in how many any cause is called changed. Two trainings are two different detectors,
so that a change is not always wrong: the causes of the whole set are printed with their counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import detcam
from detcam.auditing.comparison.bootstrap import Bootstrapped
from detcam.auditing.comparison.causes import CauseChange, compare_causes
from detcam.auditing.comparison.record import AuditRecord
from detcam.benchmarking.planted.detectors import DetectorFamily, detector_families
from detcam.benchmarking.planted.training_cache import PLAIN, TrainingCache
from detcam.synthetic.shortcut_scenarios import NAMES, SCENARIOS, ScenarioName
from detcam.synthetic.shortcuts import ShortcutScene, draw_shortcut_scene

FIRST_SCENE = 700_000
SIZES = (10, 20, 40)
SUBSETS = 50
UNCHANGED = "no significant change"


def write_scenes(
    folder: Path, scenario: ScenarioName, count: int, first_label: int, first_scene: int = FIRST_SCENE
) -> Path:
    """Scenes in which the cue misleads, with their labels in COCO's format."""
    scenes = [draw_shortcut_scene(scenario, first_scene + number, "test") for number in range(count)]
    return write_coco_scenes(folder, scenes, first_label)


def write_coco_scenes(folder: Path, scenes: Sequence[ShortcutScene], first_label: int) -> Path:
    """Scenes as PNG files below ``folder/images``, with their labels in COCO's format; ids are counted from 0."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, scene in enumerate(scenes):
        height, width = scene.image.shape[:2]
        Image.fromarray(scene.image).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for (left, top, right, bottom), label in zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            entry = {"id": len(annotations), "image_id": number, "category_id": label + first_label, "bbox": box}
            annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": first_label + index, "name": name} for index, name in enumerate(NAMES)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def audit(family: DetectorFamily, cache: TrainingCache, name: str, labels: Path, out: Path) -> AuditRecord:
    """Audit a detector, which is trained if it is not in the cache; the report is kept."""
    if not (out / "index.html").exists():
        adapter = family.adapter(cache.detector(family, name))
        detcam.audit(adapter, labels.parent / "images", labels, out=out, explain=10_000, explain_missed=0, resume=True)
    return AuditRecord.of(out)


def changes(old: AuditRecord, new: AuditRecord, images: Sequence[int]) -> list[CauseChange]:
    """Compare the causes of two audits on some of their images; intervals are left out."""
    chosen = set(images)
    parts = [
        replace(record, cases=tuple(case for case in record.cases if case.image_id in chosen)) for record in (old, new)
    ]
    ids = old.evaluation.image_ids
    weights = np.ones((2, len(ids)), dtype=np.uint16)
    return compare_causes(*(Bootstrapped(part, ids, weights) for part in parts))


def report(title: str, old: AuditRecord, new: AuditRecord, count: int, sizes: Sequence[int]) -> None:
    """Print the causes of a pair, and the shares of subsets with a new cause and with any change."""
    print(f"{title}, {count} scenes")
    for change in changes(old, new, range(count)):
        print(f"    {change.cause.name}: {change.old_count} and {change.new_count}, {change.status}")
    random = np.random.default_rng(0)
    for size in sizes:
        called: Counter[str] = Counter()
        for _ in range(SUBSETS):
            statuses = {change.status for change in changes(old, new, random.choice(count, size, replace=False))}
            called["new"] += "new" in statuses
            called["any"] += bool(statuses - {UNCHANGED})
        print(
            f"  {size} scenes: a new cause in {called['new']} of {SUBSETS}, any change in {called['any']}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=SCENARIOS, default="mark")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("build/compare"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    family, out, scenario = detector_families()["two-stage"], arguments.out, arguments.scenario
    labels = write_scenes(out / scenario, scenario, arguments.images, family.first_label)
    sizes = [size for size in SIZES if size < arguments.images]
    audits = {
        (name, seed): audit(
            family, TrainingCache(out / f"seed-{seed}", seed), name, labels, out / f"{scenario}-{name}-{seed}"
        )
        for seed in arguments.seeds
        for name in (PLAIN, scenario)
    }
    for first, second in itertools.product(arguments.seeds, repeat=2):
        title = f"without the cue, seed {first}, and with it, seed {second}"
        report(title, audits[PLAIN, first], audits[scenario, second], arguments.images, sizes)
    for first, second in itertools.combinations(arguments.seeds, 2):
        for name in (PLAIN, scenario):
            title = f"{'without' if name == PLAIN else 'with'} the cue, seeds {first} and {second}"
            report(title, audits[name, first], audits[name, second], arguments.images, sizes)


if __name__ == "__main__":
    main()
