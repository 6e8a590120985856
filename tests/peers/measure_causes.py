"""The hierarchy of causes and the inventory on reference detectors, and on a mixture of planted causes.

    python tests/peers/measure_causes.py [--detector harbor|mixture|bccd-yolo|bccd-two-stage|yolox] [--explain 60]
        [--order score|random] [--images N] [--shares 60 30 10] [--coverage] [--planted build/causes]

``harbor`` audits the demonstration's detector on scenes with three planted causes: wakes without a boat (background
errors that rest on their surroundings), buoys whose label is hidden (unlabeled objects), and buoys whose label says
boat (errors of class). ``mixture`` trains a detector that takes barges for boats because of a pond around them, a tag
beside them, or stripes on their hull, each on a third of the scenes, and audits it on scenes in which these errors have
the given shares. The script prints how many groups there are, how pure they are, and, with ``--order random``, whether
the intervals of the inventory contain the true shares. With ``--coverage``, all errors are explained, and it prints in
how many of all samples of ``--explain`` errors the intervals of the inventory contain the shares among all of them. The
other detectors need ../shared/data.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load, save
from scipy.stats import hypergeom
from torchvision.ops import box_iou

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import detcam
from detcam.adapters import Adapter, adapt
from detcam.auditing import Audit, AuditCase
from detcam.auditing.grouping.inventory import UNTESTED_KINDS, VERIFICATION_RATES
from detcam.benchmarking.planted import certification, detectors
from detcam.benchmarking.planted.training_cache import PLAIN, TrainingCache
from detcam.demo.labels import write_coco
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import BOAT_LABEL, DEMO_NAMES, draw_scene
from detcam.synthetic.shortcut_scenarios import SHORTCUTS, ScenarioName, Split
from detcam.synthetic.shortcuts import ShortcutScene, draw_shortcut_scene
from detcam.utils.batching import group_by
from detcam.utils.proportions import Rates, corrected_share
from tests.peers.measure_compare import write_coco_scenes

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FIRST_SCENE = 1_000_000
HIDDEN_SHARE, SWAPPED_SHARE = 0.3, 0.15
"""Shares of the buoys whose label is hidden, and of those whose label says boat."""
MIXTURE: tuple[ScenarioName, ...] = ("context", "mark", "texture")
MIXTURE_STEPS = 400
SUBJECTS = ("harbor", "mixture", "bccd-yolo", "bccd-two-stage", "yolox")
KINDS = {"wake": ("surroundings", "mark"), "hidden label": ("unlabeled object",)}
"""Kinds of evidence that say what was planted."""
MIXTURE_KINDS = {
    "context": ("object and surroundings",),
    "mark": ("surroundings", "mark"),
    "texture": ("part of the object",),
}
"""The pond reaches into the box, the tag lies beside it, the stripes on the hull."""


@dataclass(frozen=True)
class Subject:
    """A detector, annotated images, and the planted cause of a case, which is empty if it is not known."""

    adapter: Adapter
    images: Path
    annotations: Path
    cause: Callable[[AuditCase], str] | None = None
    class_map: dict[str, str] | None = None
    kinds: dict[str, tuple[str, ...]] = field(default_factory=dict)


def harbor(folder: Path, count: int) -> Subject:
    """The demonstration's detector on scenes with planted causes."""
    scenes = [draw_scene(FIRST_SCENE + number) for number in range(count)]
    path = write_coco(folder, scenes)
    data = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    hidden: dict[int, list[list[float]]] = {}
    swapped, kept = set(), []
    for entry in data["annotations"]:
        draw = 1.0 if entry["category_id"] == BOAT_LABEL else rng.random()
        if draw < HIDDEN_SHARE:
            x, y, width, height = entry["bbox"]
            hidden.setdefault(entry["image_id"], []).append([x, y, x + width, y + height])
            continue
        if draw < HIDDEN_SHARE + SWAPPED_SHARE:
            entry["category_id"] = BOAT_LABEL
            swapped.add(entry["id"])
        kept.append(entry)
    path.write_text(json.dumps({**data, "annotations": kept}))

    def cause(case: AuditCase) -> str:
        boxes = torch.tensor(hidden.get(int(case.image_id), [])).reshape(-1, 4)
        if len(boxes) and float(box_iou(torch.tensor([case.box_xyxy]), boxes).amax()) >= 0.5:
            return "hidden label"
        if case.ground_truth is not None and case.ground_truth.annotation_id in swapped:
            return "wrong label"
        scene = scenes[int(case.image_id) - 1]
        ghosts = torch.tensor(np.array(list(scene.ghost_boxes_xyxy.values()))).reshape(-1, 4).float()
        is_wake = len(ghosts) and float(box_iou(torch.tensor([case.box_xyxy]), ghosts).amax()) >= 0.3
        return "wake" if is_wake else "other"

    return Subject(adapt(load_demo_detector(), names=DEMO_NAMES), folder / "images", path, cause, kinds=KINDS)


