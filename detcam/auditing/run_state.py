"""Results of an audit's stages as tables, and the checks of its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import torch
from pycocotools import mask as coco_masks

from detcam.auditing.case import AuditCase
from detcam.auditing.conclusion import ExplainedError
from detcam.detections import Detections, Source
from detcam.runs import Stage, is_unfinished
from detcam.utils.console import describe_error
from detcam.utils.files import check_same_settings, checked_fields, is_audit, json_value, utf8_bytes

REPORT_FILES = ("index.html", "audit.json", "false_positives.csv", "false_positives.coco.json", "errors.parquet")
"""Files that a report writes; a file of that name from another program is not overwritten."""
MAX_TABLES_IN_MEMORY = 4
"""Number of shards whose tables are kept in memory."""
MAX_IMAGES_IN_MEMORY = 32
"""Number of images whose detections are kept in memory."""

DETECTION_SCHEMA = pa.schema(
    {
        "unreadable": pa.string(),  # the message if the image cannot be read
        "failure": pa.string(),  # the message if the model failed on it
        "image_size_hw": pa.list_(pa.int32()),
        "boxes_xyxy": pa.list_(pa.list_(pa.float32())),
        "labels": pa.list_(pa.int64()),
        "scores": pa.list_(pa.float32()),
        "source_kinds": pa.list_(pa.string()),
        "source_levels": pa.list_(pa.int32()),
        "source_anchors": pa.list_(pa.int64()),
        "source_centers_xy": pa.list_(pa.list_(pa.float64())),
        "source_boxes_xyxy": pa.list_(pa.list_(pa.float64())),
        "masks": pa.list_(pa.binary()),  # COCO's compressed run lengths
    }
)
EXPLANATION_SCHEMA = pa.schema(
    {"position": pa.int32(), "failure": pa.string(), "case": pa.string(), "features": pa.list_(pa.float32())}
)


def check_audit_folder(out: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Check that an audit may write its report into a folder.

    Args:
        out: the folder.
        settings: settings of the audit.
        resume: whether a finished audit may run again.

    Raises:
        ValueError: the folder contains files of another program, a finished audit and `resume` is False, or one with
            other settings or a damaged ``audit.json``.
    """
    foreign = [name for name in REPORT_FILES if (out / name).exists()]
    if is_unfinished(out) or not foreign:
        return
    if not is_audit(out):
        raise ValueError(f"{out} has a file {foreign[0]} that no audit wrote; choose a new folder (out=, --out)")
    if not resume:
        raise ValueError(
            f"{out} contains a finished audit; choose a new folder, or run it again (resume=True, --resume)"
        )
    file, remedy = out / REPORT_FILES[1], "choose a new folder (out=, --out)"
    try:
        finished = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); {remedy}") from error
    with checked_fields(file, remedy):
        stored = {**finished["settings"]}
    check_same_settings(out, stored, json_value(settings))


def detection_table(results: Iterable[Detections | str | Exception]) -> pa.Table:
    """Convert the detections of images to a table; numbers are exact.

    Args:
        results: detections, or the message if the image cannot be read, or the model's error.
    """
    rows = []
    for each in results:
        if isinstance(each, Detections):
            rows.append(_detection_row(each))
        elif isinstance(each, str):
            rows.append({"unreadable": utf8_bytes(each).decode()})
        else:
            rows.append({"failure": utf8_bytes(describe_error(each)).decode()})
    return pa.Table.from_pylist(rows, DETECTION_SCHEMA)


def _detection_row(detections: Detections) -> dict[str, Any]:
    sources, masks = detections.source, None
    if detections.masks is not None:
        encoded = [coco_masks.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in detections.masks]
        masks = [mask["counts"] for mask in encoded]
    return {
        "image_size_hw": detections.image_size_hw,
        "boxes_xyxy": detections.boxes_xyxy.tolist(),
        "labels": detections.labels.tolist(),
        "scores": detections.scores.tolist(),
        "source_kinds": [source.kind for source in sources],
        "source_levels": [source.level for source in sources],
        "source_anchors": [source.anchor for source in sources],
        "source_centers_xy": [source.center_xy for source in sources],
        "source_boxes_xyxy": [source.box_xyxy for source in sources],
        "masks": masks,
    }


