"""A sample audit of harbor scenes: every error type, explained and unexplained cases, and names with markup."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detcam.auditing.analysis import ClassSummary
from detcam.auditing.case import (
    AuditCase,
    Box,
    CaseMaps,
    CasePart,
    ErrorGroup,
    EvidenceLocation,
    Grade,
    GroundTruthObject,
    Intervention,
    Trial,
)
from detcam.auditing.errors import ERROR_TYPES, ErrorType
from detcam.auditing.grouping.assignment import assign_errors
from detcam.auditing.grouping.evidence_kind import evidence_kind
from detcam.auditing.grouping.hierarchy import build_causes
from detcam.auditing.grouping.inventory import estimate_shares
from detcam.auditing.report import ReportSummary, ReportWriter
from detcam.auditing.report.curves import THRESHOLDS, ScoreCurves
from detcam.data.ground_truth import GroundTruth
from detcam.data.issues import DataIssue, DataIssues
from detcam.synthetic.harbor import DEMO_NAMES, HarborScene, draw_scene

NAMES = dict(enumerate(DEMO_NAMES))
HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=1"> \'ü→中 & "quoted"'
REASONS: dict[Grade, str] = {
    "strong": "absent without the evidence with both fills, present in both controls",
    "not confirmed": "absent without the evidence, and also in a random control",
    "not tested": "",
}


@dataclass(frozen=True)
class SampleImage:
    """An image of the audit, and its cases with their maps."""

    scene: HarborScene
    truths: GroundTruth
    cases: list[tuple[AuditCase, CaseMaps | None]]


def truths_of(scene: HarborScene, image_id: int | str, file_name: str, names: dict[int, str]) -> GroundTruth:
    boxes = torch.from_numpy(scene.boxes_xyxy)
    count = len(boxes)
    return GroundTruth(
        image_id=image_id,
        file_name=file_name,
        path=Path(file_name),
        image_size_hw=scene.image.shape[:2],
        boxes_xyxy=boxes,
        boxes_xywh=np.zeros((count, 4)),
        labels=torch.from_numpy(scene.labels),
        category_ids=torch.from_numpy(scene.labels + 10),
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count),
        ids=torch.arange(count) + 100,
        segmentations=(None,) * count,
        names=names,
    )


def blob(size_hw: tuple[int, int], box: Box, rng: np.random.Generator) -> np.ndarray:
    """Return a heatmap with its maximum in a box and weaker blobs elsewhere: (H, W) uint8, maximum 255."""
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    left, top, right, bottom = box
    x, y = (columns - (left + right) / 2) / (right - left), (rows - (top + bottom) / 2) / (bottom - top)
    heat = np.exp(-2 * (x**2 + y**2))
    for _ in range(3):
        x, y = columns - rng.uniform(0, size_hw[1]), rows - rng.uniform(0, size_hw[0])
        heat += rng.uniform(0.05, 0.25) * np.exp(-(x**2 + y**2) / 300)
    return np.rint(255 * heat / heat.max()).astype(np.uint8)


def make_images(
    seeds: Iterator[int] | range, *, names: dict[int, str] | None = None, hostile: bool = False
) -> list[SampleImage]:
    """Return scenes with their cases, determined by the seeds."""
    return [_image(seed, names or NAMES, hostile) for seed in seeds]


def _image(seed: int, names: dict[int, str], hostile: bool) -> SampleImage:
    scene, rng = draw_scene(seed), np.random.default_rng(seed)
    file_name = f"{HOSTILE}/{seed}.png" if hostile else f"harbor/Scene {seed:03d}.png"
    truths = truths_of(scene, seed, file_name, names)
    cases: list[tuple[AuditCase, CaseMaps | None]] = []

    def add(
        kind: ErrorType,
        label: int,
        box: np.ndarray,
        cause: np.ndarray,
        truth: GroundTruthObject | None,
        location: EvidenceLocation,
    ) -> None:
        number = len(cases)
        case = AuditCase(
            id=f"image-{seed}-{'missed' if kind == 'missed' else 'detection'}-{number}",
            image_id=seed,
            file_name=file_name,
            image_size_hw=scene.image.shape[:2],
            type=kind,
            label=label,
            name=names[label],
            score=round(float(rng.uniform(0.1, 0.99)), 4),
            box_xyxy=tuple(box.tolist()),
            is_false_positive=kind != "missed",
            ground_truth=truth,
            delta_ap=0.0 if kind == "missed" else round(float(rng.gamma(1, 0.004)), 6),
            failure_stage="suppressed" if kind == "missed" else "",
        )
        explained = number % 4 != 3
        maps = _maps(scene, tuple(cause.tolist()), rng) if explained else None
        cases.append((_explained(case, maps, location, rng) if maps is not None else case, maps))

    for ghost, box in scene.ghost_boxes_xyxy.items():
        add("background", 1, box, scene.object(ghost).box_xyxy, None, "scene" if seed % 3 else "ring")
    for number, (box, label) in enumerate(zip(scene.boxes_xyxy, scene.labels.tolist(), strict=True)):
        truth = GroundTruthObject(tuple(box.tolist()), label, names[label], 0.62, 100 + number)
        shift = 0.45 * (box[2] - box[0])
        moved = np.clip(box + np.float32([shift, 0, shift, 0]), 0, 256)
        if (seed + number) % 3 == 0:
            add("localization", label, moved, box, replace(truth, iou=0.38), "ground truth")
        elif (seed + number) % 3 == 1:
            add("classification", 3 - label, box, box, truth, "ground truth")
        else:
            add("duplicate", label, box + 2, box, replace(truth, iou=0.9), "predicted box")
    for number, item in enumerate(scene.of_kind("anchored")):
        truth = GroundTruthObject(tuple(item.box_xyxy.tolist()), 1, names[1], 0.0, 200 + number)
        add("missed", 1, item.box_xyxy, item.box_xyxy, truth, "same class")
    return SampleImage(scene, truths, cases)


def _maps(scene: HarborScene, cause: Box, rng: np.random.Generator) -> CaseMaps:
    heat = blob(scene.image.shape[:2], cause, rng)
    evidence = heat >= 140
    needed = evidence | np.roll(evidence, (20, -60), axis=(0, 1))
    return CaseMaps(heat, evidence, needed, np.roll(evidence, (37, 90), axis=(0, 1)))


def _explained(case: AuditCase, maps: CaseMaps, location: EvidenceLocation, rng: np.random.Generator) -> AuditCase:
    verdict: Grade = "strong" if rng.random() < 0.65 else "not confirmed"
    rest = rng.dirichlet(np.ones(4)) * 0.008
    others: list[EvidenceLocation] = [
        other for other in ("predicted box", "ground truth", "same class", "ring", "scene") if other != location
    ]
    interventions: list[tuple[Intervention, float]] = [
        ("without evidence", 0.08), ("random control", 0.97), ("box control", 0.85),
    ]  # fmt: skip
    trials = tuple(
        Trial(intervention, fill, round(case.score * part, 4), "vanished" if part < 0.3 else "unchanged")
        for intervention, part in interventions
        for fill in ("ring", "linear")
    )
    row, column = np.unravel_index(int(maps.heatmap.argmax()), maps.heatmap.shape)
    case = replace(
        case,
        question=f"why {case.name} here?",
        method="ReachCAM",
        evidence_shares={location: 0.992, **dict(zip(others, rest.tolist(), strict=True))},
        evidence_location=location,
        evidence_fraction=float(maps.evidence.mean()),
        minimal_region_fraction=float(maps.evidence.mean()) if verdict == "strong" else None,
        evidence_box_xyxy=case.box_xyxy,
        evidence_form="area",
        peak_xy=(int(column), int(row)),
        trials=trials,
        parts=(CasePart(0.01, location, 0.2, needed=True), CasePart(0.003, "ring", 0.45, needed=False)),
        proposal=("product of gradients", "segments")[int(rng.random() < 0.4)],
        verdict=verdict,
        effect=0.8 if verdict == "strong" else 0.1,
        error_rate=0.01 if verdict == "strong" else float("nan"),
        reason=REASONS[verdict],
        sentence=f"{case.name} with evidence in the {location}; {verdict}: {REASONS[verdict]}",
        background_type=None
        if case.type != "background"
        else "context"
        if rng.random() < 0.5
        else "missing annotation",
        typicality=0.42 if case.type == "background" else float("nan"),
        forward_passes=38.5,
    )
    return replace(case, evidence_kind=evidence_kind(case))


def summary_of(images: list[SampleImage], **overrides: object) -> ReportSummary:
    """Return a summary of the images, with the cases grouped by type, class and evidence location."""
    cases = [case for image in images for case, _ in image.cases]
    keys = Counter((case.type, case.label, case.evidence_location) for case in cases if case.method)
    groups = []
    ranked = sorted(
        keys.most_common(),
        key=lambda item: (
            -sum(case.delta_ap for case in cases if (case.type, case.label, case.evidence_location) == item[0])
        ),
    )
    for number, ((kind, label, location), size) in enumerate(ranked):
        inside = [case for case in cases if (case.type, case.label, case.evidence_location) == (kind, label, location)]
        confirmed = sum(case.confirmed for case in inside)
        groups.append(
            ErrorGroup(
                number=number,
                type=kind,
                label=label,
                name=inside[0].name,
                evidence_location=location,
                case_ids=tuple(case.id for case in inside),
                delta_ap=round(sum(case.delta_ap for case in inside), 6),
                confirmed_count=confirmed,
                background_type=inside[0].background_type,
                sentence=f"{size} x {inside[0].name} ({kind}), evidence: {location}; {confirmed} confirmed",
            )
        )
        cases = [replace(case, group=number) if case in inside else case for case in cases]
    assignment = assign_errors(cases, range(len(cases)), {})
    sentences = {group.number: group.sentence for group in groups}
    causes = build_causes(cases, sentences, lambda i: 0.001 * sum(cases[j].delta_ap for j in i), assignment)
    alarms = [number for number, case in enumerate(cases) if case.is_false_positive]
    inventory = estimate_shares(cases, alarms, lambda indices: 0.001 * len(indices))
    counts = Counter(case.type for case in cases)
    labels = {case.label: case.name for case in cases}
    values: dict[str, object] = {
        "model": "harbor detector",
        "adapter": "torchvision FCOS",
        "annotations": "harbor.json",
        "image_count": len(images),
        "object_count": sum(len(image.truths) for image in images),
        "iou_threshold": 0.5,
        "average_precision": 0.712,
        "false_positive_count": sum(case.is_false_positive for case in cases),
        "false_positive_delta_ap": 0.1372,
        "error_counts": {kind: counts[kind] for kind in ERROR_TYPES},
        "delta_ap_by_type": {kind: 0.0011 * counts[kind] + 0.001 for kind in ERROR_TYPES},
        "classes": tuple(class_summary(label, name, cases) for label, name in sorted(labels.items())),
        "category_ids": {label: label + 10 for label in labels},
        "settings": {"method": "ReachCAM", "fills": ["blur", "linear"], "explained": 200},
        "groups": tuple(groups),
        "causes": causes,
        "assignment": assignment,
        "curves": ScoreCurves(THRESHOLDS, np.where(THRESHOLDS < 1, 0.3 + 0.7 * THRESHOLDS, np.nan), 1 - THRESHOLDS),
        "inventory": tuple(inventory),
        "cases": tuple(cases),
        "issues": DataIssues([DataIssue("image is missing", "no image file at images/12.png; skipped", 12)]),
        "seconds": 812.4,
    }
    if "cases" in overrides:  # others than those of the causes
        values |= {"causes": (), "assignment": None}
    return ReportSummary(**{**values, **overrides})  # type: ignore[arg-type]


def class_summary(label: int, name: str, cases: list[AuditCase]) -> ClassSummary:
    inside = [case for case in cases if case.label == label]
    counts = Counter(case.type for case in inside)
    false_positives = sum(case.is_false_positive for case in inside)
    errors = {kind: counts[kind] for kind in ERROR_TYPES}
    return ClassSummary(label, name, 0.7, 40, 31, false_positives, counts["missed"], errors)


def read_data(folder: Path) -> dict[str, Any]:
    """Read the data files of a page by name, without executing them."""
    contents = {}
    for path in (folder / "data").iterdir():
        name, text = re.fullmatch(r'detcamData\("([a-z0-9-]+)",(".*")\);\n', path.read_text("ascii")).groups()
        assert path.name.startswith(f"{name}-")
        contents[name] = json.loads(json.loads(text))
    return contents


def write(out: Path, images: list[SampleImage], summary: ReportSummary | None = None) -> Path:
    """Write the report in the same way as an audit."""
    summary = summary or summary_of(images)
    writer = ReportWriter(out)
    for image in images:
        if image.cases:
            truths = image.truths
            writer.image(truths.image_id, truths.file_name, image.scene.image, truths)
        for case, maps in image.cases:
            writer.case(case, image.scene.image, maps)
    return writer.finish(summary)
