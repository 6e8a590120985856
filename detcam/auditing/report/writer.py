"""Writes a report while the audit runs: images and cases one at a time, the page and the tables at the end.

Files of an interrupted run are kept and reused. Every file is written under a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detcam.auditing.case import AuditCase, CaseMaps
from detcam.auditing.report import images, layout
from detcam.auditing.report.files import ReportFiles
from detcam.auditing.report.page import render_page
from detcam.auditing.report.page_data import PageData
from detcam.auditing.report.summary import ReportSummary
from detcam.auditing.report.tables import false_positives_coco, false_positives_csv, write_errors
from detcam.data.ground_truth import GroundTruth
from detcam.utils.files import json_bytes, json_document, json_value, remove_temporary_files, replace_file
from detcam.visualize.convert import ImageArray


class ReportWriter:
    """Writes an audit's report into a folder.

    Args:
        out: folder of the report. It is created if needed; files of an interrupted run are reused.

    Attributes:
        out: folder of the report.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        for folder in (self.out, *(self.out / name for name in (layout.IMAGES, layout.CASES, layout.DATA))):
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporary_files(folder)  # of a run that was killed

    def image(self, image_id: int | str, file_name: str, image: ImageArray, truths: GroundTruth) -> Path:
        """Write an image, unless it exists, and its ground truth.

        Args:
            image_id: id of the image in the annotation file.
            file_name: name of the image in the annotation file.
            image: (H, W, 3) uint8 RGB.
            truths: ground truth of the image.

        Returns:
            Path of the image.

        Raises:
            TypeError: the image is not a uint8 array.
            ValueError: the image does not have the size of the ground truth's image.
        """
        _check_image(image, truths.image_size_hw)
        stem = layout.image_stem(image_id, file_name)
        path = self.out / layout.IMAGES / f"{stem}.jpg"
        if not path.exists():
            replace_file(path, images.image_jpeg(image))
        replace_file(path.with_suffix(".json"), json_bytes(_describe_image(image_id, file_name, truths), indent=1))
        return path

    def case(self, case: AuditCase, image: ImageArray, maps: CaseMaps | None) -> None:
        """Write the thumbnail of a case and, if it is explained, its maps.

        Args:
            case: a case of the report that `finish` writes.
            image: (H, W, 3) uint8 RGB.
            maps: heatmap and regions; None if the case is not explained.

        Raises:
            TypeError: the image or a map has the wrong type.
            ValueError: the sizes differ.
        """
        _check_image(image, case.image_size_hw)
        color = images.TRUTH_COLOR if case.type == "missed" else images.BOX_COLOR
        contents = {"thumbnail": images.thumbnail_jpeg(image, case.box_xyxy, maps, color)}
        if maps is not None:
            regions = {"evidence": maps.evidence, "needed": maps.needed, "control": maps.control}
            for kind, values in {"heatmap": maps.heatmap, **regions}.items():
                _check_map(kind, values, case.image_size_hw)
            contents["heatmap"] = images.heatmap_png(maps.heatmap)
            contents["overlay"] = images.overlay_png(maps.heatmap)
            contents["evidence"] = images.mask_png(maps.evidence)
            if not np.array_equal(maps.needed, maps.evidence):
                contents["needed"] = images.mask_png(maps.needed)
            if maps.control is not None:
                contents["control"] = images.mask_png(maps.control)
        for kind in layout.CASE_FILES:
            path = self._case_file(case, kind)
            if kind in contents:
                replace_file(path, contents[kind])
            else:
                path.unlink(missing_ok=True)

    def finish(self, summary: ReportSummary) -> Path:
        """Write the JSON file, the tables, and the page with its data files.

        Files are written case by case: no step holds the text of all cases. The page comes last, and until then an
        earlier one keeps its own data files.

        Returns:
            Path of the page.

        Raises:
            ValueError: a file of an earlier run is damaged.
        """
        files, digest = ReportFiles(self.out), hashlib.sha256()
        replace_file(self.out / layout.AUDIT, _digested(audit_json(summary, files), digest.update))
        replace_file(self.out / layout.TABLE, false_positives_csv(summary))
        replace_file(self.out / layout.COCO, false_positives_coco(summary))
        write_errors(self.out / layout.ERRORS, summary.cases)
        data = PageData(files, digest.hexdigest()[:10])
        page = replace_file(self.out / layout.INDEX, render_page(summary, data.write(summary)))
        data.remove_others()
        return page

    def _case_file(self, case: AuditCase, kind: str) -> Path:
        return self.out / layout.CASES / f"{layout.case_stem(case.id)}{layout.CASE_FILES[kind]}"


def audit_json(summary: ReportSummary, files: ReportFiles) -> Iterator[bytes]:
    """Yield the parts of ``audit.json``.

    Raises:
        ValueError: a file of an image is damaged.
    """
    cases = (case.to_json() | {"files": files.of_case(case)} for case in summary.cases)
    return json_document(summary.to_json(), cases=cases, images=files.images(summary.cases))


def _digested(parts: Iterable[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    """Pass parts on, and give each to the update function of a digest."""
    for part in parts:
        update(part)
        yield part


def _describe_image(image_id: int | str, file_name: str, truths: GroundTruth) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "file_name": file_name,
        "height": truths.image_size_hw[0],
        "width": truths.image_size_hw[1],
        "file": f"{layout.IMAGES}/{layout.image_stem(image_id, file_name)}.jpg",
        "objects": [
            {
                "annotation_id": annotation_id,
                "label": label,
                "name": truths.names.get(label, str(label)),
                "box_xyxy": json_value(box),
                "crowd": crowd,
            }
            for annotation_id, label, box, crowd in zip(
                truths.ids.tolist(),
                truths.labels.tolist(),
                truths.boxes_xyxy.tolist(),
                truths.crowd.tolist(),
                strict=True,
            )
        ],
    }


def _check_image(image: Any, size_hw: tuple[int, int]) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise TypeError(f"expected the image as a uint8 array, got {kind}; load it with detcam.data.images.load_image")
    if image.shape != (*size_hw, 3):
        raise ValueError(
            f"expected an image of shape {(*size_hw, 3)}, got {image.shape}; check that it is the same image"
        )


def _check_map(kind: str, values: Any, size_hw: tuple[int, int]) -> None:
    if values is None and kind == "control":
        return
    expected = np.uint8 if kind == "heatmap" else np.bool_
    if not isinstance(values, np.ndarray) or values.dtype != expected:
        got = getattr(values, "dtype", type(values).__name__)
        raise TypeError(
            f"expected the {kind} as a {np.dtype(expected)} array, got {got}; see detcam.auditing.case.CaseMaps"
        )
    if values.shape != tuple(size_hw):
        raise ValueError(
            f"expected the {kind} in the size of the image, {tuple(size_hw)}, got {values.shape}; resize it"
        )
