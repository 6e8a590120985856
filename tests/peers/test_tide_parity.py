"""Parity with tidecv (error types, counts and delta AP) and pycocotools (average precision)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detcam.adapters import adapt
from detcam.auditing import ERROR_TYPES, ErrorAnalysis, analyze_errors
from detcam.auditing.average_precision import mean_average_precision, rank_detections
from detcam.auditing.case_table import unexplained_case
from detcam.auditing.matching import match
from detcam.auditing.report.evaluation import Evaluation, mean_over_classes
from detcam.data.annotations import Annotations
from detcam.detections import Detections
from tests.auditing.random_data import detections_of_size, make_random_data, polygon, results, write

pytestmark = pytest.mark.peers

NAMES = {
    "classification": "Cls",
    "localization": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "crowded": {"crowd": 0.5},
    "classes without objects": {"detected": 7},
    "ties": {"ties": True},
    "more than a hundred": {"many": 130},
    "more than a hundred of one class": {"many": 130, "classes": 1},
    "few": {"image_count": 2, "classes": 2},
}


def coco_average_precision(truth_file: Path, entries: list[Any], iou_type: str = "bbox", area: int = 0) -> float:
    """pycocotools' mean average precision at an overlap of 0.5."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        known = set(truth.getCatIds())
        evaluation = COCOeval(truth, truth.loadRes([e for e in entries if e["category_id"] in known]), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    values = evaluation.eval["precision"][0, :, :, area, 2]
    return float(values[values > -1].mean())


def check_against_tide(analysis: ErrorAnalysis, truth_file: Path, results_file: Path, mode: str = "bbox") -> Any:
    tidecv = pytest.importorskip("tidecv")
    tide = tidecv.TIDE(mode=mode)
    run = tide.evaluate(tidecv.datasets.COCO(str(truth_file)), tidecv.datasets.COCOResult(str(results_file)))
    counts = {kind.short_name: number for kind, number in run.count_errors().items()}
    assert {NAMES[kind]: number for kind, number in analysis.counts().items()} == counts
    delta_ap = analysis.delta_ap
    assert delta_ap.average_precision * 100 == pytest.approx(run.ap, abs=1e-9)
    expected = {kind.short_name: value for kind, value in run.fix_main_errors().items()}
    for kind in ERROR_TYPES:
        assert delta_ap.by_type[kind] * 100 == pytest.approx(expected[NAMES[kind]], abs=1e-9), kind
    special = {kind.short_name: value for kind, value in run.fix_special_errors().items()}
    assert delta_ap.false_positive * 100 == pytest.approx(special["FalsePos"], abs=1e-9)
    assert delta_ap.false_negative * 100 == pytest.approx(special["FalseNeg"], abs=1e-9)
    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_equal_error_types_and_delta_ap(tmp_path: Path, kind: str, seed: int) -> None:
    made = make_random_data(tmp_path, seed, **KINDS[kind])
    analysis = analyze_errors(made.detections, made.annotations)
    run = check_against_tide(analysis, made.truth_file, made.results_file)
    entries = json.loads(made.results_file.read_text())
    tide_errors = {error.pred["_id"]: error for error in run.errors if hasattr(error, "pred")}
    index_of = {(e["image_id"], tuple(e["bbox"]), e["score"]): index for index, e in enumerate(entries)}
    for case in analysis.errors:
        if case.detection_index is None:
            continue
        box = made.detections[case.image_index].boxes_xyxy[case.detection_index].double()
        key = (case.image_id, (*box[:2].tolist(), *(box[2:] - box[:2]).tolist()), case.score)
        error = tide_errors[index_of[key]]
        assert error.short_name == NAMES[case.type]
        if hasattr(error, "gt") and kind != "ties":
            assert int(made.annotations[case.image_index].ids[case.ground_truth_index]) == error.gt["_id"] + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_equal_average_precision(tmp_path: Path, kind: str, seed: int) -> None:
    made = make_random_data(tmp_path, seed, **KINDS[kind])
    entries = json.loads(made.results_file.read_text())
    analysis = analyze_errors(made.detections, made.annotations)
    assert analysis.average_precision == pytest.approx(coco_average_precision(made.truth_file, entries), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equal_average_precision_by_area(tmp_path: Path, seed: int, monkeypatch: Any) -> None:
    made = make_random_data(tmp_path, seed, ties=seed % 2 == 1)
    entries = json.loads(made.results_file.read_text())
    ranges = [(0.0, 200.0), (200.0, 450.0), (450.0, 1e10)]
    monkeypatch.setattr("pycocotools.cocoeval.Params.setDetParams", _with_areas(ranges))
    for area, span in enumerate(ranges):
        pairs = list(zip(made.detections, made.annotations, strict=True))
        matches = [match(detections, truth, area_range=span) for detections, truth in pairs]
        rankings = rank_detections(made.detections, list(made.annotations), matches)
        value = mean_average_precision(ranking.average_precision for ranking in rankings.values())
        expected = coco_average_precision(made.truth_file, entries, area=area)
        assert value == pytest.approx(expected, abs=1e-12), span


def _with_areas(ranges: list[tuple[float, float]]) -> Any:
    from pycocotools.cocoeval import Params

    original = Params.setDetParams

    def changed(params: Any) -> None:
        original(params)
        params.areaRng, params.areaRngLbl = ranges, [str(span) for span in ranges]

    return changed


@pytest.mark.parametrize("seed", range(3))
def test_equal_average_precision_of_corrected_detections(tmp_path: Path, seed: int) -> None:
    """Wrong classes and boxes are set right, of the first error on an object; the others are left out."""
    made = make_random_data(tmp_path, seed, ties=seed == 2)
    analysis = analyze_errors(made.detections, made.annotations)
    images = [{"id": image.image_id} for image in made.annotations]
    rng = np.random.default_rng(seed)
    false_positives = analysis.indices(false_positives_only=True)
    groups = [rng.choice(false_positives, 12, replace=False).tolist(), false_positives[:1], false_positives]
    evaluation = Evaluation.from_analysis(analysis)
    for group in groups:
        corrected: list[Detections] = []
        for number, (detections, truth) in enumerate(zip(made.detections, made.annotations, strict=True)):
            boxes, labels = detections.boxes_xyxy.clone(), detections.labels.clone()
            keep = torch.ones(len(detections), dtype=torch.bool)
            taken: set[int] = set()
            for error_index in analysis.indices(image_index=number, false_positives_only=True):
                error = analysis[error_index]
                at, index = error.detection_index, error.ground_truth_index
                is_first = index is not None and analysis.matches[number].missed[index] and index not in taken
                becomes_correct = is_first and error.type in ("classification", "localization")
                taken |= {index} if becomes_correct else set()
                if error_index in group and becomes_correct:
                    boxes[at], labels[at] = truth.boxes_xyxy[index], truth.labels[index]
                elif error_index in group:
                    keep[at] = False
            corrected.append(replace(detections, boxes_xyxy=boxes, labels=labels)[keep])
        expected = coco_average_precision(made.truth_file, results(images, corrected))
        assert analysis.average_precision_corrected(group) == pytest.approx(expected, abs=1e-12)
        rows = np.zeros(len(evaluation.images), dtype=bool)
        rows[[evaluation.rows[analysis[i].image_id, analysis[i].detection_index] for i in group]] = True
        by_class = evaluation.corrected(rows, np.zeros(len(evaluation.object_images), dtype=bool)).class_precision(
            np.ones((1, len(images)))
        )
        assert mean_over_classes(by_class) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])  # in which no recall lies between the two tools' 101 recalls
