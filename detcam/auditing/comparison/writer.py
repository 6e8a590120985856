"""Writes the report of a comparison: a page that opens from disk, and the same as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detcam.auditing.case import AuditCase
from detcam.auditing.comparison.pairs import ErrorPair
from detcam.auditing.comparison.record import AuditRecord
from detcam.auditing.report.images import region_outline, thumbnail_jpeg
from detcam.auditing.report.layout import case_stem
from detcam.auditing.report.page import STYLE, assemble_page, read_part
from detcam.runs import lock_folder
from detcam.utils.files import json_value, remove_temporary_files, replace_file
from detcam.visualize.overlay import OVERLAY_ALPHA

if TYPE_CHECKING:
    from detcam.auditing.comparison.comparison import AuditComparison

INDEX, COMPARISON = "index.html", "comparison.json"
FOLDERS = ("images", "old", "new")


def write_comparison(comparison: AuditComparison, old: AuditRecord, new: AuditRecord, out: Path) -> AuditComparison:
    """Write the report of a comparison. The folder is complete: the reports of the audits may be moved away.

    Args:
        comparison: the comparison.
        old: the old audit.
        new: the new audit.
        out: folder of the report; an earlier comparison in it is replaced.

    Returns:
        The comparison with the path of the page.

    Raises:
        ValueError: the folder has an ``index.html`` that no comparison wrote.
        RuntimeError: another process works in the folder.
    """
    if (out / INDEX).exists() and not (out / COMPARISON).exists():
        raise ValueError(f"{out} has a file {INDEX} that no comparison wrote; choose a new folder (out=, --out)")
    with lock_folder(out):
        for folder in (out, *(out / name for name in FOLDERS)):
            folder.mkdir(exist_ok=True)
            remove_temporary_files(folder)  # of a process that was killed
        data = comparison.to_json()
        copier = _Copier(old, new, out)
        errors = [{**entry, **copier.pair(pair)} for entry, pair in zip(data["errors"], comparison.pairs, strict=True)]
        page = render_comparison({**data, "errors": errors, "heat": {"opacity": OVERLAY_ALPHA}})
        replace_file(out / COMPARISON, json.dumps(data, indent=1).encode())
        return replace(comparison, report=replace_file(out / INDEX, page))


class _Copier:
    """Copies the images and maps of errors into the folder of a comparison."""

    def __init__(self, old: AuditRecord, new: AuditRecord, out: Path) -> None:
        self.records = {"old": old, "new": new}
        self.out = out
        self.images: dict[str, str | None] = {}

    def pair(self, pair: ErrorPair) -> dict[str, Any]:
        """What the page shows of an error; nothing if neither audit explains it."""
        cases = {"old": pair.old, "new": pair.new}
        if not any(case is not None and case.method for case in cases.values()):
            return {}
        image = self._image(pair)
        entry: dict[str, Any] = {
            "image": image,
            "image_size_hw": list(pair.shown.image_size_hw),
            "box_xyxy": json_value(pair.shown.box_xyxy),
        }
        for side, case in cases.items():
            entry[side] = None if case is None else self._side(side, case, image)
        return entry

    def _image(self, pair: ErrorPair) -> str | None:
        """The image of an error, copied from the report that has it."""
        key = repr(pair.shown.image_id)
        if key not in self.images:
            self.images[key] = None
            for side, case in (("new", pair.new), ("old", pair.old)):
                source = None if case is None else self._file(side, case, "image")
                if source is not None:
                    name = f"images/{source.name}"
                    replace_file(self.out / name, source.read_bytes())
                    self.images[key] = name
                    break
        return self.images[key]

    def _side(self, side: str, case: AuditCase, image: str | None) -> dict[str, Any]:
        stem = f"{side}/{case_stem(case.id)}"
        entry: dict[str, Any] = {
            "box_xyxy": json_value(case.box_xyxy),
            "sentence": case.sentence,
            "verdict": case.verdict,
            "below": not self.records[side].counts(case),
        }
        thumbnail, overlay = self._file(side, case, "thumbnail"), self._file(side, case, "overlay")
        evidence = self._file(side, case, "evidence")
        content = _plain_thumbnail(self.out / image, case) if image is not None else None
        if thumbnail is not None:
            content = thumbnail.read_bytes()
        if content is not None:
            entry["thumbnail"] = f"{stem}.jpg"
            replace_file(self.out / entry["thumbnail"], content)
        if overlay is not None:
            entry["overlay"] = f"{stem}.overlay.png"
            replace_file(self.out / entry["overlay"], overlay.read_bytes())
        if evidence is not None:
            entry["outline"] = region_outline(evidence, case.image_size_hw)
        return entry

    def _file(self, side: str, case: AuditCase, kind: str) -> Path | None:
        record = self.records[side]
        name = record.files.get(case.id, {}).get(kind)
        if record.folder is None or not name or not (record.folder / name).is_file():
            return None
        return record.folder / name


def _plain_thumbnail(path: Path, case: AuditCase) -> bytes:
    """The box of a case that is not explained, in the image of a report, which may be smaller than the original."""
    with Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB"))
    scale = image.shape[1] / case.image_size_hw[1]
    left, top, right, bottom = (value * scale for value in case.box_xyxy)
    return thumbnail_jpeg(image, (left, top, right, bottom), None)


def render_comparison(data: dict[str, Any]) -> bytes:
    """Render the page; names from the data set occur only in its data, escaped, and cannot become markup or code."""
    title = f"Comparison of {data['old_model']} and {data['new_model']}"
    style = read_part(STYLE) + _read("comparison.css")
    scripts = [read_part("elements.js"), read_part("canvas.js"), _read("comparison.js")]
    return assemble_page(_read("comparison.html"), title, style, scripts, data)


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
