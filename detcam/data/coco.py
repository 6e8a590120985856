"""Reads COCO files and checks every entry; an invalid entry is reported and left out without affecting the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from detcam.data.coco_boxes import (
    box_of_segmentation,
    check_box_format,
    is_empty_box,
    is_number,
    plain_box,
    plain_segmentation,
    recognize_format,
    to_xywh,
    without_frame,
)
from detcam.data.coco_files import ImageFinder, read_coco_json
from detcam.data.coco_frames import ImageEntry, settle_frames
from detcam.data.exif import boxes_upright, image_size
from detcam.data.ground_truth import GroundTruth
from detcam.data.issues import DataIssue, DataIssues
from detcam.utils.console import short_repr
from detcam.utils.packed import Packed

MAX_DIGITS = 18
"""Maximum length of an integer that is written as text; the longest that always fits in 64 bits."""

CocoContent = tuple[Sequence[GroundTruth], dict[int, str], DataIssues]
"""Images with their objects, categories by id, and problems."""


def read_coco(path: Path, images_dir: Path, box_format: str | None = None) -> CocoContent:
    """Read a COCO file: images with their objects, categories by id, and problems.

    Args:
        path: the file.
        images_dir: the folder of its images.
        box_format: the format of its boxes (`detcam.data.coco_boxes.BoxFormat`); None takes COCO's, x, y, width and
            height in pixels, and refuses boxes that are certainly not.

    Raises:
        ValueError: the file or folder does not exist, the file is not JSON in COCO's format, or its boxes have another
            format.
    """
    check_box_format(box_format)
    data, note = read_coco_json(path, images_dir)
    if not images_dir.is_dir():
        raise ValueError(f"no folder of images at {images_dir}; check the path")
    issues = [DataIssue("encoding", note)] if note else []
    return read_entries(data, path, ImageFinder(images_dir), box_format, issues)


def read_entries(
    data: Mapping[str, list[Any]], path: Path, finder: ImageFinder, box_format: str | None, issues: list[DataIssue]
) -> CocoContent:
    """Read the lists of a COCO file; see `read_coco`."""
    entries = {name: [_with_ids(entry, name) for entry in value] for name, value in data.items()}
    categories = _categories(entries["categories"], issues)
    annotations = _with_category_ids(entries["annotations"], categories)
    image_list, known = _images(entries["images"], finder, issues)
    image_list = settle_frames(image_list, annotations, box_format, issues)
    if box_format is None:
        _check_format(path, annotations, image_list)
    numbers = without_frame(box_format or "xywh")
    rows = _annotations(annotations, image_list, known, categories, bool(entries["categories"]), numbers, issues)
    images = Packed(_ground_truth(entry, rows[image_id], categories) for image_id, entry in image_list.items())
    for image in images:
        if not len(image):
            message = f"{image.file_name} has no annotated objects: every detection in it counts as an error"
            issues.append(DataIssue("empty ground truth", message, image.image_id))
    return images, categories, DataIssues(issues)


def _check_format(path: Path, annotations: list[Any], images: Mapping[int | str, ImageEntry]) -> None:
    """Raise ValueError if the boxes are certainly not x, y, width and height in pixels."""
    by_text = {str(image_id): image for image_id, image in images.items()}
    known = [
        (entry, by_text[str(entry.get("image_id"))].drawn_hw)
        for entry in annotations
        if isinstance(entry, dict) and str(entry.get("image_id")) in by_text
    ]
    found = recognize_format(known)
    if found is not None:
        first = next(entry.get("bbox") for entry, _ in known if plain_box(entry.get("bbox")))
        raise ValueError(
            f"{path}: its boxes, such as {first}, are not x, y, width and height in pixels, as in COCO, but look like "
            f"{found}. Pass box_format={found!r} (--box-format {found}), or 'xywh' if they are right"
        )


def _with_ids(entry: Any, kind: str) -> Any:
    """Convert ids that were written as floats (as pandas does), and category ids that were written as text."""
    if not isinstance(entry, dict):
        return entry
    ids = {key: _as_index(entry[key]) for key in ("id", "image_id", "category_id") if key in entry}
    category = "id" if kind == "categories" else "category_id"
    value = ids.get(category)
    if _is_digits(value):
        ids[category] = int(value)
    return entry | ids


def _with_category_ids(entries: list[Any], categories: Mapping[int, str]) -> list[Any]:
    """Replace the name of a category by its id, where an annotation has the name."""
    by_name = {name: category for category, name in categories.items()}
    return [
        entry | {"category_id": by_name[entry["category_id"]]}
        if isinstance(entry, dict) and isinstance(entry.get("category_id"), str) and entry["category_id"] in by_name
        else entry
        for entry in entries
    ]


def _categories(entries: list[Any], issues: list[DataIssue]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for entry in entries:
        is_named = isinstance(entry, dict) and isinstance(entry.get("name"), (str, int, float))
        if not is_named or not _is_index(entry.get("id")):
            message = f"expected id and name; got {short_repr(entry)}: left out, with its annotations"
            issues.append(DataIssue("unreadable category", message))
        elif categories.get(entry["id"], str(entry["name"])) != str(entry["name"]):
            message = (
                f"category {entry['id']} is {categories[entry['id']]!r} and also {entry['name']!r}: the first is kept"
            )
            issues.append(DataIssue("duplicate category id", message))
        else:
            categories[entry["id"]] = str(entry["name"])
    return categories


def _images(
    entries: list[Any], finder: ImageFinder, issues: list[DataIssue]
) -> tuple[dict[int | str, ImageEntry], set[int | str]]:
    """The valid images by id, and the ids of all images in the file."""
    images: dict[int | str, ImageEntry] = {}
    known: set[int | str] = set()
    written: set[str] = set()
    paths: set[Path] = set()
    for entry in entries:
        if isinstance(entry, dict) and "file_name" not in entry and isinstance(entry.get("coco_url"), str):
            entry = entry | {"file_name": entry["coco_url"]}
        if not _is_image_entry(entry):
            message = f"expected id and file_name; got {short_repr(entry)}: left out"
            issues.append(DataIssue("unreadable image entry", message))
            continue
        image_id, file_name = entry["id"], entry["file_name"]
        path, note = finder.find(file_name)
        if image_id in known or str(image_id) in written:
            message = f"id {image_id} stands for several entries, also {file_name}: the first is kept"
            issues.append(DataIssue("duplicate image id", message, image_id))
            continue
        known.add(image_id)
        written.add(str(image_id))  # 1 and "1" would look the same in a report
        if path is None:
            issues.append(DataIssue("image is missing", f"{note}: left out", image_id))
            continue
        if path in paths:
            message = f"{file_name} is listed again under id {image_id}: left out"
            issues.append(DataIssue("image listed twice", message, image_id))
            continue
        paths.add(path)
        if note:
            issues.append(DataIssue("image found elsewhere", note, image_id))
        try:
            size = image_size(path)
        except ValueError as error:
            issues.append(DataIssue("unreadable image", f"{error} Left out", image_id))
            continue
        stated = (_as_size(entry.get("height")), _as_size(entry.get("width")))
        if all(stated) and stated not in (size.upright_hw, size.stored_hw):
            message = (
                f"{file_name} is {size.upright_hw[1]}x{size.upright_hw[0]} pixels and the file says "
                f"{stated[1]}x{stated[0]}{' (width and height exchanged?)' if stated[::-1] == size.stored_hw else ''}: "
                "left out, because its boxes would not fit"
            )
            issues.append(DataIssue("size differs from the file's", message, image_id))
            continue
        as_stored = all(stated) and stated != size.upright_hw
        images[image_id] = ImageEntry(image_id, file_name, path, size, as_stored)
    return images, known


def _as_size(value: Any) -> Any:
    """A side that was written as text or as a float, as an integer."""
    return int(value) if _is_digits(value) else _as_index(value)


def _is_image_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        return False
    return _is_index(entry.get("id")) or isinstance(entry.get("id"), str)


def _annotations(
    entries: list[Any],
    images: Mapping[int | str, ImageEntry],
    known: set[int | str],
    categories: Mapping[int, str],
    named: bool,
    box_format: str,
    issues: list[DataIssue],
) -> dict[int | str, list[dict[str, Any]]]:
    """Valid annotations by image: id, category_id, box (x, y, w, h), crowd, area, segmentation."""
    rows: dict[int | str, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    written: dict[str, int | str] = {str(image_id): image_id for image_id in known}  # "7" may mean image 7
    for padded in known:  # and 7 the image "000007"
        if _is_digits(padded):
            written.setdefault(str(int(padded)), padded)
    seen: dict[Any, Any] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), (int, str)):
            issues.append(DataIssue("unreadable annotation", f"expected image_id; got {short_repr(entry)}: left out"))
            continue
        image_id: int | str = entry["image_id"]
        image_id = written.get(str(image_id), image_id)
        annotation_id = entry["id"] if _is_index(entry.get("id")) else None
        report = partial(_report, issues, image_id, annotation_id)
        content = hash((image_id, *(str(entry.get(key)) for key in ("category_id", "bbox", "segmentation"))))
        if annotation_id is not None and annotation_id in seen:
            if seen[annotation_id] == content:
                report("duplicate annotation id", "the same object again: left out")
                continue
            report("duplicate annotation id", "the id stands for another object as well: both are kept")
        seen.setdefault(annotation_id, content)
        if image_id not in images:
            if image_id not in known:
                report("annotation of an unlisted image", f"no image has the id {image_id!r}: left out")
            else:
                report("annotation of an image left out", f"image {image_id!r} could not be used: left out")
            continue
        category = entry.get("category_id")
        if not _is_index(category) or (named and category not in categories):
            report("category not in the file", f"no category has the id {category!r}: left out")
            continue
        shape = _shape(entry, images[image_id].drawn_hw, box_format, report)
        if shape is not None:
            rows[image_id].append(
                {"id": -1 - position if annotation_id is None else annotation_id, "category_id": category, **shape}
            )
    return rows


def _report(issues: list[DataIssue], image_id: int | str, annotation_id: int | None, kind: str, message: str) -> None:
    entry = "an annotation without id" if annotation_id is None else f"annotation {annotation_id}"
    issues.append(DataIssue(kind, f"{entry}: {message}", image_id, annotation_id))


def _shape(
    entry: Mapping[str, Any], size_hw: tuple[int, int], box_format: str, report: Callable[[str, str], None]
) -> dict[str, Any] | None:
    """An annotation's box (x, y, w, h), segmentation, area and crowd flag; None where the box is invalid."""
    height, width = size_hw
    segmentation, problem = plain_segmentation(entry.get("segmentation"), size_hw)
    written = entry.get("bbox")
    if problem:
        report("unreadable segmentation", f"{problem}: {'its box' if segmentation is None else 'the rest'} is taken")
    if segmentation is not None and is_empty_box(written):
        box: list[float] | None = box_of_segmentation(segmentation, size_hw)
    else:
        numbers = plain_box(written)
        box = None if numbers is None else to_xywh(numbers, box_format, size_hw)
    if box is None:
        rotated = isinstance(written, list) and len(written) == 5
        hint = " (a rotated box? Give the box around it, or a polygon)" if rotated else ""
        report("unreadable box", f"expected x, y, width, height; got {short_repr(written)}{hint}: left out")
        return None
    x, y, w, h = (float(value) for value in box)
    if w <= 0 or h <= 0:
        report("box of zero size", f"{w:g} wide, {h:g} high: left out")
        return None
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        report("box outside the image", f"{box} in an image of {width}x{height}: left out")
        return None
    if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        report("box partly outside the image", f"{box} in an image of {width}x{height}: kept as it is")
    area = entry.get("area")
    return {
        "box": (x, y, w, h),
        "segmentation": segmentation,
        "area": float(area) if is_number(area) and area > 0 else w * h,
        "crowd": _is_crowd(entry.get("iscrowd"), report),
    }


