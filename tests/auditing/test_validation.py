"""Validation of the arguments of an audit, and of the model and annotations."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import detcam
from detcam import ODAM, adapt
from detcam.adapters import Adapter, detector
from detcam.auditing.comparison.record import AuditRecord
from detcam.auditing.explainer import ErrorExplainer
from detcam.auditing.pipeline import DEFAULT_METHOD
from detcam.auditing.report.report_data import ReportData
from detcam.auditing.report.summary import AUDIT_VERSION
from detcam.auditing.run_state import StoredDetections, check_audit_folder, detection_table
from detcam.auditing.settings import AuditSettings
from detcam.auditing.stages import MIN_DETECTION_SCORE
from detcam.cli.app import app
from detcam.cli.audit import AuditOptions
from detcam.demo.model import load_demo_detector
from detcam.detections import Detections, Source
from detcam.runs import Run
from detcam.synthetic.harbor import DEMO_NAMES
from tests.auditing.scenes import write_scenes

SEEDS = (1_000_000, 1_000_001)
work = importlib.import_module("detcam.auditing.stages")  # `detcam.audit` is the function


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return adapt(load_demo_detector(), names=DEMO_NAMES)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path, SEEDS)


def run(adapter: Adapter, scenes: Path, **options: Any) -> detcam.auditing.Audit:
    options = {"score_threshold": 0.5, "explain_missed": 0, **options}
    return detcam.audit(adapter, scenes.parent / "images", scenes, **options)


def change(path: Path, changed: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    changed(data)
    path.write_text(json.dumps(data))


def forbid_detection(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the detector must not run")

    monkeypatch.setattr(type(adapter), "predict", never)


def test_defaults_of_command_and_function_agree() -> None:
    """The command has the defaults of the function; its device is that of `load_model`."""
    function, own = (inspect.signature(each).parameters for each in (detcam.audit, AuditOptions))
    shared = {name for name in own if name in function} - {
        "model",
        "device",
        "images",
        "annotations",
        "out",
        "class_map",
    }
    assert {"method", "score_threshold", "explain", "iou_threshold", "batch_size"} <= shared
    assert {name: own[name].default for name in shared} == {name: function[name].default for name in shared}
    assert own["method"].default == DEFAULT_METHOD


def fixed_detector(boxes: Tensor, scores: Tensor, score_threshold: float) -> Adapter:
    """A detector with the same detections for every image."""

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            zero = self.conv(x).sum() * 0
            return boxes + zero, scores + zero

    torch.manual_seed(0)
    return detector(
        Fixed().eval(),
        lambda raw: tuple(part[None] for part in raw),
        score_threshold=score_threshold,
        names=["boat", "buoy"],
        target_layers="conv",
    )


def test_average_precision_counts_detections_below_the_adapter_threshold(scenes: Path) -> None:
    """By hand: of an image's one boat, a wrong box at 0.9 and the right one at 0.1: precision 1/2 at full recall."""

    def one_boat(data: dict[str, Any]) -> None:
        data["images"] = data["images"][:1]
        boat = {"id": 1, "image_id": data["images"][0]["id"], "category_id": 10, "bbox": [10, 10, 20, 20]}
        data["annotations"] = [{**boat, "area": 400, "iscrowd": 0}]

    change(scenes, one_boat)
    boxes = torch.tensor([[60.0, 60, 80, 80], [10, 10, 30, 30], [40, 40, 50, 50]])
    scores = torch.tensor([[0.9, 0.0], [0.1, 0.0], [MIN_DETECTION_SCORE / 2, 0.0]])
    own = fixed_detector(boxes, scores, 0.25)
    found = run(own, scenes, explain=0)
    assert found.analysis.average_precision == pytest.approx(0.5, abs=1e-6)
    assert found.analysis.counts()["missed"] == 0 and len(found.cases) == 1
    assert own.score_threshold == 0.25, "the user's adapter is as it was"  # type: ignore[attr-defined]
    assert own.with_score_threshold(0.5) is own  # type: ignore[attr-defined]


