"""Audits made up for comparisons: errors at known positions, with known causes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from detcam.auditing.case import AuditCase, GroundTruthObject
from detcam.auditing.comparison.record import AuditRecord
from detcam.auditing.report.evaluation import Evaluation


def make_case(image: int, index: int = 0, **values: Any) -> AuditCase:
    """A confirmed context error, or with other values."""
    defaults: dict[str, Any] = {
        "image_id": image,
        "file_name": f"{image}.png",
        "image_size_hw": (100, 100),
        "type": "background",
        "label": 1,
        "name": "boat",
        "score": 0.9,
        "box_xyxy": (10.0, 10.0, 30.0, 30.0),
        "is_false_positive": values.get("type") != "missed",
        "ground_truth": None,
        "delta_ap": math.nan,
        "method": "portfolio",
        "verdict": "strong",
        "background_type": "context" if values.get("type", "background") == "background" else None,
        "evidence_location": "ring",
        "evidence_kind": "surroundings",
    }
    kind = "missed" if values.get("type") == "missed" else "detection"
    return AuditCase(id=f"image-{image}-{kind}-{index}", **{**defaults, **values})


def missed_object(image: int, **values: Any) -> AuditCase:
    truth = GroundTruthObject((40.0, 40.0, 60.0, 60.0), 1, "boat", 0.0, 1)
    box = {"box_xyxy": truth.box_xyxy, "ground_truth": truth, "score": 0.1}
    return make_case(image, type="missed", evidence_location="scene", failure_stage="suppressed", **{**box, **values})


def make_record(cases: Sequence[AuditCase], images: int = 40, *, found: bool = True) -> AuditRecord:
    """An audit of images with a boat each, found with a score of 0.8 unless it is missed."""
    missed = {case.image_id for case in cases if case.type == "missed"}
    rows = [(image, 100, 0.8, True) for image in range(images) if found and image not in missed] + [
        (case.image_id, int(case.id.rsplit("-", 1)[1]), case.score, False) for case in cases if case.is_false_positive
    ]
    rows.sort(key=lambda row: -row[2])
    columns = list(zip(*rows, strict=True)) or [[], [], [], []]
    evaluation = Evaluation(
        image_ids=tuple(range(images)),
        names=("boat",),
        classes=np.zeros(len(rows), dtype=np.int64),
        images=np.array(columns[0], dtype=np.int64),
        indices=np.array(columns[1], dtype=np.int64),
        scores=np.array(columns[2], dtype=np.float64),
        hits=np.array(columns[3], dtype=bool),
        corrected_classes=np.full(len(rows), -1),
        object_classes=np.zeros(images, dtype=np.int64),
        object_images=np.arange(images),
    )
    return AuditRecord("model", tuple(cases), evaluation, 0.3, 0.5, None, {})
