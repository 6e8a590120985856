"""docs/audit-json.md agrees with the written audit.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detcam.auditing import analyze_errors
from detcam.auditing.case import AuditCase, CasePart, GroundTruthObject, Trial
from detcam.auditing.report import ReportSummary
from detcam.auditing.sentences import OUTSIDE_LOCATIONS, case_sentence, is_inside, is_outside
from detcam.data.annotations import Annotations
from tests.auditing.random_data import make_random_data
from tests.auditing.report.made_up import make_images, summary_of, write

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "audit-json.md"
KINDS = {"text": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "list": list}
OPEN = ("settings", "evidence_shares", "errors")


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    samples = make_images(range(5))
    return json.loads((write(tmp_path_factory.mktemp("report"), samples).parent / "audit.json").read_text("utf-8"))


def documented() -> dict[str, str]:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| [^|]+ \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    return {path: kind.strip() for path, kind in rows}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        name = path.rsplit(".", 1)[-1]
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{'*' if name in OPEN else key}".lstrip("."))
    elif isinstance(value, list) and not path.endswith(".*"):
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path, value


def test_documented_and_written_fields_are_the_same(audit: dict[str, Any]) -> None:
    written = {path for path, _ in leaves(audit)}
    # An object or list that may be null has a line of its own, beside those of its content.
    assert written <= documented().keys()
    inner = {
        path
        for path in documented()
        if path.endswith(("curves", "evidence_shares", "ground_truth", "peak_xy", "evidence_box_xyxy", "assignment"))
    }
    assert documented().keys() - inner <= written


def test_documented_types_are_right(audit: dict[str, Any]) -> None:
    for path, value in leaves(audit):
        kinds = re.split(r", | or ", documented()[path])
        if "any" in kinds:
            continue
        if value is None:
            assert "null" in kinds, path
        else:
            assert any(isinstance(value, KINDS[kind]) for kind in kinds if kind != "null"), (path, value)
            assert not isinstance(value, bool) or kinds == ["boolean"], path


def test_cases_round_trip_through_json(audit: dict[str, Any]) -> None:
    cases = summary_of(make_images(range(5))).cases
    for entry, case in zip(audit["cases"], cases, strict=True):
        again = AuditCase.from_json(entry)
        assert again.to_json() == case.to_json()
        assert (again.trials, again.verdict, again.ground_truth is None) == (
            case.trials,
            case.verdict,
            case.ground_truth is None,
        )
        assert again.box_xyxy == pytest.approx(case.box_xyxy, rel=1e-6)


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    samples = make_images(range(1))
    summary = summary_of(
        samples,
        average_precision=float("nan"),
        settings={"limit": float("inf"), "folder": Path("a"), "count": np.int64(3), "part": np.float32(0.5)},
    )
    audit = json.loads((write(tmp_path, samples, summary).parent / "audit.json").read_text("utf-8"))
    assert audit["average_precision"] is None
    assert audit["settings"] == {"limit": None, "folder": "a", "count": 3, "part": 0.5}


def test_summary_of_an_error_analysis(tmp_path: Path) -> None:
    made = make_random_data(tmp_path, 3, detected=6)
    annotations: Annotations = made.annotations
    analysis = analyze_errors(made.detections, annotations)
    summary = ReportSummary.from_analysis(
        analysis, annotations, model="m", adapter="a", iou_threshold=0.5, cases=(), seconds=1.5
    )
    false_positives = [index for index, error in enumerate(analysis.errors) if error.is_false_positive]
    assert summary.false_positive_count == len(false_positives) > 3
    assert summary.false_positive_delta_ap == pytest.approx(
        analysis.average_precision_corrected(false_positives) - analysis.average_precision
    )
    assert summary.average_precision == analysis.average_precision
    assert summary.object_count == sum(item.objects for item in analysis.classes.values())
    assert summary.image_count == len(annotations) and summary.annotations == "truth.json"
    # The file's categories and the made-up model's classes have the same numbers.
    assert summary.category_ids == {label: label for label in summary.category_ids}
    assert sum(entry["count"] for entry in summary.to_json()["types"]) == len(analysis)
    assert tuple(summary.issues) == tuple(annotations.issues)


def test_headline() -> None:
    samples = make_images(range(6))
    summary = summary_of(samples)
    explained = [case for case in summary.cases if case.is_false_positive and case.evidence_shares]
    tested = [case for case in explained if case.verdict != "not tested"]
    confirmed = [case for case in tested if case.verdict == "strong"]
    outside = [c for c in confirmed if sum(c.evidence_shares[each] for each in OUTSIDE_LOCATIONS) >= 0.9]
    assert 0 < len(outside) < len(confirmed) < len(tested)
    kinds = [case.background_type for case in explained if case.type == "background"]
    assert summary.headline() == [
        f"{summary.false_positive_count} false positives reduce average precision by 0.14.",
        f"{len(confirmed)} of {len(tested)} explained false positives have a confirmed cause, {len(confirmed)} of them "
        "strongly.",
        f"{len(outside)} of these {len(confirmed)} {'lies' if len(outside) == 1 else 'lie'} outside the box: the "
        f"detection{' ends' if len(outside) == 1 else 's end'} without a region outside.",
        f"{kinds.count('missing annotation')} of {len(kinds)} explained background errors may be missing annotations: "
        "check them before you count them as errors.",
    ]


def test_either_part_suffices_only_if_the_score_stays_without_each() -> None:
    samples = make_images(range(1))
    case = next(case for case, maps in samples[0].cases if maps is not None and case.is_false_positive)
    case = replace(case, score=0.8, verdict="strong", evidence_shares={"ring": 1.0})

    def sentence(*scores: float) -> str:
        return case_sentence(replace(case, parts=tuple(CasePart(0.01, "ring", score, False) for score in scores)))

    assert "; either of its 2 parts suffices: " in sentence(0.79, 0.62)
    assert "; any of its 3 parts suffices: " in sentence(0.79, 0.62, 0.7)
    case = replace(case, trials=(Trial("without evidence", "ring", 0.1, "vanished"),))
    assert "the detection persists without one of them" in sentence(0.79, 0.62)
    case = replace(case, trials=(Trial("without evidence", "ring", 0.1, "mask corrected"),))
    assert "the error persists without one of them" in sentence(0.79, 0.62)
    assert "suffices" not in sentence(0.79, 0.3), "the part without which the score is 0.3 is not replaced by the other"


def test_background_errors_of_no_type_and_on_other_objects() -> None:
    samples = make_images(range(1))
    case = next(case for case, maps in samples[0].cases if maps is not None and case.is_false_positive)
    nearby = GroundTruthObject((0.0, 0.0, 9.0, 9.0), 2, "buoy", 0.3, 1)
    case = replace(case, type="background", ground_truth=nearby, verdict="strong", background_type=None, parts=())
    case = replace(case, evidence_shares={"ground truth": 1.0}, evidence_location="ground truth", evidence_object="")
    assert "lies on an overlapping buoy; strongly" in case_sentence(case), "a background error has no object"
    assert " lies on the object; strongly" in case_sentence(replace(case, type="localization"))
    cases = (case, replace(case, id="other", background_type="missing annotation"))
    assert summary_of(samples, cases=cases, groups=()).headline()[-1].startswith("1 of 2 explained background errors ")


def test_headline_edge_cases() -> None:
    samples = make_images(range(1))
    first = next(case for case, maps in samples[0].cases if maps is not None and case.is_false_positive)
    for ap, words in ((0.5, "0.50"), (0.0042, "0.004"), (0.0001, "less than 0.001")):
        summary = summary_of(samples, cases=(first,), groups=(), false_positive_count=1, false_positive_delta_ap=ap)
        assert summary.headline()[0] == f"1 false positive reduces average precision by {words}."
    first = replace(first, verdict="weak")
    inside = replace(first, evidence_shares={"predicted box": 0.95, "scene": 0.05})
    outside = replace(first, evidence_shares={"predicted box": 0.0, "ring": 0.75, "scene": 0.25}, id="other")
    corrected = replace(outside, trials=(Trial("without evidence", "ring", 0.1, "mask corrected"),))
    mixed = replace(first, evidence_shares={"predicted box": 0.5, "ring": 0.5})
    unconfirmed = replace(outside, verdict="not confirmed")
    needed_inside = replace(outside, parts=(CasePart(0.01, "predicted box", 0.1, True),))
    assert is_inside(inside) and not is_outside(inside)
    assert is_outside(outside) and not is_inside(outside)
    for case in (mixed, unconfirmed, needed_inside):
        assert not is_outside(case) and not is_inside(case), "no statement without a test"
    lines = (
        ((inside,), ["1 of 1 explained false positives has a confirmed cause, 0 of them strongly."]),
        (
            (replace(outside, verdict="strong"),),
            [
                "1 of 1 explained false positives has a confirmed cause, 1 of them strongly.",
                "It lies outside the box: the detection ends without a region outside.",
            ],
        ),
        (
            (corrected, replace(corrected, id="third")),
            [
                "2 of 2 explained false positives have a confirmed cause, 0 of them strongly.",
                "All 2 lie outside the box: the errors end without a region outside.",
            ],
        ),
        ((unconfirmed,), ["0 of 1 explained false positives have a confirmed cause, 0 of them strongly."]),
    )
    for cases, words in lines:
        headline = summary_of(samples, cases=cases, groups=()).headline()
        assert [line for line in headline[1:] if "annotations" not in line] == words
    none = summary_of(samples, cases=(), groups=(), false_positive_count=0, false_positive_delta_ap=0.0)
    assert none.headline() == ["No false positives."]
    two = (replace(first, verdict="not tested"), replace(first, verdict="not tested", id="other"))
    two = tuple(replace(case, background_type=None) for case in two)
    undefined = summary_of(samples, cases=two, groups=(), false_positive_delta_ap=float("nan"))
    assert undefined.headline() == [
        "2 false positives. Average precision is undefined, because there are no ground-truth objects."
    ]


@pytest.mark.parametrize(
    ("scores", "delta_ap", "expected"),
    [
        ((0.3, 0.9), 0.2, "2 false positives with a score of at least 0.3 reduce average precision by 0.20."),
        (
            (0.9, 0.2, 0.01),
            0.2,
            "1 false positive with a score of at least 0.3. Together with the 2 with lower scores, it reduces average "
            "precision by 0.20.",
        ),
        (
            (0.9, 0.2),
            math.nan,
            "1 false positive with a score of at least 0.3. Average precision is undefined, because there are no "
            "ground-truth objects.",
        ),
        (
            (0.2,),
            0.2,
            "No false positives with a score of at least 0.3; the one with a lower score reduces average precision by "
            "0.20.",
        ),
    ],
)
def test_headline_counts_errors_from_the_threshold_on(
    scores: tuple[float, ...], delta_ap: float, expected: str
) -> None:
    samples = make_images(range(1))
    first = next(case for case, _ in samples[0].cases if case.is_false_positive)
    cases = tuple(replace(first, id=f"case-{score}", score=score) for score in scores)
    settings = {"score_threshold": 0.3}
    summary = summary_of(samples, cases=cases, groups=(), false_positive_delta_ap=delta_ap, settings=settings)
    assert summary.headline()[0] == expected


def test_headline_counts_are_exact() -> None:
    samples = make_images(range(1))
    first = next(case for case, maps in samples[0].cases if maps is not None and case.is_false_positive)
    first = replace(first, verdict="strong")
    inside = [replace(first, id=f"case-{i}", evidence_shares={"ground truth": 1.0}) for i in range(300)]
    summary = summary_of(samples, cases=(*inside, replace(first, id="x", evidence_shares={"scene": 1.0})), groups=())
    assert summary.headline()[1].startswith("301 of 301 ") and summary.headline()[2].startswith("1 of these 301 ")


def test_inconsistent_cases_and_groups_raise() -> None:
    samples = make_images(range(1))
    summary = summary_of(samples)
    with pytest.raises(ValueError, match="unique"):
        replace(summary, cases=(*summary.cases, summary.cases[0]))
    with pytest.raises(ValueError, match="group 0 refers to .* not a case of the audit"):
        replace(summary, cases=())
    with pytest.raises(ValueError, match="cause .* refers to .* not a case of the audit"):
        replace(summary, cases=(), groups=())