def test_localization_errors_use_the_iou_threshold(adapter: Adapter, scenes: Path) -> None:
    """True boxes a fifth beside the detections: wrong at 0.75, and a change elsewhere must not set them right."""

    def beside(data: dict[str, Any]) -> None:
        for entry in data["annotations"]:
            x, y, width, height = entry["bbox"]
            entry["bbox"] = [x + 0.22 * width, y, width, height]

    change(scenes, beside)
    found = run(adapter, scenes, iou_threshold=0.75, explain=12)
    cases = [case for case in found.explained if case.type == "localization"]
    assert len(cases) >= 4
    assert all(case.ground_truth is not None and 0.5 < case.ground_truth.iou < 0.75 for case in cases)
    controls = [trial for case in cases for trial in case.trials if trial.intervention == "random control"]
    assert sum(trial.outcome == "moved" for trial in controls) <= 0.2 * len(controls)


def test_an_audit_does_not_resume_with_other_annotations(adapter: Adapter, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    first = run(adapter, scenes, out=out, explain=1)
    assert run(adapter, scenes, out=out, explain=1, resume=True).cases == first.cases
    before = (out / "audit.json").read_bytes()
    change(scenes, lambda data: data["annotations"][0].update(bbox=[1, 1, 9, 9]))
    with pytest.raises(ValueError, match="results of other settings.*annotations_digest was"):
        run(adapter, scenes, out=out, explain=1, resume=True)
    assert (out / "audit.json").read_bytes() == before


def test_invalid_settings_are_refused_before_detection(
    adapter: Adapter, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        forbid_detection(adapter, patch)
        for wrong in ({"iou_type": "mask"}, {"iou_threshold": 0.1}, {"background_threshold": 0.6}):
            with pytest.raises(ValueError, match="expected"):
                run(adapter, scenes, out=tmp_path / "report", **wrong)  # type: ignore[arg-type]
    assert AuditSettings(iou_threshold=0.75).iou_threshold == 0.75
    with pytest.raises(ValueError, match="no masks"):
        run(adapter, scenes, out=tmp_path / "report", iou_type="segm")
    assert run(adapter, scenes, out=tmp_path / "report", explain=0).report is not None


def test_files_of_other_programs_are_not_overwritten(adapter: Adapter, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"file index\.html that no audit wrote"):
        run(adapter, scenes, out=tmp_path / "site")
    (tmp_path / "site" / "audit.json").write_text('{"schema": "another program"}')
    with pytest.raises(ValueError, match=r"file index\.html that no audit wrote"):
        run(adapter, scenes, out=tmp_path / "site")
    (tmp_path / "site" / "audit.json").unlink()
    assert (tmp_path / "site" / "index.html").read_text() == "mine"
    assert {file.name for file in (tmp_path / "site").iterdir()} == {"index.html"}


@pytest.mark.parametrize("fields", ['"settings": 5', '"settings": {}, "cases": 5', '"settings": {}, "cases": [{}]'])
def test_a_damaged_report_is_named(tmp_path: Path, fields: str) -> None:
    text = f'{{"schema": "detcam/audit", "version": {AUDIT_VERSION}, {fields}}}'
    (tmp_path / "audit.json").write_text(text)
    for read in (ReportData.load, AuditRecord.of):
        with pytest.raises(ValueError, match=r"audit\.json is damaged \(\w+: .*run the audit again"):
            read(tmp_path)
    for text in (
        '{"schema": "detcam/audit"',
        '{"schema": "detcam/audit", "settings": 5}',
        '{"schema": "detcam/audit"}',
    ):
        (tmp_path / "audit.json").write_text(text)
        with pytest.raises(ValueError, match=r"audit\.json is damaged .*choose a new folder"):
            check_audit_folder(tmp_path, {}, resume=True)


def test_missing_images_are_an_error(adapter: Adapter, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match="missing"), pytest.raises(ValueError, match="none of the images"):
        detcam.audit(adapter, tmp_path / "empty", scenes, out=tmp_path / "report")
    torch.save(load_demo_detector(), tmp_path / "demo.pt")
    arguments = ["--model", str(tmp_path / "demo.pt"), "--trust-checkpoint", "--names", "water,boat,buoy"]
    arguments += ["--images", str(tmp_path / "empty"), "--annotations", str(scenes), "--out", str(tmp_path / "r")]
    assert CliRunner().invoke(app, ["audit", *arguments]).exit_code == 2


def test_annotations_without_images_are_an_error(adapter: Adapter, scenes: Path) -> None:
    change(scenes, lambda data: [entry.update(image_id=f"image {entry['image_id']}") for entry in data["annotations"]])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of the objects"):
        run(adapter, scenes)


def test_categories_beyond_the_classes_of_a_model_without_names_are_an_error(scenes: Path) -> None:
    nameless = adapt(load_demo_detector(), names={})
    assert not nameless.names
    with pytest.warns(UserWarning, match="category ids"), pytest.raises(ValueError, match="categories 10, 20 are none"):
        run(nameless, scenes)


def test_a_zero_heatmap_is_not_evidence(
    adapter: Adapter, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: ODAM, levels: Any, geometry: Any) -> Tensor:
        return torch.zeros(len(levels[0]), *geometry.image_size_hw)

    monkeypatch.setattr(ODAM, "combine", nothing)
    found = run(adapter, scenes, out=tmp_path / "report", explain=2, method="odam")
    assert not found.explained and not found.groups
    unexplained = [case for case in found.cases if "no heatmap" in case.sentence]
    assert len(unexplained) == 2
    for case in unexplained:
        assert case.evidence_shares is None and case.evidence_location is None and case.verdict == "not tested"
        assert "it is zero everywhere" in case.sentence and "lies in the box" not in case.sentence


def test_cases_of_a_large_image_are_explained_in_parts(
    adapter: Adapter, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(adapter, scenes, explain=6)
    sizes: list[int] = []
    real = ErrorExplainer.explain

    def counted(self: ErrorExplainer, images: Any) -> Any:
        sizes.extend(len(image.cases) for image in images)
        return real(self, images)

    monkeypatch.setattr(ErrorExplainer, "explain", counted)
    monkeypatch.setattr(work, "MAX_PIXELS", 192 * 256)
    parts = run(adapter, scenes, explain=6)
    assert set(sizes) == {1} and len(sizes) == len(whole.explained) > len({case.image_id for case in whole.explained})
    assert [case.verdict for case in parts.cases] == [case.verdict for case in whole.cases]
    assert [case.peak_xy for case in parts.cases] == [case.peak_xy for case in whole.cases]


def test_detections_survive_a_table(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 40, 30, generator=generator) > 0.7
    sources = (Source("query", 1, 7), Source("cell", 0, -1, (0.1, 2.5)), Source("proposal", box_xyxy=(1, 2, 3, 4.1)))
    found = Detections(torch.rand(3, 4) / 3, torch.arange(3), torch.rand(3), (40, 30), sources, masks, {0: "a"})
    stage = Run(tmp_path, "audit", {}, resume=False).stage("detections", lambda: [[0, 1, 2]])
    results = [found, "cannot be read: \udce9", replace(found[[]], masks=None)]
    pq.write_table(detection_table(results), stage.folder / "000000.parquet")
    back = StoredDetections(stage, np.array([[0, 0], [0, 2]]), {0: "a"})
    assert len(back) == 2 and back[0].masks is None and len(back[1:]) == 1 and len(back[1:][0]) == 0
    whole = back.with_masks()[0]
    assert whole.masks is not None and torch.equal(whole.masks, masks) and whole.source == sources
    for name in ("boxes_xyxy", "labels", "scores"):
        assert torch.equal(getattr(whole, name), getattr(found, name)), name
    assert (whole.image_size_hw, whole.names) == ((40, 30), {0: "a"})
    assert back.with_masks()[1].masks is None