def _is_crowd(value: Any, report: Callable[[str, str], None]) -> bool:
    """Whether an annotation is a crowd region; some tools write the flag as text."""
    text = str(value).casefold()
    if value is None or text in ("0", "1", "false", "true", "0.0", "1.0"):
        return text in ("1", "true", "1.0")
    report("unreadable crowd flag", f"expected iscrowd 0 or 1; got {short_repr(value)}: taken as one object")
    return False


def _ground_truth(image: ImageEntry, rows: Sequence[Mapping[str, Any]], categories: Mapping[int, str]) -> GroundTruth:
    xywh = np.array([row["box"] for row in rows], dtype=np.float64).reshape(-1, 4)
    if image.as_stored:
        upright = boxes_upright(_xyxy(xywh), image.size)
        xywh = np.concatenate([upright[:, :2], upright[:, 2:] - upright[:, :2]], axis=1)
    ids = torch.tensor([row["category_id"] for row in rows], dtype=torch.int64)
    return GroundTruth(
        image_id=image.image_id,
        file_name=image.file_name,
        path=image.path,
        image_size_hw=image.size.upright_hw,
        boxes_xyxy=torch.from_numpy(_xyxy(xywh)).float(),
        boxes_xywh=xywh,
        labels=ids,
        category_ids=ids,
        crowd=torch.tensor([row["crowd"] for row in rows], dtype=torch.bool),
        area=torch.tensor([row["area"] for row in rows], dtype=torch.float64),
        ids=torch.tensor([row["id"] for row in rows], dtype=torch.int64),
        segmentations=tuple(row["segmentation"] for row in rows),
        size=image.size if image.as_stored else None,
        names=categories,
    )


def _xyxy(xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_digits(value: Any) -> TypeGuard[str]:
    """Whether a value is a text of digits that stands for a 64-bit integer."""
    return isinstance(value, str) and value.isascii() and value.strip().isdigit() and len(value) <= MAX_DIGITS


def _as_index(value: Any) -> Any:
    """Convert an integer that was written as a float; other values are returned as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