def own_scene(scenario: ScenarioName, seed: int, split: Split) -> ShortcutScene:
    """A scene of a scenario without the cues of the others, which accompany bodies by chance."""
    scene = draw_shortcut_scene(scenario, seed, split)
    others = {cue for each in MIXTURE if each != scenario for cue in SHORTCUTS[each].cues}
    return scene.without(item.name for item in scene.objects if item.kind in others)


def mixture_detector(planted: Path) -> tuple[Adapter, int]:
    """The detector with three causes of one confusion, trained once, and its label of the first class."""
    family, path = detectors.detector_families()["two-stage"], planted / "two-stage-mixture.safetensors"
    if not path.exists():

        def draw(scenario: str, seed: int, split: Split) -> ShortcutScene:
            return own_scene(MIXTURE[seed % len(MIXTURE)], seed, split)

        start = TrainingCache(planted).detector(family, PLAIN)
        with mock.patch.object(detectors, "draw_shortcut_scene", draw):
            trained = detectors.train_detector(family, MIXTURE[0], "shortcut", MIXTURE_STEPS, start=start)
        path.write_bytes(save({name: value.contiguous() for name, value in trained.state_dict().items()}))
    model = family.build()
    model.load_state_dict(load(path.read_bytes()))
    return family.adapter(model.eval()), family.first_label


def mixture(folder: Path, count: int, planted: Path, shares: Sequence[int]) -> Subject:
    """Scenes with certified errors in the given shares, which vanish without their cue."""
    adapter, first_label = mixture_detector(planted)
    scenes: dict[tuple[str, int], ShortcutScene] = {}
    certified: dict[tuple[str, int], list[torch.Tensor]] = {}
    for scenario, share in zip(MIXTURE, shares, strict=True):
        wanted = round(count * share / sum(shares))
        with mock.patch.object(certification, "draw_shortcut_scene", own_scene):
            found = certification.certify_cases(adapter, first_label, scenario, min_cases=wanted)
        by_scene = group_by(found.cases, lambda case: case.scene.seed)
        while by_scene and sum(map(len, by_scene.values())) - len(next(reversed(by_scene.values()))) >= wanted:
            by_scene.popitem()
        for seed, cases in by_scene.items():
            scenes[scenario, seed] = cases[0].scene
            certified[scenario, seed] = [case.detections.boxes_xyxy[case.index or 0] for case in cases]
    keys = list(scenes)
    labels = write_coco_scenes(folder, list(scenes.values()), first_label)

    def cause(case: AuditCase) -> str:
        key = keys[int(case.image_id)]
        overlap = box_iou(torch.tensor([case.box_xyxy]), torch.stack(certified[key]))
        return key[0] if float(overlap.amax()) >= 0.9 else ""

    return Subject(adapter, folder / "images", labels, cause, kinds=MIXTURE_KINDS)


