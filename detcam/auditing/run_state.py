"""What an audit has done so far, on disk, so that an interrupted one goes on where it stopped.

Each image's detections and each finished case are one line of JSON, appended; a line that an interruption cut off is
dropped, and what it held is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detcam.auditing.case import AuditCase
from detcam.auditing.explainer import ExplainedError
from detcam.data.rle import PackedDetections
from detcam.detections import Detections, Source
from detcam.utils.files import is_audit, replace_file

FOLDER = "unfinished"
SETTINGS, DETECTIONS, CASES = "settings.json", "detections.jsonl", "cases.jsonl"
FILES = ("index.html", "audit.json", "false_positives.csv", "false_positives.coco.json")
"""What a report writes beside them, and nobody else's file is written over."""


class AuditState:
    """The working files of an audit, in a folder inside the report's.

    Args:
        out: the report's folder.
        settings: what the audit was asked for; an audit goes on only with the same.
        resume: whether to go on.

    Raises:
        ValueError: the folder has an audit already and `resume` was not asked for, or it was asked for other settings,
            or it has files that are no audit's.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = out / FOLDER
        wanted = json.loads(json.dumps(settings))
        path = self.folder / SETTINGS
        begun = path.exists() and any((self.folder / name).exists() for name in (DETECTIONS, CASES))
        strange = [name for name in FILES if (out / name).exists()]
        if strange and not path.exists() and not is_audit(out):
            raise ValueError(f"{out} has {strange[0]} that is no audit's; name a new folder (out=, --out)")
        if begun:
            if not resume:
                raise ValueError(
                    f"{out} has an audit already; go on with it by resume (--resume), or name a new folder"
                )
            before = json.loads(path.read_text(encoding="utf-8"))
            other = sorted(name for name in {*before, *wanted} if before.get(name) != wanted.get(name))
            if other:
                shown = ", ".join(f"{name}: {before.get(name)!r} then, {wanted.get(name)!r} now" for name in other)
                raise ValueError(f"the audit in {out} was asked for otherwise ({shown}); name a new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(wanted, indent=1).encode())

    def detections(self, names: Mapping[int, str]) -> dict[str, PackedDetections | str]:
        """What was found in each image already, by its id; a text where the image could not be read."""
        return {
            line["image"]: line["unreadable"] if "unreadable" in line else _detections(line, names)
            for line in self._lines(DETECTIONS)
        }

    def add_detections(self, image: str, found: PackedDetections | str) -> None:
        """Keep what was found in an image, or why it could not be read."""
        line = {"unreadable": found} if isinstance(found, str) else _plain(found)
        self._append(DETECTIONS, {"image": image, **line})

    def cases(self) -> dict[str, ExplainedError]:
        """The cases that were explained already, by their id, without their maps, which are in the report's folder."""
        return {
            line["case"]["id"]: ExplainedError(AuditCase.from_json(line["case"]), None, _array(line["features"]))
            for line in self._lines(CASES)
        }

    def add_case(self, examined: ExplainedError) -> None:
        """Keep a case: from here on a killed process does not lose it."""
        features = examined.features
        listed = None if features is None else [float(f"{value:.9g}") for value in features.tolist()]
        self._append(CASES, {"case": examined.case.to_json(), "features": listed})

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The lines of a file up to the first that is none: what a killed process or a lost disk block left is cut."""
        path = self.folder / name
        if not path.exists():
            return
        good = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                found = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                found = None
            if not isinstance(found, dict):
                break
            good += len(line)
            yield found
        if good < path.stat().st_size:
            os.truncate(path, good)


def _array(values: list[float] | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values, dtype=np.float32)


def _plain(packed: PackedDetections) -> dict[str, Any]:
    """Detections as JSON; numbers come back to the last bit."""
    found, masks = packed.found, None
    if packed.masks is not None:
        masks = [{"size": list(one["size"]), "counts": one["counts"].decode("ascii")} for one in packed.masks]
    return {
        "size": list(found.image_size_hw),
        "boxes": found.boxes_xyxy.tolist(),
        "labels": found.labels.tolist(),
        "scores": found.scores.tolist(),
        "sources": [[s.kind, s.level, s.anchor, s.center_xy, s.box_xyxy] for s in found.source],
        "masks": masks,
    }


def _detections(line: Mapping[str, Any], names: Mapping[int, str]) -> PackedDetections:
    masks = None
    if line["masks"] is not None:
        masks = tuple({"size": one["size"], "counts": one["counts"].encode("ascii")} for one in line["masks"])
    sources = tuple(
        Source(kind, level, anchor, _tuple(center), _tuple(box)) for kind, level, anchor, center, box in line["sources"]
    )
    found = Detections(
        torch.tensor(line["boxes"], dtype=torch.float32).reshape(-1, 4),
        torch.tensor(line["labels"], dtype=torch.int64),
        torch.tensor(line["scores"], dtype=torch.float32),
        (line["size"][0], line["size"][1]),
        sources,
        names=names,
    )
    return PackedDetections(found, masks)


def _tuple(values: list[float] | None) -> Any:
    return None if values is None else tuple(values)