def test_joint_delta_ap_of_a_type_equals_tides(tmp_path: Path, seed: int) -> None:
    made = make_random_data(tmp_path, seed, crowd=0.0)
    analysis = analyze_errors(made.detections, made.annotations)
    run = check_against_tide(analysis, made.truth_file, made.results_file)
    for kind, value in run.fix_main_errors().items():
        name = next(name for name in ERROR_TYPES if NAMES[name] == kind.short_name)
        assert 100 * analysis.delta_ap_of(analysis.indices(name)) == pytest.approx(value, abs=1e-9), name


def test_confusion_with_a_class_without_objects_costs_the_true_class(tmp_path: Path) -> None:
    """Most barges are called boats, and nothing is a boat: removal of the boats would change nothing."""
    images = [{"id": number, "file_name": f"{number}.png", "height": 40, "width": 40} for number in range(1, 6)]
    box = [5, 5, 20, 20]
    truths = [
        {"id": number, "image_id": number, "category_id": 2, "bbox": box, "segmentation": polygon(box), "area": 400,
         "iscrowd": 0}
        for number in range(1, 6)
    ]  # fmt: skip
    found = [detections_of_size([[5, 5, 25, 25]], [1 if number else 2], [0.9], (40, 40)) for number in range(5)]
    made = write(tmp_path, images, truths, 2, found)
    analysis = analyze_errors(found, made.annotations)
    run = check_against_tide(analysis, made.truth_file, made.results_file)
    confused = analysis.indices("classification")
    assert len(confused) == 4 and analysis.average_precision == pytest.approx(21 / 101)
    fixed = run.ap + next(value for kind, value in run.fix_main_errors().items() if kind.short_name == "Cls")
    assert 100 * analysis.average_precision_corrected(confused) == pytest.approx(fixed) == 100
    assert analysis.delta_ap_of(confused) == pytest.approx(80 / 101)
    assert unexplained_case(analysis, confused[0], found, made.annotations).delta_ap == pytest.approx(20 / 101)