def bccd(name: str) -> Subject:
    """A reference detector of blood cells."""
    path = DATA / "models" / "build.py"
    spec = importlib.util.spec_from_file_location("reference_models", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise SystemExit(f"no {path}; --detector harbor needs no data")
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    if name == "bccd-yolo":
        adapter = adapt(models.bccd_yolo(), image_size=320)
    else:
        adapter = adapt(models.bccd_fasterrcnn(), names=["background", *models.BCCD_NAMES])
    return Subject(adapter, DATA / "bccd" / "images", DATA / "bccd" / "test.json")


def yolox() -> Subject:
    """YOLOX-Nano on photographs of COCO."""
    from tests.peers.measure_photographs import CLASS_MAPS, PHOTOGRAPHS, build

    adapter, _ = build("yolox")
    path = PHOTOGRAPHS / "val.json"
    categories = {each["name"] for each in json.loads(path.read_text())["categories"]}
    unknown = categories - set(adapter.names.values())
    class_map = {name: other for name, other in CLASS_MAPS.items() if name in unknown}
    return Subject(adapter, PHOTOGRAPHS / "images", path, class_map=class_map or None)


def report_planted(found: Audit, cause: Callable[[AuditCase], str], all_kinds: dict[str, tuple[str, ...]]) -> None:
    """Print purity and number of the groups, and the true shares beside the estimated ones."""
    causes = {case.id: cause(case) for case in found.cases}
    print("planted causes of the explained errors:", dict(Counter(causes[case.id] for case in found.explained)))
    pure = total = 0
    named = set()
    for group in found.groups:
        counts = Counter(causes[name] for name in group.case_ids if causes[name])
        if counts:
            (first, count), *_ = counts.most_common()
            pure, total = pure + count, total + counts.total()
            named.add(first)
            print(f"  group {group.number} ({group.evidence_kind}): {dict(counts)}")
    singles = sum(case.group is None for case in found.explained)
    print(
        f"{len(found.groups)} groups of {len(named)} causes, purity {pure / max(total, 1):.3f}; {singles} single cases"
    )
    errors = [case for case in found.cases if case.is_false_positive and case.score >= found.score_threshold]
    for name, kinds in all_kinds.items():
        truth = np.mean([causes[case.id] == name for case in errors])
        for share in found.inventory:
            if share.label is None and share.population == "false positives" and share.kind in kinds:
                low, high = share.interval
                inside = "inside" if low <= truth <= high else "OUTSIDE"
                print(f"  {name}: true share {truth:.3f}; {share.sentence} -> {inside}")


def report_coverage(found: Audit, subject: Subject, size: int) -> None:
    """Print in how many of all samples of the explained errors the intervals contain the shares among all of them."""
    cases = [case for case in found.explained if case.is_false_positive]
    if not 0 < size < len(cases):
        raise SystemExit(f"expected --explain below the {len(cases)} explained false positives; got {size}")
    of_case = np.array([str(case.evidence_kind) for case in cases])
    causes = np.array([subject.cause(case) if subject.cause is not None else "" for case in cases])
    counts = np.arange(size + 1)
    print(f"all samples of {size} of {len(cases)} false positives; how often the interval contains the share:")

    def report(name: str, is_kind: np.ndarray, truth: float, rates: Rates) -> None:
        """Samples without the kind are left out, since the inventory does not list it then."""
        _, low, high = corrected_share(counts, size, rates, population=len(cases))
        chance = hypergeom(len(cases), int(is_kind.sum()), size).pmf(counts) * (counts > 0)
        print(f"  {name}: {chance[(low <= truth) & (truth <= high)].sum() / chance.sum():.3f} (share {truth:.3f})")

    for kind in sorted(set(of_case.tolist())):
        is_kind = of_case == kind
        report(kind, is_kind, float(is_kind.mean()), Rates() if kind in UNTESTED_KINDS else VERIFICATION_RATES)
    for cause, kinds in subject.kinds.items():
        truth = float(np.mean(causes == cause))
        report(f"planted {cause}, as {' or '.join(kinds)}", np.isin(of_case, kinds), truth, VERIFICATION_RATES)


def main() -> None:
    """Run the audit and print its causes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=SUBJECTS, default="harbor")
    parser.add_argument("--explain", type=int, default=60)
    parser.add_argument("--order", choices=("score", "random"), default="score")
    parser.add_argument("--images", type=int, default=40, help="number of drawn scenes, or of certified errors")
    parser.add_argument(
        "--shares", type=int, nargs=3, default=(1, 1, 1), help="of ponds, tags and stripes, of a mixture"
    )
    parser.add_argument(
        "--coverage", action="store_true", help="of the intervals from samples of --explain errors; explains all"
    )
    parser.add_argument("--planted", type=Path, default=Path("build/causes"), help="folder of trained detectors")
    parser.add_argument("--out", type=Path, help="folder of the report; default: none is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        if arguments.detector == "harbor":
            subject = harbor(Path(name), arguments.images)
        elif arguments.detector == "mixture":
            subject = mixture(Path(name), arguments.images, arguments.planted, arguments.shares)
        else:
            subject = yolox() if arguments.detector == "yolox" else bccd(arguments.detector)
        start = time.perf_counter()
        found = detcam.audit(
            subject.adapter,
            subject.images,
            subject.annotations,
            explain=100_000 if arguments.coverage else arguments.explain,
            explain_missed=0,
            explain_order=arguments.order,
            class_map=subject.class_map,
            out=arguments.out,
        )
    print(f"{arguments.detector}, order {arguments.order}: {found}")
    print(f"{time.perf_counter() - start:.0f} s; grouping {found.timings['grouping']:.2f} s")
    for root in found.causes:
        for depth, cause in root.walk():
            low, high = cause.estimated_interval
            print(
                f"  {'  ' * depth}{cause.name}: {len(cause)} explained, {cause.confirmed_count} confirmed; all errors "
                f"{cause.estimated_count:.0f} ({low:.0f} to {high:.0f}); delta AP {cause.delta_ap:.3f}, "
                f"{cause.estimated_delta_ap:.3f} of all"
            )
    if found.assignment is not None:
        print("assignment:", found.assignment.to_json())
    for share in found.inventory:
        print(f"  {share.sentence}")
    if subject.cause is not None:
        report_planted(found, subject.cause, subject.kinds)
    if arguments.coverage:
        report_coverage(found, subject, arguments.explain)


if __name__ == "__main__":
    main()
