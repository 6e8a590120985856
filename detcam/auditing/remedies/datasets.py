"""Training sets in COCO's and YOLO's format, which can be added to training as they are."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from detcam.auditing.case import Box
from detcam.auditing.remedies.counterfactuals import TrainingImage
from detcam.auditing.report.layout import image_stem
from detcam.auditing.report.report_data import ReportData, ReportObject
from detcam.utils.files import json_value, replace_file

JPEG_QUALITY = 95


def write_training_set(folder: Path, data: ReportData, images: Iterable[TrainingImage]) -> int:
    """Write images, ``annotations.json`` (COCO), and ``labels/`` with ``data.yaml`` (YOLO).

    Objects of classes that the annotation file does not list are left out.

    Args:
        folder: folder of the training set.
        data: the report.
        images: training images.

    Returns:
        Number of images.
    """
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    indices = {name: index for index, name in data.yolo_names.items()}
    for number, item in enumerate(images, 1):
        stem = f"{number:05d}-{item.kind}-{image_stem(item.image.image_id, item.image.file_name)}"
        height, width = item.pixels.shape[:2]
        replace_file(folder / "images" / f"{stem}.jpg", encode_jpeg(item.pixels))
        entries.append(
            {
                "id": number,
                "file_name": f"{stem}.jpg",
                "width": width,
                "height": height,
                "kind": item.kind,
                "original": item.image.file_name,
                "cases": list(item.case_ids),
            }
        )
        for each in item.objects:
            if each.name in data.categories:
                annotations.append(coco_annotation(len(annotations) + 1, number, data.categories[each.name], each))
        lines = [
            yolo_line(indices[each.name], each.box_xyxy, (height, width))
            for each in item.objects
            if each.name in indices and not each.crowd
        ]
        replace_file(folder / "labels" / f"{stem}.txt", "".join(lines).encode())
    categories = [{"id": category, "name": name} for name, category in data.categories.items()]
    coco = {"images": entries, "annotations": annotations, "categories": categories}
    replace_file(folder / "annotations.json", json.dumps(coco, indent=1).encode())
    names = {"train": "images", "val": "images", "names": data.yolo_names}
    replace_file(folder / "data.yaml", yaml.safe_dump(names, sort_keys=False, allow_unicode=True).encode())
    return len(entries)


def encode_jpeg(pixels: Any) -> bytes:
    """Encode an image (H, W, 3) uint8 as JPEG with full color resolution."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def coco_annotation(number: int, image_id: int | str, category: int, item: ReportObject, **more: Any) -> dict[str, Any]:
    """Convert an object to an annotation of a COCO file."""
    left, top, right, bottom = (float(value) for value in item.box_xyxy)
    box = [left, top, right - left, bottom - top]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": json_value(box),
        "area": json_value(box[2] * box[3]),
        "segmentation": [],
        "iscrowd": int(item.crowd),
        **more,
    }


def yolo_line(index: int, box_xyxy: Box, size_hw: tuple[int, int]) -> str:
    """Convert a box to a line of a YOLO label file: class, center and size as fractions, clipped to the image."""
    height, width = size_hw
    left, right = (min(max(value, 0.0), width) for value in box_xyxy[::2])
    top, bottom = (min(max(value, 0.0), height) for value in box_xyxy[1::2])
    values = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    return f"{index} " + " ".join(f"{value:.6f}" for value in values) + "\n"
