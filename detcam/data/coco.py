"""Reads COCO files and checks every entry; an invalid entry is reported and left out without affecting the others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from pycocotools import mask as coco_masks

from detcam.data.exif import ImageSize, boxes_upright, image_size
from detcam.data.ground_truth import GroundTruth, as_rle
from detcam.data.issues import DataIssue, DataIssues
from detcam.utils.console import short_repr

CocoContent = tuple[tuple[GroundTruth, ...], dict[int, str], DataIssues]
"""Images with their objects, categories by id, and problems."""


@dataclass(frozen=True)
class _Image:
    image_id: int | str
    file_name: str
    path: Path
    image_size_hw: tuple[int, int]
    drawn_hw: tuple[int, int]
    size: ImageSize | None


def read_coco(path: Path, images_dir: Path) -> CocoContent:
    """Read a COCO file: images with their objects, categories by id, and problems.

    Raises:
        ValueError: the file or folder does not exist, or the file is not JSON in COCO's format.
    """
    data = _read_json(path)
    if not images_dir.is_dir():
        raise ValueError(f"no folder of images at {images_dir}; check the path")
    issues: list[DataIssue] = []
    categories = _categories(data["categories"], issues)
    image_list, known = _images(data["images"], images_dir, issues)
    rows = _annotations(data["annotations"], image_list, known, categories, bool(data["categories"]), issues)
    images = tuple(_ground_truth(entry, rows[image_id], categories) for image_id, entry in image_list.items())
    for image in images:
        if not len(image):
            message = f"{image.file_name} has no annotated objects: every detection in it counts as an error"
            issues.append(DataIssue("empty ground truth", message, image.image_id))
    return images, categories, DataIssues(issues)


def _read_json(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise ValueError(f"no annotation file at {path}; check the path")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); is the file complete?") from error
    shape = 'a COCO file: {"images": [...], "annotations": [...], "categories": [...]}'
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected {shape}; got a {type(data).__name__} at the top")
    lists: dict[str, Any] = {name: data.get(name) for name in ("images", "annotations", "categories")}
    lists["categories"] = lists["categories"] or []  # a file of one class may do without
    for name, value in lists.items():
        if not isinstance(value, list):
            got = "nothing" if value is None else f"a {type(value).__name__}"
            raise ValueError(f"{path}: expected {shape}; got {got} under {name!r}")
    return {name: [_with_ids(entry, name) for entry in value] for name, value in lists.items()}


def _with_ids(entry: Any, kind: str) -> Any:
    """Convert ids that were written as floats (as pandas does), and category ids that were written as text."""
    if not isinstance(entry, dict):
        return entry
    ids = {key: _as_index(entry[key]) for key in ("id", "image_id", "category_id") if key in entry}
    category = "id" if kind == "categories" else "category_id"
    value = ids.get(category)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        ids[category] = int(value)
    return entry | ids


def _categories(entries: list[Any], issues: list[DataIssue]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not _is_index(entry.get("id")) or "name" not in entry:
            issues.append(DataIssue("unreadable category", f"expected id and name; got {short_repr(entry)}: left out"))
        elif categories.get(entry["id"], str(entry["name"])) != str(entry["name"]):
            message = (
                f"category {entry['id']} is {categories[entry['id']]!r} and also {entry['name']!r}: the first is kept"
            )
            issues.append(DataIssue("duplicate category id", message))
        else:
            categories[entry["id"]] = str(entry["name"])
    return categories


def _images(
    entries: list[Any], folder: Path, issues: list[DataIssue]
) -> tuple[dict[int | str, _Image], set[int | str]]:
    """The valid images by id, and the ids of all images in the file."""
    images: dict[int | str, _Image] = {}
    known: set[int | str] = set()
    written: set[str] = set()
    paths: set[Path] = set()
    for entry in entries:
        if not _is_image_entry(entry):
            message = f"expected id and file_name; got {short_repr(entry)}: left out"
            issues.append(DataIssue("unreadable image entry", message))
            continue
        image_id, file_name = entry["id"], entry["file_name"]
        path = folder / file_name
        if image_id in known or str(image_id) in written:
            message = f"id {image_id} stands for several entries, also {file_name}: the first is kept"
            issues.append(DataIssue("duplicate image id", message, image_id))
            continue
        known.add(image_id)
        written.add(str(image_id))  # 1 and "1" would look the same in a report
        if path in paths:
            message = f"{file_name} is listed again under id {image_id}: left out"
            issues.append(DataIssue("image listed twice", message, image_id))
            continue
        paths.add(path)
        if not path.is_file():
            issues.append(DataIssue("image is missing", f"no image file at {path}: left out", image_id))
            continue
        try:
            size = image_size(path)
        except ValueError as error:
            issues.append(DataIssue("unreadable image", f"{error} Left out", image_id))
            continue
        stated = (entry.get("height"), entry.get("width"))
        if all(stated) and stated not in (size.upright_hw, size.stored_hw):
            message = (
                f"{file_name} is {size.upright_hw[1]}x{size.upright_hw[0]} pixels and the file says "
                f"{stated[1]}x{stated[0]}: left out, because its boxes would not fit"
            )
            issues.append(DataIssue("size differs from the file's", message, image_id))
            continue
        as_stored = all(stated) and stated != size.upright_hw
        drawn = size.stored_hw if as_stored else size.upright_hw
        images[image_id] = _Image(image_id, file_name, path, size.upright_hw, drawn, size if as_stored else None)
    return images, known


def _is_image_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        return False
    return _is_index(entry.get("id")) or isinstance(entry.get("id"), str)


def _annotations(
    entries: list[Any],
    images: Mapping[int | str, _Image],
    known: set[int | str],
    categories: Mapping[int, str],
    named: bool,
    issues: list[DataIssue],
) -> dict[int | str, list[dict[str, Any]]]:
    """Valid annotations by image: id, category_id, box (x, y, w, h), crowd, area, segmentation."""
    rows: dict[int | str, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    written: dict[str, int | str] = {str(image_id): image_id for image_id in known}  # "7" may mean image 7
    seen: dict[Any, Any] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), (int, str)):
            issues.append(DataIssue("unreadable annotation", f"expected image_id; got {short_repr(entry)}: left out"))
            continue
        image_id: int | str = entry["image_id"]
        image_id = written.get(str(image_id), image_id)
        annotation_id = entry["id"] if _is_index(entry.get("id")) else None
        report = partial(_report, issues, image_id, annotation_id)
        content = (image_id, entry.get("category_id"), str(entry.get("bbox")), str(entry.get("segmentation")))
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
        shape = _shape(entry, images[image_id].drawn_hw, report)
        if shape is not None:
            rows[image_id].append(
                {"id": -1 - position if annotation_id is None else annotation_id, "category_id": category, **shape}
            )
    return rows


def _report(issues: list[DataIssue], image_id: int | str, annotation_id: int | None, kind: str, message: str) -> None:
    entry = "an annotation without id" if annotation_id is None else f"annotation {annotation_id}"
    issues.append(DataIssue(kind, f"{entry}: {message}", image_id, annotation_id))


def _shape(
    entry: Mapping[str, Any], size_hw: tuple[int, int], report: Callable[[str, str], None]
) -> dict[str, Any] | None:
    """An annotation's box (x, y, w, h), segmentation, area and crowd flag; None where the box is invalid."""
    height, width = size_hw
    segmentation, problem = _segmentation(entry.get("segmentation"), size_hw)
    box = entry.get("bbox")
    if problem:
        report("unreadable segmentation", f"{problem}: {'its box' if segmentation is None else 'the rest'} is taken")
    if box is None and segmentation is not None:
        box = coco_masks.toBbox(as_rle(segmentation, height, width)).tolist()
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        report("unreadable box", f"expected x, y, width, height; got {short_repr(box)}: left out")
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
        "area": float(area) if _is_number(area) else w * h,
        "crowd": _is_crowd(entry.get("iscrowd"), report),
    }


