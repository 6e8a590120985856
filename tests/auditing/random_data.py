"""Random annotations and detections, as files and as objects: crowd regions, ties, near misses, duplicates."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detcam.data.annotations import Annotations, GroundTruth
from detcam.detections import Detections, Source

HEIGHT, WIDTH = 90, 120
BOX, RIGHT = [0, 0, 10, 10], [20, 20, 30, 30]


@dataclass(frozen=True)
class RandomData:
    """A COCO annotation file, a results file, and the same as objects."""

    truth_file: Path
    results_file: Path
    annotations: Annotations
    detections: list[Detections]


def detections_of_size(
    boxes: Any, labels: Any, scores: Any, size_hw: tuple[int, int] = (HEIGHT, WIDTH), masks: Any = None
) -> Detections:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(
        boxes,
        torch.as_tensor(labels, dtype=torch.int64),
        torch.as_tensor(scores, dtype=torch.float32),
        size_hw,
        (Source("region"),) * len(boxes),
        masks=None if masks is None else torch.as_tensor(masks, dtype=torch.bool),
    )


def polygon(box_xywh: Any) -> list[list[float]]:
    x, y, w, h = box_xywh
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def write(
    folder: Path, images: list[Any], annotations: list[Any], classes: int, detections: list[Detections]
) -> RandomData:
    """Write both files and blank images."""
    for image in images:
        if not (folder / image["file_name"]).exists():
            Image.new("L", (image["width"], image["height"])).save(folder / image["file_name"])
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, classes + 1)]
    truth_file, results_file = folder / "truth.json", folder / "results.json"
    truth_file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    results_file.write_text(json.dumps(results(images, detections)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = Annotations.load(truth_file, folder).for_classes({i: f"Thing {i}" for i in range(1, classes + 1)})
    return RandomData(truth_file, results_file, read, detections)


def results(images: list[Any], detections: list[Detections], offset: int = 0) -> list[dict[str, Any]]:
    """The entries of a COCO results file; category ids are labels plus an offset."""
    entries = []
    for image, found in zip(images, detections, strict=True):
        boxes = found.boxes_xyxy.double()
        boxes[:, 2:] -= boxes[:, :2]
        for box, label, score in zip(boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True):
            entry = {"image_id": image["id"], "category_id": label + offset, "bbox": box, "score": score}
            entries.append({**entry, "segmentation": polygon(box)})
    return entries


def make_random_data(
    folder: Path,
    seed: int,
    *,
    image_count: int = 10,
    classes: int = 4,
    detected: int | None = None,
    crowd: float = 0.15,
    ties: bool = False,
    many: int = 0,
) -> RandomData:
    """Generate random objects, and correct, misplaced, misclassified, duplicate and background detections.

    Args:
        folder: folder of the files.
        seed: seed of the generator.
        image_count: number of images.
        classes: number of classes of the file.
        detected: number of classes of the model; those beyond the file have no objects.
        crowd: share of crowd regions.
        ties: whether coordinates are integers and scores multiples of 0.1.
        many: number of further background detections in the first image.
    """
    random = np.random.default_rng(seed)
    images, annotations, found = [], [], []
    for number in range(image_count):
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
        boxes, labels = [], []
        for _ in range(int(random.integers(0, 7))):
            corner, extent = random.uniform(0, 60, 2), random.uniform(8, 30, 2)
            box = np.concatenate([corner, extent])
            box = box.round() if ties else box.astype(np.float32).astype(np.float64).round(3)
            label = int(random.integers(1, classes + 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": label,
                    "bbox": box.tolist(),
                    "segmentation": polygon(box.tolist()),
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(random.random() < crowd),
                }
            )
            for _ in range(int(random.integers(0, 4))):
                shift = random.normal(0, random.choice([1, 4, 8]), 4)
                near = np.concatenate([box[:2] + shift[:2], np.maximum(box[2:] + shift[2:], 2)])
                boxes.append(np.concatenate([near[:2], near[:2] + near[2:]]))
                wrong = random.random() < 0.25
                labels.append(int(random.integers(1, (detected or classes) + 1)) if wrong else label)
        for _ in range(int(random.integers(0, 3)) + (many if number == 0 else 0)):
            corner, extent = random.uniform(0, 60, 2), random.uniform(8, 30, 2)
            boxes.append(np.concatenate([corner, corner + extent]))
            labels.append(int(random.integers(1, (detected or classes) + 1)))
        scores = random.uniform(0.05, 1, len(boxes))
        stack = np.stack(boxes) if boxes else np.zeros((0, 4))
        found.append(detections_of_size(stack.round() if ties else stack, labels, scores.round(1) if ties else scores))
    return write(folder, images, annotations, classes, found)


def make_ground_truth(
    boxes: Any, labels: Any, *, crowd: Any = None, size_hw: tuple[int, int] = (40, 40)
) -> GroundTruth:
    """Create the objects of an image without a file."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    xywh = boxes.double().numpy().copy()
    xywh[:, 2:] -= xywh[:, :2]
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return GroundTruth(
        image_id=1,
        file_name="a.png",
        path=Path("a.png"),
        image_size_hw=size_hw,
        boxes_xyxy=boxes,
        boxes_xywh=xywh,
        labels=labels,
        category_ids=labels,
        crowd=torch.zeros(len(labels), dtype=torch.bool) if crowd is None else torch.tensor(crowd),
        area=torch.from_numpy(xywh[:, 2:].prod(1)),
        ids=torch.arange(len(labels)),
        segmentations=(None,) * len(labels),
    )


def make_detections(boxes: Any, labels: Any, scores: Any, **options: Any) -> Detections:
    """Create the detections of such an image."""
    return detections_of_size(boxes, labels, scores, (40, 40), **options)
