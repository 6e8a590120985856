"""All errors as a Parquet file; false positives as a CSV table for spreadsheets and a COCO file for annotation tools.

All are made row by row, so that the text of a large audit is never in memory.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detcam.auditing.case import AuditCase
from detcam.auditing.case_table import case_columns
from detcam.auditing.report.summary import ReportSummary
from detcam.utils.files import csv_cell, json_document, json_value, replacing, utf8_bytes

CSV_COLUMNS = (
    "id", "file_name", "image_id", "type", "class", "label", "score", "left", "top", "right", "bottom", "delta_ap",
    "verdict", "effect", "error_rate", "proposal", "evidence_location", "evidence_fraction", "minimal_region_fraction",
    "ground_truth_class", "iou", "background_type", "typicality", "group", "method", "question", "reason", "sentence",
)  # fmt: skip

ERROR_SCHEMA = pa.schema(
    {name: pa.string() for name in ("id", "image_id", "file_name", "type", "class")}
    | {"label": pa.int64(), "score": pa.float64(), "is_false_positive": pa.bool_()}
    | {name: pa.float32() for name in ("left", "top", "right", "bottom")}
    | {"delta_ap": pa.float64(), "ground_truth_class": pa.string(), "iou": pa.float64(), "annotation_id": pa.string()}
    | {name: pa.string() for name in ("method", "verdict", "evidence_kind", "background_type")}
    | {"effect": pa.float64(), "group": pa.int64()}
)
"""Columns of the file of all errors; explained errors have a method."""
ROW_GROUP = 2000


def false_positives_csv(summary: ReportSummary) -> Iterator[bytes]:
    """Yield the lines of a CSV file of the false positives: the explained ones first, then by score.

    The encoding is UTF-8 with a byte order mark, which spreadsheets recognize. Texts that a spreadsheet would evaluate
    as a formula start with an apostrophe.
    """
    line = io.StringIO(newline="")
    table = csv.writer(line, lineterminator="\r\n")
    table.writerow(CSV_COLUMNS)
    yield line.getvalue().encode("utf-8-sig")
    for index in rank_false_positives(summary.cases).tolist():
        case = summary.cases[index]
        line.seek(0)
        line.truncate()
        table.writerow([csv_cell(json_value(value)) for value in _row(case)])
        yield line.getvalue().encode("utf-8", "backslashreplace")


def _row(case: AuditCase) -> list[Any]:
    truth = case.ground_truth
    return [
        case.id, case.file_name, case.image_id, case.type, case.name, case.label, case.score, *case.box_xyxy,
        case.delta_ap, case.verdict, case.effect, case.error_rate, case.proposal, case.evidence_location,
        case.evidence_fraction, case.minimal_region_fraction, truth and truth.name, truth and truth.iou,
        case.background_type, case.typicality, case.group, case.method, case.question, case.reason, case.sentence,
    ]  # fmt: skip


def rank_false_positives(cases: Sequence[AuditCase]) -> np.ndarray:
    """Return the indices of the false positives: the explained ones first, then by score."""
    columns = case_columns(cases)
    indices = np.flatnonzero(columns.is_false_positive)
    return indices[np.lexsort((-columns.score[indices], ~columns.is_explained[indices]))]


def false_positives_coco(summary: ReportSummary) -> Iterator[bytes]:
    """Yield the parts of a COCO file: the false positives with scores, and with results of the audit as attributes.

    Images keep their ids if all are integers, and are numbered from 1 otherwise. Categories keep the ids of the
    annotation file if it has all of them, and get the model's class indices otherwise.
    """
    indices = np.flatnonzero(case_columns(summary.cases).is_false_positive).tolist()
    names, images = {item.label: item.name for item in summary.classes}, dict[int | str, int]()
    for index in indices:
        case = summary.cases[index]
        names[case.label] = case.name
        images.setdefault(case.image_id, index)
    has_integer_ids = all(isinstance(image_id, int) for image_id in images)
    image_ids = {image_id: image_id if has_integer_ids else number for number, image_id in enumerate(images, 1)}
    has_categories = names.keys() <= summary.category_ids.keys()
    category_ids: Mapping[int, int] = summary.category_ids if has_categories else {label: label for label in names}
    header = {
        "info": {"description": f"False positives of {summary.model} on {summary.annotations}", "version": "1"},
        "licenses": [],
        "categories": [
            {"id": category_ids[label], "name": names[label], "supercategory": ""}
            for label in sorted(names, key=lambda label: category_ids[label])
        ],
    }
    first_cases = ((image_id, summary.cases[index]) for image_id, index in images.items())
    cases = (summary.cases[index] for index in indices)
    yield from json_document(
        header,
        images=(
            {"id": image_ids[image_id], "file_name": case.file_name} | _size(case) for image_id, case in first_cases
        ),
        annotations=(
            _annotation(number, case, image_ids[case.image_id], category_ids[case.label])
            for number, case in enumerate(cases, 1)
        ),
    )


def _size(case: AuditCase) -> dict[str, int]:
    height, width = case.image_size_hw
    return {"width": width, "height": height}


def _annotation(number: int, case: AuditCase, image_id: int | str, category_id: int) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in case.box_xyxy)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": json_value([left, top, right - left, bottom - top]),
        "area": json_value((right - left) * (bottom - top)),
        "segmentation": [],
        "iscrowd": 0,
        "score": json_value(case.score),
        "attributes": {
            "case": case.id,
            "type": case.type,
            "verdict": case.verdict,
            "effect": json_value(case.effect),
            "evidence_location": case.evidence_location or "",
            "background_type": case.background_type or "",
            "delta_ap": json_value(case.delta_ap),
        },
    }


def write_errors(path: Path, cases: Sequence[AuditCase]) -> None:
    """Write all errors, missed objects included, in the order of the audit, as a Parquet file."""
    with (
        replacing(path) as file,
        pq.ParquetWriter(file, ERROR_SCHEMA, use_dictionary=False, compression="zstd") as writer,
    ):
        for start in range(0, len(cases), ROW_GROUP):
            rows = [_error_row(cases[index]) for index in range(start, min(start + ROW_GROUP, len(cases)))]
            columns = dict(zip(ERROR_SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True))
            writer.write_table(pa.table(columns, ERROR_SCHEMA))


def _error_row(case: AuditCase) -> tuple[Any, ...]:
    truth = case.ground_truth
    return (
        *(_text(value) for value in (case.id, case.image_id, case.file_name, case.type, case.name)),
        *(case.label, case.score, case.is_false_positive, *case.box_xyxy, case.delta_ap),
        *((None, None, None) if truth is None else (_text(truth.name), truth.iou, _text(truth.annotation_id))),
        *(_text(value) for value in (case.method, case.verdict, case.evidence_kind, case.background_type)),
        *(case.effect, case.group),
    )


def _text(value: object) -> str | None:
    return None if value is None else utf8_bytes(str(value)).decode()
