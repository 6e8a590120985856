"""The report of an audit as a FiftyOne dataset, with FiftyOne's own classes where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detcam.auditing.case import AuditCase
from detcam.auditing.exports.fiftyone_dataset import fiftyone_dataset, make_sample
from detcam.auditing.report.report_data import ReportData, ReportImage
from detcam.auditing.result import Audit
from tests.auditing.report.made_up import make_images, write


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    folder = tmp_path_factory.mktemp("report")
    write(folder, make_images(range(2)))
    return ReportData.load(folder)


class Recorder:
    """Stands in for each of FiftyOne's classes: it keeps the arguments."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[name] = value

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


class StandIn:
    """Stands in for FiftyOne."""

    Detection = Detections = Sample = Heatmap = ImageMetadata = Recorder


def check_sample(data: ReportData, image: ReportImage, cases: list[AuditCase], sample: Any) -> None:
    """Compare a sample with its image and cases."""
    height, width = image.size_hw
    assert Path(sample["filepath"]).is_file() and sample["metadata"]["width"] == width
    assert sample["image_id"] == str(image.image_id) and sample["file_name"] == image.file_name
    errors = sample["errors"]["detections"]
    assert [error["case"] for error in errors] == [case.id for case in cases]
    for case, error in zip(cases, errors, strict=True):
        left, top, box_width, box_height = error["bounding_box"]
        corners = left * width, top * height, (left + box_width) * width, (top + box_height) * height
        assert corners == pytest.approx(case.box_xyxy, abs=1e-4)
        assert error["label"] == case.name and error["confidence"] == case.score
        assert error["tags"][0] == case.type and (case.verdict in error["tags"]) == bool(case.method)
        if case.method:
            assert error["sentence"] == case.sentence and error["evidence_kind"] in (*error["tags"], case.evidence_kind)
    missed = {case.ground_truth.annotation_id for case in cases if case.type == "missed" and case.ground_truth}
    objects = sample["ground_truth"]["detections"]
    assert [each["label"] for each in objects] == [item.name for item in image.objects]
    assert [each["tags"] == ["missed"] for each in objects] == [item.annotation_id in missed for item in image.objects]
    explained = [case for case in cases if case.method]
    regions = {region["case"]: region for region in sample["evidence"]["detections"]}
    assert set(regions) == {case.id for case in explained}
    for case in explained:
        region, evidence = regions[case.id], data.evidence(case)
        assert evidence is not None and region["mask"].sum() == evidence.sum(), "nothing lies outside the mask"
        left, top, *_ = region["bounding_box"]
        rows, columns = region["mask"].shape
        assert np.array_equal(evidence[round(top * height) :, round(left * width) :][:rows, :columns], region["mask"])
    ranked = sorted(explained, key=lambda case: -case.score)
    for number, case in enumerate(ranked, 1):
        heatmap = sample["heatmap" if number == 1 else f"heatmap_{number}"]
        assert heatmap["case"] == case.id and np.asarray(Image.open(heatmap["map_path"])).shape[:2] == image.size_hw


def cases_of(data: ReportData, image: ReportImage) -> list[AuditCase]:
    return [case for case in data.cases.values() if case.image_id == image.image_id]


def test_samples(data: ReportData) -> None:
    assert len(data.images) == 2
    for image in data.images.values():
        cases = cases_of(data, image)
        check_sample(data, image, cases, make_sample(StandIn, data, image, cases))


def test_samples_of_fiftyones_classes(data: ReportData) -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    for image in data.images.values():
        cases = cases_of(data, image)
        check_sample(data, image, cases, make_sample(fiftyone, data, image, cases))


@pytest.mark.slow
def test_dataset_in_a_database(data: ReportData) -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    try:
        fiftyone.list_datasets()
    except (fiftyone.core.config.FiftyOneConfigError, ConnectionError) as error:
        pytest.skip(f"no MongoDB: {error}")
    dataset = fiftyone_dataset(data.folder, name="detcam-test")
    try:
        assert len(dataset) == 2 and not dataset.persistent and dataset.info["model"] == data.content["model"]
        for image, sample in zip(data.images.values(), dataset, strict=True):
            check_sample(data, image, cases_of(data, image), sample)
        numbers = [group["number"] for group in data.content["groups"]]
        assert dataset.list_saved_views() == [f"group {number}" for number in numbers] and numbers
        for group in data.content["groups"]:
            view = dataset.load_saved_view(f"group {group['number']}")
            assert sorted(view.values("errors.detections.case", unwind=True)) == sorted(group["case_ids"])
        with pytest.raises(ValueError, match="detcam-test"):
            fiftyone_dataset(data.folder, name="detcam-test")
    finally:
        dataset.delete()


def test_images_below_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("detcam.auditing.result.fiftyone_dataset", lambda *values, **_: given.extend(values))
    audit: Any = SimpleNamespace(report=Path("report/index.html"))
    Audit.to_fiftyone(audit, images="~/photos")
    assert given == [Path("report"), Path.home() / "photos", None]


def test_what_is_missing_is_named(data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="finished report"):
        fiftyone_dataset(tmp_path)
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ImportError, match=r"pip install 'detcam\[fiftyone\]'"):
        fiftyone_dataset(data.folder)
