"""The report of an audit, read back: groups, cases, images with their objects, and evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detcam.auditing.case import AuditCase, Box
from detcam.auditing.report.layout import AUDIT, COCO
from detcam.auditing.report.summary import AUDIT_SCHEMA, AUDIT_VERSION
from detcam.data.coco_files import ImageFinder
from detcam.data.images import load_image, to_uint8
from detcam.utils.files import check_report, checked_fields, is_in_folder, read_json
from detcam.utils.opencv import cv2


@dataclass(frozen=True)
class ReportObject:
    """An annotated object.

    Attributes:
        name: class name.
        box_xyxy: pixels of the image, half-open.
        crowd: whether it is a region of many objects.
        annotation_id: id in the annotation file.
    """

    name: str
    box_xyxy: Box
    crowd: bool
    annotation_id: int | str


@dataclass(frozen=True)
class ReportImage:
    """An image of the report.

    Attributes:
        image_id: id in the annotation file.
        file_name: name in the annotation file.
        size_hw: height and width of the original image.
        path: JPEG file of the report, which may be smaller.
        objects: its annotated objects.
    """

    image_id: int | str
    file_name: str
    size_hw: tuple[int, int]
    path: Path
    objects: tuple[ReportObject, ...]


@dataclass(frozen=True)
class ReportData:
    """The report of an audit, which may be somebody else's: the names in it cannot lead out of the two folders.

    Attributes:
        folder: folder of the report.
        content: content of ``audit.json``.
        images_dir: folder of the original images; None takes the images of the report.
    """

    folder: Path
    content: Mapping[str, Any]
    images_dir: Path | None = None

    @classmethod
    def load(cls, folder: Path, images_dir: Path | None = None) -> ReportData:
        """Read the report of a finished audit.

        Raises:
            ValueError: the folder has no report of this version, or the folder of images does not exist.
        """
        check_report(folder)
        if images_dir is not None and not images_dir.is_dir():
            raise ValueError(f"expected a folder of images; got {images_dir}")
        content = read_json(folder / AUDIT, AUDIT_SCHEMA, AUDIT_VERSION)
        data = cls(folder, content, images_dir)
        with checked_fields(folder / AUDIT, "run the audit again"):
            content["settings"].keys()
            for name in ("cases", "files", "images"):
                getattr(data, name)
        return data

    def check_annotated(self) -> None:
        """Check that the audit had annotations.

        Raises:
            ValueError: it had none.
        """
        if self.content["settings"].get("unlabeled"):
            raise ValueError(
                f"{self.folder} has no annotations, so its detections are not known to be errors; audit with some"
            )

    @cached_property
    def cases(self) -> dict[str, AuditCase]:
        """The cases by id."""
        return {entry["id"]: AuditCase.from_json(entry) for entry in self.content["cases"]}

    @cached_property
    def files(self) -> dict[str, Mapping[str, str | None]]:
        """The files of each case, by its id."""
        return {entry["id"]: entry["files"] for entry in self.content["cases"]}

    @cached_property
    def images(self) -> dict[int | str, ReportImage]:
        """The images of the report, those of explained cases, by id."""
        return {
            entry["image_id"]: ReportImage(
                image_id=entry["image_id"],
                file_name=entry["file_name"],
                size_hw=(entry["height"], entry["width"]),
                path=self._path(entry["file"]),
                objects=tuple(
                    ReportObject(item["name"], tuple(item["box_xyxy"]), item["crowd"], item["annotation_id"])
                    for item in entry["objects"]
                ),
            )
            for entry in self.content["images"]
        }

    @cached_property
    def categories(self) -> dict[str, int]:
        """Category ids of the annotation file by class name, in the order of the ids."""
        entries = read_json_list(self.folder / COCO, "categories")
        found = {entry["name"]: entry["id"] for entry in entries}
        for entry in self.content["classes"]:
            found.setdefault(entry["name"], max(found.values(), default=0) + 1)
        return dict(sorted(found.items(), key=lambda item: item[1]))

    @cached_property
    def yolo_names(self) -> dict[int, str]:
        """Class names by YOLO index: the model's own indices for a YOLO model, else the categories in their order."""
        if "ultralytics" in self.content["adapter"]:
            labels = {entry["label"]: entry["name"] for entry in self.content["classes"]}
            return {index: labels.get(index, f"class {index}") for index in range(max(labels, default=-1) + 1)}
        return dict(enumerate(self.categories))

    @cached_property
    def _finder(self) -> ImageFinder | None:
        return None if self.images_dir is None else ImageFinder(self.images_dir)

    def original(self, image: ReportImage) -> Path | None:
        """The file of an image in the folder of the original images, found as in audits; None if it is not there."""
        return None if self._finder is None else self._finder.find(image.file_name)[0]

    def case_file(self, case: AuditCase, kind: str) -> Path | None:
        """A file of a case, such as its ``"heatmap"``; None if there is none."""
        name = self.files[case.id].get(kind)
        path = self._path(name) if name else None
        return path if path is not None and path.is_file() else None

    def _path(self, name: str) -> Path:
        """The path of a file of the report.

        Raises:
            ValueError: it lies outside of the report's folder.
        """
        path = self.folder / name
        if not is_in_folder(path, self.folder):
            raise ValueError(f"{self.folder / AUDIT} names a file outside of its folder: {name:.200}; audit again")
        return path

    def pixels(self, image: ReportImage) -> np.ndarray:
        """Read an image: (H, W, 3) uint8 RGB in its original size."""
        original = self.original(image)
        if original is not None:
            array = to_uint8(load_image(original))
            if array.shape[:2] == image.size_hw:
                return array
        with Image.open(image.path) as opened:
            array = np.asarray(opened.convert("RGB"))
        if array.shape[:2] == image.size_hw:
            return array
        return np.asarray(cv2.resize(array, image.size_hw[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)

    def evidence(self, case: AuditCase) -> np.ndarray | None:
        """Read the regions that an error needs: (H, W) bool; None if the case has none."""
        path = self.case_file(case, "needed") or self.case_file(case, "evidence")
        if path is None:
            return None
        with Image.open(path) as opened:
            mask = np.asarray(opened.convert("L")) > 0
        if mask.shape != case.image_size_hw:
            size = case.image_size_hw[1], case.image_size_hw[0]
            mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        return mask if mask.any() else None


def read_json_list(path: Path, key: str) -> list[dict[str, Any]]:
    """Read a list of a COCO file of the report.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        found: list[dict[str, Any]] = json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); run the audit again") from error
    return found
