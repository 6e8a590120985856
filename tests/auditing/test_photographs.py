"""A detector by other people on real photographs, through a decode function, one image at a time."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import detcam
from detcam.adapters import detector
from detcam.auditing import Audit
from detcam.utils.hashing import weights_digest
from tests.adapters.custom_models import fastestdet_decode
from tests.auditing.photographs import OBJECTS, write_labels


@pytest.fixture(scope="module")
def found(data: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    onnx2torch = pytest.importorskip("onnx2torch", reason="FastestDet needs onnx2torch")
    folder = tmp_path_factory.mktemp("photographs")
    adapter = detector(
        onnx2torch.convert(str(data / "fastestdet" / "fastestdet.onnx")).eval(),
        fastestdet_decode,
        image_size=352,
        preprocess=lambda rgb: rgb.flip(0),
        max_batch_size=1,
        names=(data / "fastestdet" / "coco.names").read_text().splitlines(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return detcam.audit(
            adapter,
            photos,
            write_labels(folder / "labels.json", photos),
            out=folder / "report",
            method="reachcam",
            class_map={"couch": "sofa"},  # COCO's name and this network's
            explain=2,
            explain_missed=1,
        )


def test_average_precision_on_photographs(found: Audit) -> None:
    analysis = found.analysis
    objects = sum(len(each) for each in OBJECTS.values())
    assert sum(summary.objects for summary in analysis.classes.values()) == objects
    assert 0.2 < analysis.average_precision < 0.6
    by_name = {summary.name: summary for summary in analysis.classes.values()}
    assert by_name["horse"].average_precision > 0.9 and by_name["bus"].average_precision > 0.9
    assert by_name["remote"].true_positives == 0
    named = {name for each in OBJECTS.values() for name, _ in each}
    assert set(by_name) == named - {"couch"} | {"sofa"} and analysis.outside > 10


def test_errors_with_the_highest_scores(found: Audit) -> None:
    cats = [case for case in found.cases if case.file_name == "cat_mirror.jpg" and case.type == "classification"]
    assert {(case.name, case.ground_truth and case.ground_truth.name) for case in cats if case.score > 0.5} == {
        ("dog", "cat")
    }
    explained = [case for case in found.explained if case.is_false_positive]
    assert len(explained) == 2
    for case in explained:
        x, y = case.peak_xy or (-1, -1)
        if case.type == "classification":
            assert case.question == "why dog rather than cat?"
            assert case.ground_truth is not None
            left, top, right, bottom = case.ground_truth.box_xyxy
            assert left <= x < right and top <= y < bottom, "the evidence for a dog is on the cat"
        assert case.trials and sum((case.evidence_shares or {}).values()) == pytest.approx(1)
    assert sum(case.type == "missed" and case.failure_stage != "" for case in found.explained) == 1


def test_the_report_is_written(found: Audit) -> None:
    assert found.report is not None
    audit = json.loads((found.report.parent / "audit.json").read_text())
    assert audit["image_count"] == len(OBJECTS) and not audit["issues"]


def test_weights_of_any_memory_layout_have_a_digest() -> None:
    """Exported networks hold scalars that are expanded views."""
    model = nn.Module()
    model.register_buffer("expanded", torch.ones(()).expand(1))
    model.register_buffer("transposed", torch.arange(6.0).reshape(2, 3).t().to(torch.bfloat16))
    model.register_buffer("empty", torch.zeros(0, 3))
    first = weights_digest(model)
    model.get_buffer("transposed")[0, 0] += 1
    assert weights_digest(model) != first
