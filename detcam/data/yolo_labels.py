"""Data sets of ultralytics: a data.yaml, and text files of boxes or polygons beside the folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detcam.data.coco import CocoContent, read_entries
from detcam.data.decoding import IMAGE_SUFFIXES
from detcam.data.exif import image_size
from detcam.data.issues import DataIssue

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

    if not path.is_file():
        raise ValueError(f"no data set file at {path}; check the path")
    content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    names = content.get("names") if isinstance(content, dict) else None
    if not isinstance(names, (list, dict)) or not names:
        raise ValueError(f"{path}: expected a data.yaml of ultralytics with names: of the classes")
    named = dict(enumerate(names)) if isinstance(names, list) else {int(key): name for key, name in names.items()}
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
    categories = [{"id": index, "name": str(name)} for index, name in named.items()]
    data = {"images": images, "annotations": annotations, "categories": categories}
    return read_entries(data, path, root, "xywh", issues)


def _root(path: Path, content: dict[str, Any]) -> Path:
    root = Path(str(content.get("path") or "."))
    near = path.parent / root
    return root if root.is_absolute() and root.is_dir() else near if near.is_dir() else path.parent


def _folders(path: Path, content: dict[str, Any], root: Path, images_dir: Path | None) -> list[Path]:
    """The folders, or lists of images, of the split that is read."""
    if images_dir is not None:
        return [images_dir]
    split = next((content[name] for name in SPLITS if content.get(name)), None)
    if split is None:
        raise ValueError(f"{path}: expected val:, test: or train: with a folder of images")
    parts = split if isinstance(split, list) else [split]
    return [found if (found := root / str(part)).exists() else path.parent / str(part) for part in parts]


def _images_of(folder: Path, root: Path) -> list[Path]:
    if folder.is_file():  # a text file with a path per line
        lines = folder.read_text(encoding="utf-8").splitlines()
        return [root / line.strip() for line in lines if line.strip()]
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
    if not path.is_file():
        return []
    height, width = size_hw
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
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
