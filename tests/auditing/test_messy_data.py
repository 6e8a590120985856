"""An audit of a folder with every kind of unusual image and label."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks

import detcam
from detcam import adapt
from detcam.adapters import detector
from detcam.auditing import Audit
from detcam.auditing.error_targets import object_regions
from detcam.auditing.verification.evidence import box_region
from detcam.data.annotations import Annotations
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from tests.auditing.scenes import write_scenes

SCENE = draw_scene(28)  # four boats, of which two are wakes alone
HEIGHT, WIDTH = SCENE.image.shape[:2]


def write_messy(folder: Path) -> Path:
    """The same scene in every kind of file, with labels of every kind; returns the JSON file."""
    whole = Image.fromarray(SCENE.image)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter to the right when it is shown
    whole.save(folder / "plain.png")
    whole.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    whole.convert("L").save(folder / "gray.png")
    whole.convert("CMYK").save(folder / "cmyk.jpg", quality=98)
    Image.fromarray(np.asarray(whole.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    whole.save(folder / "cut.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:9000])
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "black.png")
    names = ["plain.png", "turned.png", "gray.png", "cmyk.jpg", "deep.png", "cut.jpg", "black.png", "gone.png"]
    images: list[dict[str, Any]] = [
        {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH} for number, name in enumerate(names)
    ]
    images.append({"id": 0, "file_name": "gray.png"})  # an id for the second time
    annotations: list[dict[str, Any]] = []
    for image in images[:-1]:
        if image["file_name"] in ("black.png", "gray.png"):
            continue  # no ground truth
        for (x1, y1, x2, y2), label in zip(SCENE.boxes_xyxy.tolist(), SCENE.labels.tolist(), strict=True):
            annotations.append(
                {"image_id": image["id"], "category_id": 10 * label, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            )
    first = annotations[0]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    x, y, width, height = (round(value) for value in first["bbox"])
    mask[y : y + height, x : x + width] = 1
    rle = coco_masks.encode(np.asfortranarray(mask))
    first["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    ghost = next(iter(SCENE.ghost_boxes_xyxy.values()))
    left, top, right, bottom = (ghost + np.float32([-6, -6, 6, 6])).tolist()
    annotations.append(
        {"image_id": 0, "category_id": 10, "bbox": [left, top, right - left, bottom - top], "iscrowd": 1}
    )
    annotations.append({"image_id": 0, "category_id": 30, "bbox": [5, 5, 8, 8], "iscrowd": 0})
    for number, entry in enumerate(annotations, 1):
        entry |= {"id": number, "area": entry["bbox"][2] * entry["bbox"][3]}
    annotations.append(dict(annotations[1]))  # the same object again
    categories = [{"id": 10, "name": "Boat"}, {"id": 20, "name": "marker"}, {"id": 30, "name": "gull"}]
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def audited(folder: Path, adapter: Any, out: Path | None = None, **options: Any) -> Audit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = folder / "labels.json"
        return detcam.audit(adapter, folder, labels, out=out, score_threshold=0.5, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_messy(tmp_path_factory.mktemp("messy")).parent


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    adapter = adapt(load_demo_detector(), names=DEMO_NAMES)
    out = tmp_path_factory.mktemp("report")
    return audited(folder, adapter, out, explain=3, explain_missed=1, class_map={"marker": "buoy"})


def test_issues_are_counted(found: Audit) -> None:
    labels = len(SCENE.labels)
    counts = found.issues.counts()
    assert counts == {
        "annotation of an image left out": labels,  # of the image that is gone
        "duplicate image id": 1,
        "duplicate annotation id": 1,
        "image is missing": 1,
        "empty ground truth": 2,
        "category unknown to the model": 1,
        "unreadable image": 1,
    }
    assert found.report is not None
    audit = json.loads((found.report.parent / "audit.json").read_text())
    assert (audit["image_count"], audit["object_count"]) == (6, 4 * labels)
    assert sorted({issue["kind"] for issue in audit["issues"]}) == sorted(counts)
    assert len(found.explained) == 4


def test_a_rotated_image_has_the_same_errors(found: Audit) -> None:
    def errors(file_name: str) -> list[tuple[Any, ...]]:
        return [
            (case.type, case.label, round(case.score, 4), *(round(side, 1) for side in case.box_xyxy))
            for case in found.cases
            if case.file_name == file_name and case.is_false_positive
        ]

    plain, turned = errors("plain.png"), errors("turned.png")
    assert len(plain) == len(SCENE.ghost_boxes_xyxy) - 1, "the wake in the crowd region counts as nothing"
    assert [error for error in turned if error in plain] == plain
    assert len(turned) == len(SCENE.ghost_boxes_xyxy)


def test_images_without_labels_or_detections(found: Audit) -> None:
    gray = [case for case in found.cases if case.file_name == "gray.png"]
    assert gray and {case.type for case in gray} == {"background"}, "without ground truth all is wrong"
    assert not [case for case in found.cases if case.file_name == "black.png" and case.score >= 0.5]
    per_file = {case.file_name for case in found.cases if case.type != "missed"}
    assert {"plain.png", "turned.png", "gray.png", "cmyk.jpg"} <= per_file and "cut.jpg" not in per_file


def test_a_category_unknown_to_the_model_is_left_out(folder: Path) -> None:
    adapter = adapt(load_demo_detector(), names=DEMO_NAMES)
    found = audited(folder, adapter, explain=0, explain_missed=0)
    buoys = int((SCENE.labels == DEMO_NAMES.index("buoy")).sum())
    assert found.issues.counts()["category unknown to the model"] == 1 + 5 * buoys
    assert DEMO_NAMES.index("buoy") not in found.analysis.classes


def test_a_model_with_class_indices_from_zero_is_matched_by_name(folder: Path) -> None:
    """The same detector with its boats as class 0 finds the same boats."""
    model = load_demo_detector()
    shifted = adapt(model, names=DEMO_NAMES)

    def boats(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        results = [model([image])[0] for image in images]
        most = max(len(result["boxes"]) for result in results)
        boxes, scores = torch.zeros(len(results), most, 4), torch.zeros(len(results), most, 2)
        for row, result in enumerate(results):
            count = len(result["boxes"])
            boxes[row, :count] = result["boxes"]
            scores[row, torch.arange(count), result["labels"] - 1] = result["scores"]
        return boxes, scores

    class FromZero(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return boats(images)

    size = (HEIGHT, WIDTH)
    layer = "model.backbone.stride8"
    from_zero = detector(
        FromZero().eval(), lambda raw: raw, image_size=size, names=["boat", "buoy"], target_layers=[layer]
    )
    options: dict[str, Any] = {"explain": 0, "explain_missed": 0, "class_map": {"marker": "buoy"}}
    one, other = audited(folder, shifted, **options), audited(folder, from_zero, **options)
    by_name = [
        {summary.name: summary.true_positives for summary in audit.analysis.classes.values()} for audit in (one, other)
    ]
    assert by_name[0]["boat"] == by_name[1]["boat"] > 4
    assert min(counts["buoy"] for counts in by_name) > 4  # suppression is not quite the same in the two
    assert set(one.analysis.classes) == {1, 2} and set(other.analysis.classes) == {0, 1}


def test_object_regions_are_masks_or_boxes(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, [28])
    data = json.loads(path.read_text())
    x, y, width, height = data["annotations"][0]["bbox"]
    triangle = [x, y, x + width, y, x, y + height]
    data["annotations"][0]["segmentation"] = [triangle]
    path.write_text(json.dumps(data))
    truth = Annotations.load(path, tmp_path / "images").for_classes(DEMO_NAMES)[0]
    from detcam.auditing.errors import DetectionError

    error = DetectionError(0, 1, "localization", 0, 0, None, int(truth.labels[0]), 0.9, 0.3, 0.0, True)
    (box, boxes), (mask, masks) = (object_regions(error, truth, masks=masks) for masks in (False, True))
    assert box is not None and mask is not None
    assert torch.equal(box, box_region(tuple(truth.boxes_xyxy[0].tolist()), truth.image_size_hw))  # type: ignore[arg-type]
    assert 0.4 < float(mask.sum() / box.sum()) < 0.6, "half of the box lies under a triangle"
    assert bool(mask[round(y) + 2, round(x) + 2]) and not mask[round(y + height) - 2, round(x + width) - 2]
    others = [own for own, label in zip(truth.boxes_xyxy.tolist(), truth.labels.tolist(), strict=True)][1:]
    others = [own for own, label in zip(others, truth.labels.tolist()[1:], strict=True) if label == error.label]
    assert len(others) and torch.equal(boxes, torch.stack([box_region(o, truth.image_size_hw) for o in others]).any(0))
    assert torch.equal(masks, boxes), "what has no mask is its box"
    no_object, all_boats = object_regions(replace(error, ground_truth_index=None), truth, masks=True)
    assert no_object is None and torch.equal(all_boats, masks | mask)