class StoredDetections(Sequence[Detections]):
    """The detections of the images of a stage; a few shards are in memory at a time.

    Args:
        stage: the stage whose tables hold them.
        rows: (n, 2) shard and row of each image.
        names: class names by index.
        has_masks: whether to read masks.
    """

    def __init__(self, stage: Stage, rows: np.ndarray, names: Mapping[int, str], *, has_masks: bool = False) -> None:
        self.stage, self.rows, self.names, self.has_masks = stage, rows, names, has_masks
        self._table = lru_cache(MAX_TABLES_IN_MEMORY)(self._read_table)
        self._image = lru_cache(MAX_IMAGES_IN_MEMORY)(self._read_image)

    def with_masks(self) -> StoredDetections:
        """Return the same detections with masks."""
        return StoredDetections(self.stage, self.rows, self.names, has_masks=True)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Detections: ...

    @overload
    def __getitem__(self, index: slice) -> StoredDetections: ...

    def __getitem__(self, index: int | slice) -> Detections | StoredDetections:
        """Read the detections of one image, or return a sequence for several images."""
        if isinstance(index, slice):
            return StoredDetections(self.stage, self.rows[index], self.names, has_masks=self.has_masks)
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}; got {index}")
        return self._image(index)

    def _read_image(self, index: int) -> Detections:
        shard, row = self.rows[index].tolist()
        return _detections(self._table(shard), row, self.names)

    def _read_table(self, shard: int) -> pa.Table:
        columns = [name for name in DETECTION_SCHEMA.names if name != "masks" or self.has_masks]
        return self.stage.table(shard, columns)


def _detections(table: pa.Table, row: int, names: Mapping[int, str]) -> Detections:
    """The detections in a row of a table; numbers become arrays without lists of objects in between."""
    height, width = size = tuple(table["image_size_hw"][row].as_py())
    masks = None
    if "masks" in table.column_names and table["masks"][row].is_valid:
        decoded = [coco_masks.decode({"size": [height, width], "counts": each}) for each in table["masks"][row].as_py()]
        masks = torch.from_numpy(np.stack(decoded) if decoded else np.zeros((0, height, width))).bool()
    fields = ("kinds", "levels", "anchors", "centers_xy", "boxes_xyxy")
    sources = zip(*(table[f"source_{name}"][row].as_py() for name in fields), strict=True)
    return Detections(
        torch.tensor(_numbers(table["boxes_xyxy"][row].values.flatten())).reshape(-1, 4),
        torch.tensor(_numbers(table["labels"][row].values)),
        torch.tensor(_numbers(table["scores"][row].values)),
        size,
        tuple(Source(kind, level, anchor, _tuple(center), _tuple(box)) for kind, level, anchor, center, box in sources),
        masks,
        names=names,
    )


def _numbers(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


def _tuple(values: list[float] | None) -> Any:
    return None if values is None else tuple(values)


def explanation_table(results: Iterable[Sequence[ExplainedError] | Exception]) -> pa.Table:
    """Convert the explained errors of each image, or its failure, to a table without maps, which are in the report."""
    rows: list[dict[str, Any]] = []
    for position, result in enumerate(results):
        if isinstance(result, Exception):
            rows.append({"position": position, "failure": utf8_bytes(describe_error(result)).decode()})
            continue
        for each in result:
            rows.append({"position": position, "case": json.dumps(each.case.to_json()), "features": each.features})
    return pa.Table.from_pylist(rows, EXPLANATION_SCHEMA)


def read_explanations(stage: Stage) -> tuple[dict[str, ExplainedError], dict[tuple[int, int], str]]:
    """Read explained errors by case id, without their maps, and failures by shard and position in the shard."""
    explained, failures = {}, {}
    for shard, table in enumerate(stage.tables()):
        for row in table.to_pylist():
            if row["case"] is None:
                failures[shard, row["position"]] = row["failure"]
                continue
            case = AuditCase.from_json(json.loads(row["case"]))
            features = None if row["features"] is None else np.asarray(row["features"], dtype=np.float32)
            explained[case.id] = ExplainedError(case, None, features)
    return explained, failures
