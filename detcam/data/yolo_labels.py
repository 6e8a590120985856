"""Data sets of ultralytics: a data.yaml, and text files of boxes or polygons beside the folders of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detcam.data.coco import CocoContent, read_entries
from detcam.data.coco_files import ImageFinder
from detcam.data.exif import image_size
from detcam.data.issues import DataIssue
from detcam.data.opening import IMAGE_SUFFIXES, check_search
from detcam.utils.console import short_repr
from detcam.utils.files import is_file, is_folder

SPLITS = ("val", "test", "train")
"""Splits of a data.yaml, in the order in which the first one that is there is taken."""


def read_yolo(path: Path, images_dir: Path | None = None) -> CocoContent:
    """Read a data set of ultralytics: images with their objects, class names as categories, and problems.

    A line of a label file is ``class x y w h``, the center and size of a box as fractions of the image, or ``class``
    and the points of a polygon. An image without a label file has no objects.

    Args:
        path: the data.yaml.
        images_dir: a folder of images; None takes the split ``val``, else ``test``, else ``train``. The labels are in
            the folder of the same path with the last ``images`` written as ``labels``, or beside the images.

    Raises:
        ValueError: the file or a folder does not exist, or the file has no class names.
    """
    import yaml

    if not is_file(path):
        raise ValueError(f"no data set file at {path}; check the path")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}); is the file complete?") from error
    named = _class_names(content, path)
    root = _root(path, content) if images_dir is None else images_dir
    files = [file for folder in _folders(path, content, root, images_dir) for file in _images_of(folder, root)]
    if not files:
        raise ValueError(f"{path}: no images below {root}; check path: and val:, or pass the folder of images")
    issues: list[DataIssue] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        try:
            height, width = image_size(file).upright_hw
        except ValueError as error:
            issues.append(DataIssue("unreadable image", f"{error} Left out", number))
            continue
        images.append({"id": number, "file_name": str(file), "width": width, "height": height})
        for entry in _objects(_label_file(file), number, (height, width), issues):
            annotations.append({"id": len(annotations), **entry})
    categories = [{"id": index, "name": name} for index, name in named.items()]
    data = {"images": images, "annotations": annotations, "categories": categories}
    # Without a folder, the data.yaml says where the images are, which is often outside of its own folder.
    return read_entries(data, path, ImageFinder(root, inside=images_dir is not None), "xywh", issues)


def _class_names(content: Any, path: Path) -> dict[int, str]:
    """Class index to name, from the content of a data.yaml."""
    names = content.get("names") if isinstance(content, dict) else None
    named = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{path}: expected a data.yaml of ultralytics with names: of the classes")
    for key, name in named.items():
        if not str(key).isdigit() or not isinstance(name, (str, int, float)):
            raise ValueError(f"{path}: expected names: as index and name; got {short_repr(key)}: {short_repr(name)}")
    return {int(key): str(name) for key, name in named.items()}


def _root(path: Path, content: dict[str, Any]) -> Path:
    root = Path(str(content.get("path") or "."))
    near = path.parent / root
    return root if root.is_absolute() and is_folder(root) else near if is_folder(near) else path.parent


def _folders(path: Path, content: dict[str, Any], root: Path, images_dir: Path | None) -> list[Path]:
    """The folders, or lists of images, of the split that is read."""
    if images_dir is not None:
        return [images_dir]
    split = next((content[name] for name in SPLITS if content.get(name)), None)
    if split is None:
        raise ValueError(f"{path}: expected val:, test: or train: with a folder of images")
    parts = split if isinstance(split, list) else [split]
    found = [root / str(part) for part in parts]
    return [
        each if is_file(each) or is_folder(each) else path.parent / str(part)
        for each, part in zip(found, parts, strict=True)
    ]


def _images_of(folder: Path, root: Path) -> list[Path]:
    if is_file(folder):  # a text file with a path per line
        lines = os.fsdecode(folder.read_bytes()).splitlines()
        return [root / line.strip() for line in lines if line.strip()]
    if not is_folder(folder):
        return []
    check_search(folder)
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _objects(path: Path, image: int, size_hw: tuple[int, int], issues: list[DataIssue]) -> list[dict[str, Any]]:
    """The annotations of one label file; a line that is not valid is reported and left out."""
    if not is_file(path):
        return []
    height, width = size_hw
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text("utf-8-sig", errors="replace").splitlines(), 1):
        try:
            label, *values = (float(part) for part in line.split())
        except ValueError:
            if line.strip():
                issues.append(
                    DataIssue("unreadable label", f"{path.name}, line {number}: {line[:60]!r}: left out", image)
                )
            continue
        is_polygon = len(values) >= 6 and len(values) % 2 == 0
        if (len(values) != 4 and not is_polygon) or not label.is_integer() or not all(0 <= v <= 1.01 for v in values):
            message = f"{path.name}, line {number}: expected class x y w h, or points, in [0, 1]; got {line[:60]!r}"
            issues.append(DataIssue("unreadable label", f"{message}: left out", image))
            continue
        entry: dict[str, Any] = {"image_id": image, "category_id": int(label)}
        if is_polygon:
            entry["segmentation"] = [[v * (height if i % 2 else width) for i, v in enumerate(values)]]
        else:
            x, y, w, h = values
            entry["bbox"] = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        entries.append(entry)
    return entries
