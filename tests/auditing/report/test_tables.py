"""The CSV table and the COCO file of the false positives."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from detcam.auditing.report.tables import CSV_COLUMNS, ERROR_SCHEMA, false_positives_coco, false_positives_csv
from detcam.data.annotations import Annotations
from tests.auditing.report.made_up import HOSTILE, SampleImage, make_images, summary_of, write


@pytest.fixture(scope="module")
def samples() -> list[SampleImage]:
    return make_images(range(6))


def rows_of(parts: Iterable[bytes]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(b"".join(parts).decode("utf-8-sig"), newline="")))


def test_table_has_one_row_per_false_positive_explained_ones_first(samples: list[SampleImage]) -> None:
    summary = summary_of(samples)
    parts = list(false_positives_csv(summary))
    assert parts[0].startswith(b"\xef\xbb\xbfid,") and not any(b"\xef\xbb\xbf" in part for part in parts[1:])
    rows = rows_of(parts)
    expected = {case.id: case for case in summary.cases if case.is_false_positive}
    assert len(rows) == len(expected) < len(summary.cases) and {row["id"] for row in rows} == expected.keys()
    ranked = sorted(expected.values(), key=lambda case: (not case.method, -case.score))
    assert [row["id"] for row in rows] == [case.id for case in ranked]
    for row in rows:
        case = expected[row["id"]]
        assert tuple(row) == CSV_COLUMNS
        corners = [float(row[name]) for name in ("left", "top", "right", "bottom")]
        assert corners == pytest.approx(case.box_xyxy, rel=1e-6)
        assert (row["class"], row["label"], row["type"]) == (case.name, str(case.label), case.type)
        assert float(row["score"]) == pytest.approx(case.score)
        assert (row["evidence_location"], row["verdict"]) == (case.evidence_location or "", case.verdict)
        numbers = [float(row[name] or "nan") for name in ("effect", "error_rate")]
        assert (
            numbers == pytest.approx([case.effect, case.error_rate], nan_ok=True) and row["proposal"] == case.proposal
        )
        assert row["ground_truth_class"] == ("" if case.ground_truth is None else case.ground_truth.name)
        assert row["iou"] == ("" if case.ground_truth is None else str(case.ground_truth.iou))
        assert (row["group"] == "") == (case.group is None) and (row["evidence_fraction"] == "") == (not case.method)


FORMULAS = ["=1+1", "+1", "-1", "@x", '=HYPERLINK("a")']
CONTROLS = [("\t=1", r"\t=1"), ("\r=1", r"\r=1"), ("\n=1", r"\n=1")]


@pytest.mark.parametrize(("text", "printed"), [*((text, text) for text in FORMULAS), *CONTROLS])
def test_formulas_are_escaped(samples: list[SampleImage], text: str, printed: str) -> None:
    case = replace(samples[0].cases[0][0], file_name=text, name=text, image_id=text, box_xyxy=(-3.5, 0.0, 4.0, 4.0))
    row = rows_of(false_positives_csv(summary_of(samples, cases=(case,), groups=())))[0]
    assert row["file_name"] == row["class"] == row["image_id"] == "'" + printed
    assert row["left"] == "-3.5", "numbers stay numbers"


def test_quotes_round_trip_and_line_breaks_are_escaped(samples: list[SampleImage]) -> None:
    name = HOSTILE + ',;"\n'
    case = replace(samples[0].cases[0][0], name=name)
    row = rows_of(false_positives_csv(summary_of(samples, cases=(case,), groups=())))[0]
    assert row["class"] == name.replace("\n", r"\n")


def load(path: Path) -> COCO:
    with redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_reads_the_false_positives(tmp_path: Path, samples: list[SampleImage]) -> None:
    summary = summary_of(samples)
    coco = load(write(tmp_path, samples, summary).parent / "false_positives.coco.json")
    expected = [case for case in summary.cases if case.is_false_positive]
    assert sorted(coco.getImgIds()) == sorted({case.image_id for case in expected})
    assert {cat["id"]: cat["name"] for cat in coco.loadCats(coco.getCatIds())} == {11: "boat", 12: "buoy"}
    assert len(coco.getAnnIds()) == len(expected)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        case = next(case for case in expected if case.id == annotation["attributes"]["case"])
        left, top, width, height = annotation["bbox"]
        assert (left, top, left + width, top + height) == pytest.approx(case.box_xyxy, rel=1e-5)
        assert annotation["area"] == pytest.approx(width * height, rel=1e-5)
        assert annotation["score"] == pytest.approx(case.score) and annotation["iscrowd"] == 0
        assert annotation["category_id"] == case.label + 10 and annotation["image_id"] == case.image_id
        image = coco.loadImgs([annotation["image_id"]])[0]
        assert (image["file_name"], image["height"], image["width"]) == (case.file_name, *case.image_size_hw)
        attributes = annotation["attributes"]
        assert (attributes["type"], attributes["verdict"]) == (case.type, case.verdict)


def test_detcam_reads_the_false_positives_as_annotations(tmp_path: Path, samples: list[SampleImage]) -> None:
    path = write(tmp_path / "report", samples).parent / "false_positives.coco.json"
    from PIL import Image

    for pixels in samples:
        file = tmp_path / "images" / pixels.truths.file_name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.scene.image).save(file)
    read = Annotations.load(path, tmp_path / "images")
    expected = [case for case in summary_of(samples).cases if case.is_false_positive]
    assert sum(len(image) for image in read) == len(expected) and not len(read.issues)
    first = read[0].boxes_xyxy[0].tolist()
    assert first == pytest.approx(expected[0].box_xyxy, rel=1e-5)


def test_non_integer_ids_are_replaced(samples: list[SampleImage]) -> None:
    cases = tuple(replace(case, image_id=f"id {case.image_id}") for case in summary_of(samples).cases)
    parts = false_positives_coco(summary_of(samples, cases=cases, groups=(), category_ids={1: 11}))
    coco = json.loads(b"".join(parts))
    expected = [case for case in cases if case.is_false_positive]
    assert [image["id"] for image in coco["images"]] == list(range(1, len({case.image_id for case in expected}) + 1))
    by_id = {image["id"]: image["file_name"] for image in coco["images"]}
    for annotation, case in zip(coco["annotations"], expected, strict=True):
        assert by_id[annotation["image_id"]] == case.file_name
        # One class has no category in the file: all take class indices, so that ids are unique.
        assert annotation["category_id"] == case.label
    assert {category["id"] for category in coco["categories"]} == {1, 2}


def test_parquet_file_has_all_errors(tmp_path: Path, samples: list[SampleImage]) -> None:
    cases = summary_of(samples).cases
    hostile = replace(cases[0], id="case-x", file_name="bad\udcff.png", name="=1", image_id="five")
    summary = summary_of(samples, cases=(*cases, hostile))
    table = pq.read_table(write(tmp_path, samples, summary).parent / "errors.parquet")
    assert table.schema == ERROR_SCHEMA
    for row, case in zip(table.to_pylist(), summary.cases, strict=True):
        assert (row["id"], row["type"], row["label"], row["score"]) == (case.id, case.type, case.label, case.score)
        assert row["is_false_positive"] == case.is_false_positive and row["verdict"] == case.verdict
        assert [row[name] for name in ("left", "top", "right", "bottom")] == pytest.approx(case.box_xyxy)
        assert (row["method"], row["group"]) == (case.method, case.group)
        truth = case.ground_truth
        expected = (None, None) if truth is None else (truth.name, str(truth.annotation_id))
        assert (row["ground_truth_class"], row["annotation_id"]) == expected
    assert (row["file_name"], row["class"], row["image_id"]) == ("bad\\udcff.png", "=1", "five")


def test_an_audit_without_errors_has_empty_tables(tmp_path: Path, samples: list[SampleImage]) -> None:
    out = write(tmp_path, [], summary_of(samples, cases=(), groups=(), false_positive_count=0)).parent
    assert rows_of([(out / "false_positives.csv").read_bytes()]) == []
    coco = json.loads((out / "false_positives.coco.json").read_text("utf-8"))
    assert coco["annotations"] == coco["images"] == []
    assert pq.read_table(out / "errors.parquet").num_rows == 0