def _is_crowd(value: Any, report: Callable[[str, str], None]) -> bool:
    """Whether an annotation is a crowd region; some tools write the flag as text."""
    if value is None or value in (0, 1, "0", "1"):
        return value in (1, "1")
    report("unreadable crowd flag", f"expected iscrowd 0 or 1; got {short_repr(value)}: taken as one object")
    return False


def _segmentation(value: Any, size_hw: tuple[int, int]) -> tuple[Any, str]:
    """The valid part of a segmentation, or None; and a description of its problem."""
    if not value:
        return None, ""
    if isinstance(value, list):
        polygons = [value] if _is_number(value[0]) else value
        good = [
            polygon
            for polygon in polygons
            if isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(_is_number(number) for number in polygon)
        ]
        return (good, "") if len(good) == len(polygons) else (good or None, "a polygon without three points")
    if not isinstance(value, dict) or not isinstance(value.get("counts"), (list, str)):
        return None, f"expected polygons or run lengths; got {short_repr(value)}"
    if value.get("size") != list(size_hw):
        return None, f"its run lengths are for {value.get('size')} (height, width) and the image has {list(size_hw)}"
    counts = value["counts"]
    runs = run_lengths(counts) if isinstance(counts, str) else counts
    if runs is None or not all(_is_index(run) and run >= 0 for run in runs) or sum(runs) != size_hw[0] * size_hw[1]:
        return None, "its run lengths do not add up to the image"
    return value, ""


def run_lengths(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths; return None for an invalid text, which pycocotools does not check.

    A number is a sequence of characters from "0" with five bits each, the lowest first; bit 32 marks that more follow.
    From the fourth number on, the difference to the last but one is stored.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    return runs if shift == 0 else None


def _ground_truth(image: _Image, rows: Sequence[Mapping[str, Any]], categories: Mapping[int, str]) -> GroundTruth:
    xywh = np.array([row["box"] for row in rows], dtype=np.float64).reshape(-1, 4)
    if image.size is not None:
        upright = boxes_upright(_xyxy(xywh), image.size)
        xywh = np.concatenate([upright[:, :2], upright[:, 2:] - upright[:, :2]], axis=1)
    ids = torch.tensor([row["category_id"] for row in rows], dtype=torch.int64)
    return GroundTruth(
        image_id=image.image_id,
        file_name=image.file_name,
        path=image.path,
        image_size_hw=image.image_size_hw,
        boxes_xyxy=torch.from_numpy(_xyxy(xywh)).float(),
        boxes_xywh=xywh,
        labels=ids,
        category_ids=ids,
        crowd=torch.tensor([row["crowd"] for row in rows], dtype=torch.bool),
        area=torch.tensor([row["area"] for row in rows], dtype=torch.float64),
        ids=torch.tensor([row["id"] for row in rows], dtype=torch.int64),
        segmentations=tuple(row["segmentation"] for row in rows),
        size=image.size,
        names=categories,
    )


def _xyxy(xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _as_index(value: Any) -> Any:
    """Convert an integer that was written as a float; other values are returned as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
