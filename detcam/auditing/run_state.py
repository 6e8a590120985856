"""State of an audit on disk, from which an interrupted audit resumes.

The detections of each image and each explained case are appended as one line of JSON. A line that an interruption cut
off is removed, and its work is repeated.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detcam.auditing.case import AuditCase
from detcam.auditing.conclusion import ExplainedError
from detcam.data.rle import PackedDetections
from detcam.detections import Detections, Source
from detcam.utils.files import check_same_settings, is_audit, json_value, replace_file

FOLDER = "unfinished"
SETTINGS, DETECTIONS, CASES = "settings.json", "detections.jsonl", "cases.jsonl"
REPORT_FILES = ("index.html", "audit.json", "false_positives.csv", "false_positives.coco.json")
"""Files that a report writes; a file of that name from another program is not overwritten."""
STATE_VERSION = 2
"""Version of the files' format; an audit of another version does not resume."""


class AuditState:
    """The working files of an audit, in a folder inside the report's folder.

    Args:
        out: folder of the report.
        settings: settings of the audit; an audit resumes only with equal settings.
        resume: whether to resume an interrupted audit; a finished one runs again.

    Raises:
        ValueError: the folder contains an audit and `resume` is False, an audit with other settings, or files of
            another program.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = out / FOLDER
        path = self.folder / SETTINGS
        foreign = [name for name in REPORT_FILES if (out / name).exists()]
        if foreign and not path.exists() and not is_audit(out):
            raise ValueError(f"{out} has a file {foreign[0]} that no audit wrote; choose a new folder (out=, --out)")
        current = json.loads(json.dumps({**settings, "state_version": STATE_VERSION}))
        if path.exists() and any((self.folder / name).exists() for name in (DETECTIONS, CASES)):
            if not resume:
                raise ValueError(f"{out} contains an audit; resume it (resume=True, --resume), or choose a new folder")
            check_same_settings(out, json.loads(path.read_text(encoding="utf-8")), current)
        elif not path.exists() and is_audit(out):
            if not resume:
                raise ValueError(
                    f"{out} contains a finished audit; choose a new folder, or run it again (resume=True, --resume)"
                )
            finished = json.loads((out / REPORT_FILES[1]).read_bytes())
            check_same_settings(out, finished["settings"], json_value(settings))
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(current, indent=1).encode())

    def remove(self) -> None:
        """Remove the working files of a finished audit, the settings first: without them an audit is finished."""
        (self.folder / SETTINGS).unlink()
        shutil.rmtree(self.folder)

    def detections(self, names: Mapping[int, str]) -> dict[str, PackedDetections | str]:
        """Stored detections by image id; a message for images that could not be read.

        Args:
            names: class names by index.
        """
        return {
            line["image"]: line["unreadable"] if "unreadable" in line else _detections_from_json(line, names)
            for line in self._lines(DETECTIONS)
        }

    def add_detections(self, image: str, detections: PackedDetections | str) -> None:
        """Store the detections of an image, or the message if it could not be read."""
        line = {"unreadable": detections} if isinstance(detections, str) else _detections_to_json(detections)
        self._append(DETECTIONS, {"image": image, **line})

    def cases(self) -> dict[str, ExplainedError]:
        """Stored cases by id, without their maps, which are in the report's folder."""
        return {
            line["case"]["id"]: ExplainedError(AuditCase.from_json(line["case"]), None, _array(line["features"]))
            for line in self._lines(CASES)
        }

    def add_case(self, explained: ExplainedError) -> None:
        """Store a case, which then survives the end of the process."""
        features = explained.features
        values = None if features is None else [float(f"{value:.9g}") for value in features.tolist()]
        self._append(CASES, {"case": explained.case.to_json(), "features": values})

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The lines of a file; the file is truncated at the first line that is damaged."""
        path = self.folder / name
        if not path.exists():
            return
        valid_bytes = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                content = None
            if not isinstance(content, dict):
                break
            valid_bytes += len(line)
            yield content
        if valid_bytes < path.stat().st_size:
            os.truncate(path, valid_bytes)


def _array(values: list[float] | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values, dtype=np.float32)


def _detections_to_json(packed: PackedDetections) -> dict[str, Any]:
    """Convert detections to JSON; numbers are exact."""
    detections, masks = packed.detections, None
    if packed.masks is not None:
        masks = [{"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")} for mask in packed.masks]
    return {
        "size": list(detections.image_size_hw),
        "boxes": detections.boxes_xyxy.tolist(),
        "labels": detections.labels.tolist(),
        "scores": detections.scores.tolist(),
        "sources": [[s.kind, s.level, s.anchor, s.center_xy, s.box_xyxy] for s in detections.source],
        "masks": masks,
    }


def _detections_from_json(line: Mapping[str, Any], names: Mapping[int, str]) -> PackedDetections:
    masks = None
    if line["masks"] is not None:
        masks = tuple({"size": mask["size"], "counts": mask["counts"].encode("ascii")} for mask in line["masks"])
    sources = tuple(
        Source(kind, level, anchor, _tuple(center), _tuple(box)) for kind, level, anchor, center, box in line["sources"]
    )
    detections = Detections(
        torch.tensor(line["boxes"], dtype=torch.float32).reshape(-1, 4),
        torch.tensor(line["labels"], dtype=torch.int64),
        torch.tensor(line["scores"], dtype=torch.float32),
        (line["size"][0], line["size"][1]),
        sources,
        names=names,
    )
    return PackedDetections(detections, masks)


def _tuple(values: list[float] | None) -> Any:
    return None if values is None else tuple(values)
