"""The report of an audit as a FiftyOne dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detcam.auditing.case import AuditCase, Box
from detcam.auditing.report.report_data import ReportData, ReportImage
from detcam.utils.batching import group_by
from detcam.utils.optional import needs_extra

ERRORS, GROUND_TRUTH, EVIDENCE, HEATMAP = "errors", "ground_truth", "evidence", "heatmap"
"""Fields of a sample."""
ATTRIBUTES = ("verdict", "evidence_kind", "evidence_location", "effect", "delta_ap", "trust", "group", "sentence")
"""Fields of a case that are attributes of its error, where they are known."""


def fiftyone_dataset(
    folder: Path, images_dir: Path | None = None, name: str | None = None, *, persistent: bool = False
) -> Any:
    """Convert a report to a dataset with a sample for each image of the explained errors.

    Args:
        folder: folder of the report, whose heatmaps the samples refer to.
        images_dir: folder of the original images; None takes those of the report.
        name: name of the dataset; None lets FiftyOne choose one.
        persistent: whether the dataset outlives the session.

    Raises:
        ImportError: FiftyOne is not installed.
        ValueError: there is no report, or a dataset of that name exists.
    """
    data = ReportData.load(folder, images_dir)
    with needs_extra("fiftyone"):
        import fiftyone
    cases = group_by(data.cases.values(), lambda case: case.image_id)
    samples = [make_sample(fiftyone, data, image, cases.get(image.image_id, [])) for image in data.images.values()]
    dataset = fiftyone.Dataset(name, persistent=persistent)
    dataset.info = {"model": data.content["model"], "headline": list(data.content["headline"])}
    dataset.add_samples(samples, progress=False)
    for group in data.content["groups"]:
        view = dataset.filter_labels(ERRORS, fiftyone.ViewField("case").is_in(group["case_ids"]))
        dataset.save_view(f"group {group['number']}", view, description=group["sentence"])
    return dataset


def make_sample(fiftyone: Any, data: ReportData, image: ReportImage, cases: Sequence[AuditCase]) -> Any:
    """Make the sample of an image; it is in no dataset yet.

    Args:
        fiftyone: the package.
        data: the report.
        image: an image of the report.
        cases: its errors.
    """
    height, width = image.size_hw
    missed = {case.ground_truth.annotation_id for case in cases if case.type == "missed" and case.ground_truth}
    objects = [
        fiftyone.Detection(
            label=item.name,
            bounding_box=relative_box(item.box_xyxy, image.size_hw),
            tags=["missed"] if item.annotation_id in missed else [],
            iscrowd=item.crowd,
            annotation_id=str(item.annotation_id),
        )
        for item in image.objects
    ]
    sample = fiftyone.Sample(
        filepath=str((data.original(image) or image.path).resolve()),
        tags=sorted({case.type for case in cases}),
        metadata=fiftyone.ImageMetadata(width=width, height=height, num_channels=3),
        image_id=str(image.image_id),
        file_name=image.file_name,
    )
    sample[GROUND_TRUTH] = fiftyone.Detections(detections=objects)
    sample[ERRORS] = fiftyone.Detections(detections=[_error(fiftyone, case, image.size_hw) for case in cases])
    explained = sorted((case for case in cases if case.method), key=lambda case: -case.score)
    regions = [(case, mask) for case in explained if (mask := data.evidence(case)) is not None]
    sample[EVIDENCE] = fiftyone.Detections(detections=[_region(fiftyone, case, mask) for case, mask in regions])
    for number, case in enumerate(explained, 1):
        path = data.case_file(case, "heatmap")
        if path is not None:
            field = HEATMAP if number == 1 else f"{HEATMAP}_{number}"
            sample[field] = fiftyone.Heatmap(map_path=str(path.resolve()), case=case.id, tags=[case.verdict])
    return sample


def relative_box(box: Box, size_hw: tuple[int, int]) -> list[float]:
    """Convert xyxy pixels to left, top, width and height relative to the image."""
    height, width = size_hw
    return [box[0] / width, box[1] / height, (box[2] - box[0]) / width, (box[3] - box[1]) / height]


def _error(fiftyone: Any, case: AuditCase, size_hw: tuple[int, int]) -> Any:
    """A false positive or a missed object; its tags are the type, the verdict, and the kind of evidence."""
    tags = [case.type, *([case.verdict, case.evidence_kind or ""] if case.method else [])]
    values = {name: getattr(case, name) for name in ATTRIBUTES}
    known = {key: value for key, value in values.items() if value is not None and value == value and value != ""}
    return fiftyone.Detection(
        label=case.name,
        bounding_box=relative_box(case.box_xyxy, size_hw),
        confidence=case.score if math.isfinite(case.score) else None,
        tags=list(dict.fromkeys(tag for tag in tags if tag)),
        case=case.id,
        **known,
    )


def _region(fiftyone: Any, case: AuditCase, mask: np.ndarray) -> Any:
    """The evidence of a case, with its pixels as the mask of an instance."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return fiftyone.Detection(
        label=case.evidence_kind or "evidence",
        bounding_box=relative_box((left, top, right, bottom), (mask.shape[0], mask.shape[1])),
        mask=mask[top:bottom, left:right],
        tags=[case.verdict],
        case=case.id,
    )