@pytest.mark.parametrize("seed", range(3))
def test_equal_results_for_masks(tmp_path: Path, seed: int) -> None:
    from pycocotools import mask as coco_masks

    made = make_random_data(tmp_path, seed)
    entries = json.loads(made.results_file.read_text())
    detections, start = [], 0
    for boxes in made.detections:
        rles = []
        for entry in entries[start : start + len(boxes)]:
            x, y, w, h = entry["bbox"]
            slanted = [[x, y, x + w, y + h / 3, x + w, y + h, x + w / 4, y + h]]
            rle = coco_masks.merge(coco_masks.frPyObjects(slanted, *boxes.image_size_hw))
            rles.append(rle)
            entry["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        start += len(boxes)
        masks = np.zeros((0, *boxes.image_size_hw), np.uint8)
        if rles:
            masks = coco_masks.decode(rles).transpose(2, 0, 1)
        detections.append(replace(boxes, masks=torch.from_numpy(masks.copy()).bool()))
    made.results_file.write_text(json.dumps(entries))
    analysis = analyze_errors(detections, made.annotations, iou_type="segm")
    check_against_tide(analysis, made.truth_file, made.results_file, mode="mask")
    assert analysis.average_precision == pytest.approx(
        coco_average_precision(made.truth_file, entries, "segm"), abs=1e-12
    )
    assert analysis.average_precision != analyze_errors(detections, made.annotations).average_precision


def test_equal_overlaps_are_matched_differently_by_coco_and_tide(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 40}]
    boxes = [[0, 0, 10, 10], [4, 0, 10, 10]]
    truths = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": polygon(box), "area": 100, "iscrowd": 0}
        for i, box in enumerate(boxes, start=1)
    ]
    detections = [detections_of_size([[2, 0, 12, 10], [0, 0, 10, 10]], [1, 1], [0.9, 0.8], (40, 40))]
    made = write(tmp_path, images, truths, 1, detections)
    analysis = analyze_errors(detections, made.annotations)
    check_against_tide(analysis, made.truth_file, made.results_file)
    expected = coco_average_precision(made.truth_file, results(images, detections))
    assert analysis.average_precision == pytest.approx(expected, abs=1e-12) == 1
    assert analysis.counts()["duplicate"] == analysis.counts()["missed"] == 1


def _detect(
    reference: ModuleType, data: Path, folder: Path, name: str, images: int
) -> tuple[Path, Path, Annotations, list[Detections]]:
    """Detect cells in the first images of BCCD's test split and write the two files that tidecv reads."""
    if name == "fasterrcnn":
        offset, names = 0, {1: "RBC", 2: "WBC", 3: "Platelets"}
        adapter = adapt(reference.bccd_fasterrcnn(), names=names)
    else:  # low scores contribute to average precision
        offset, names = 1, {0: "RBC", 1: "WBC", 2: "Platelets"}
        adapter = adapt(reference.bccd_yolo(), names=names, image_size=320, conf=0.01)
    file = json.loads((data / "bccd" / "test.json").read_text())
    file["images"] = file["images"][:images]
    image_ids = {image["id"] for image in file["images"]}
    file["annotations"] = [
        {**entry, "segmentation": polygon(entry["bbox"])}
        for entry in file["annotations"]
        if entry["image_id"] in image_ids
    ]
    truth_file, results_file = folder / "truth.json", folder / "results.json"
    truth_file.write_text(json.dumps(file))
    annotations = Annotations.load(truth_file, data / "bccd" / "images").for_classes(names)
    detections = adapter.predict(annotations.paths, batch_size=4)
    results_file.write_text(json.dumps(results(file["images"], detections, offset)))
    return truth_file, results_file, annotations, detections


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("fasterrcnn", 6),
        ("yolo", 6),
        pytest.param("fasterrcnn", 72, marks=pytest.mark.slow),
        pytest.param("yolo", 72, marks=pytest.mark.slow),
    ],
)
def test_equal_results_for_blood_cell_detectors(
    reference: ModuleType, data: Path, tmp_path: Path, name: str, images: int
) -> None:
    if name == "yolo" and importlib.util.find_spec("ultralytics") is None:
        pytest.skip("ultralytics is not installed")
    truth_file, results_file, annotations, detections = _detect(reference, data, tmp_path, name, images)
    analysis = analyze_errors(detections, annotations)
    check_against_tide(analysis, truth_file, results_file)
    expected = coco_average_precision(truth_file, json.loads(results_file.read_text()))
    assert analysis.average_precision == pytest.approx(expected, abs=1e-12)
    assert 0.5 < expected < 1 and sum(analysis.counts().values()) > 20
