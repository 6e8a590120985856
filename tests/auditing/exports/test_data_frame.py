"""Cases as a pandas data frame."""

from __future__ import annotations

import sys
from dataclasses import fields, replace

import pytest

from detcam.auditing.case import AuditCase, GroundTruthObject
from detcam.auditing.exports.data_frame import FIELDS, cases_frame
from tests.auditing.comparison.records import make_case, missed_object


def test_each_case_is_a_row() -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    truth = GroundTruthObject((0.0, 0.0, 9.0, 9.0), 2, "buoy", 0.25, 77)
    cases = [
        replace(make_case(0), evidence_shares={"ring": 0.75, "scene": 0.25}, effect=0.5),
        make_case(1, 4, type="classification", ground_truth=truth),
        missed_object(2),
    ]
    frame = cases_frame(cases)
    assert len(frame) == 3 and set(FIELDS) <= set(frame.columns)
    several = {"image_size_hw", "box_xyxy", "ground_truth", "evidence_shares", "evidence_box_xyxy", "peak_xy"}
    assert {field.name for field in fields(AuditCase)} - set(FIELDS) == several | {"trials", "parts", "trust_signals"}
    assert frame["id"].tolist() == [case.id for case in cases]
    assert frame[["left", "top", "right", "bottom"]].iloc[0].tolist() == [10, 10, 30, 30]
    assert frame["share: ring"].iloc[0] == 0.75 and frame["share: ring"].isna().sum() == 2
    assert frame["true_name"].iloc[1] == "buoy" and frame["annotation_id"].iloc[1] == 77
    assert frame.groupby("type")["score"].max()["background"] == 0.9
    assert cases_frame([]).empty


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'detcam\[pandas\]'"):
        cases_frame([])
