"""Comparisons of audits whose differences are planted."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import detcam
from detcam import adapt
from detcam.auditing.case import AuditCase, EvidenceKind, GroundTruthObject
from detcam.auditing.comparison import AuditComparison, compare_audits
from detcam.auditing.comparison.bootstrap import Bootstrapped, paired_delta_ap
from detcam.auditing.comparison.causes import CauseChange, compare_causes
from detcam.auditing.comparison.comparison import TypeChange
from detcam.auditing.comparison.paired import interval
from detcam.auditing.comparison.pairs import pair_errors
from detcam.auditing.comparison.record import AuditRecord, check_comparable, distinct_names
from detcam.auditing.grouping.hierarchy import Cause, build_causes
from detcam.cli.app import app
from detcam.cli.compare import failure, parse_condition, print_comparison
from detcam.demo.model import load_demo_detector
from detcam.runs import lock_folder
from detcam.synthetic.harbor import DEMO_NAMES
from tests.auditing.comparison.records import make_case, make_record, missed_object
from tests.auditing.report.browser import browser, opener, until
from tests.auditing.scenes import write_scenes

PIXELS = "[...document.querySelectorAll('.viewer-frame canvas')].map(canvas => canvas.width * canvas.height)"
FITS = "node => node.scrollWidth <= node.clientWidth"


def test_errors_are_matched_one_to_one() -> None:
    old = make_record(
        [
            make_case(0),  # unchanged, a little moved
            make_case(1),  # fixed, now below the threshold
            make_case(2),  # another class in the new audit: fixed and new
            make_case(3, 0, box_xyxy=(0.0, 0.0, 20.0, 20.0)),  # two errors, one of them left
            make_case(3, 1, box_xyxy=(4.0, 0.0, 24.0, 20.0)),
            missed_object(4),
            missed_object(5),
            make_case(6, score=0.2),  # not an error that counts
        ]
    )
    new = make_record(
        [
            make_case(0, 7, box_xyxy=(12.0, 10.0, 32.0, 30.0)),
            make_case(1, 3, score=0.1),
            make_case(2, name="buoy", label=2),
            make_case(3, 5, box_xyxy=(4.0, 0.0, 24.0, 20.0)),
            missed_object(4),
            make_case(6, 2),
        ]
    )
    pairs = {(pair.shown.image_id, pair.change, pair.shown.name, pair.shown.id): pair for pair in pair_errors(old, new)}
    assert {key[:3] for key in pairs} == {
        *((0, "unchanged", "boat"), (1, "fixed", "boat"), (2, "fixed", "boat"), (2, "new", "buoy")),
        *((3, "unchanged", "boat"), (3, "fixed", "boat"), (4, "unchanged", "boat"), (5, "fixed", "boat")),
        (6, "new", "boat"),
    }
    assert len(pairs) == 9
    kept, fell = pairs[3, "unchanged", "boat", "image-3-detection-5"], pairs[1, "fixed", "boat", "image-1-detection-0"]
    assert kept.old is not None and kept.old.id == "image-3-detection-1" and kept.iou == 1
    assert fell.new is not None and fell.new.score == 0.1
    before = pairs[6, "new", "boat", "image-6-detection-2"].old
    assert before is not None and before.score == 0.2


AREA: dict[str, Any] = {"evidence_shares": {"ring": 1.0}, "evidence_form": "area"}
MARK: dict[str, Any] = {**AREA, "evidence_form": "mark"}


def compared(old: list[AuditCase], new: list[AuditCase], images: int = 40) -> dict[str, Any]:
    sides = Bootstrapped.pair(make_record(old, images), make_record(new, images))
    return {change.cause.kind: change for change in compare_causes(*sides)}


def test_planted_causes_are_found() -> None:
    old = [make_case(image, **AREA) for image in range(10)] + [
        make_case(image, 1, evidence_kind="another object") for image in range(12)
    ]
    new = [make_case(image, 2, evidence_kind="mark", **MARK) for image in range(12)] + [
        make_case(image, 1, evidence_kind="another object") for image in range(11)
    ]
    changes = compared(old, new)
    assert {name: change.status for name, change in changes.items()} == {
        "surroundings": "gone",
        "mark": "new",
        "another object": "no significant change",
    }
    low, high = changes["surroundings"].difference_interval
    assert -19 <= low < -10 < high < 0
    assert changes["mark"].p_value == pytest.approx(2 / 2**12)
    # All false positives score above the true positives. Without 12 of 23, precision rises from 40/63 to 40/51.
    assert changes["mark"].new_delta_ap == pytest.approx(40 / 51 - 40 / 63, abs=1e-6)
    assert changes["mark"].old_delta_ap == 0 and changes["mark"].new_ids == tuple(
        f"image-{image}-detection-2" for image in range(12)
    )
    grown = compared([make_case(0)], [make_case(image) for image in range(9)])
    assert grown["surroundings"].status == "grown"
    few = compared([], [make_case(image) for image in range(4)])
    assert few["surroundings"].status == "no significant change", "four images may be chance"


def test_errors_of_classes_without_objects() -> None:
    """Boats in 10 of 40 images of a barge each: confused with the barges, they cost recall; elsewhere, nothing."""
    cases = [make_case(image, type="classification") for image in range(10)]
    record = make_record(cases)
    rows, is_wrong = record.evaluation, ~record.evaluation.hits
    kept = is_wrong | (rows.images >= 10)
    evaluation = replace(
        rows,
        names=("boat", "barge"),
        classes=np.where(is_wrong, 0, 1)[kept],
        corrected_classes=np.where(is_wrong, 1, -1)[kept],
        object_classes=np.ones(40, dtype=np.int64),
        **{name: getattr(rows, name)[kept] for name in ("images", "indices", "scores", "hits")},
    )
    confused, perfect = replace(record, evaluation=evaluation), make_record([])
    sides = Bootstrapped.pair(perfect, confused)
    old, new = paired_delta_ap(sides, ([], cases))
    assert (old[0], new[0]) == pytest.approx((0, 25 / 101)) and 0 < min(new[1:]) < max(new[1:]) < 0.6
    elsewhere = replace(confused, evaluation=replace(evaluation, corrected_classes=np.full(40, -1)))
    sides = Bootstrapped.pair(perfect, elsewhere)
    assert np.isnan(paired_delta_ap(sides, ([], cases))).all(), "no number rather than 0"
    assert (paired_delta_ap(sides, ([], []))[1] == 0).all()


def test_samples_without_objects_do_not_count() -> None:
    """One of 40 images has an object. A third of the samples lacks the image, and average precision is undefined."""
    cases = [make_case(image) for image in range(10)]
    record = make_record(cases)
    rows = record.evaluation
    kept, only = ~rows.hits | (rows.images == 0), np.zeros(1, dtype=np.int64)
    columns = {name: getattr(rows, name)[kept] for name in ("classes", "images", "indices", "scores", "hits")}
    corrected = rows.corrected_classes[kept]
    sparse = replace(rows, object_classes=only, object_images=only, corrected_classes=corrected, **columns)
    sides = Bootstrapped.pair(*[replace(record, evaluation=sparse)] * 2)
    old, new = paired_delta_ap(sides, (cases, []))
    assert 0.2 < np.isnan(old).mean() < 0.5 and interval(old[1:])[0] > 0.3 and np.nanmax(np.abs(new)) == 0


def group_of(kind: EvidenceKind, marks: int, first: int = 0, **values: Any) -> list[AuditCase]:
    """A group of ten errors, of whose evidence some are small marks, and the name that it has in its audit."""
    return [
        make_case(first + image, evidence_kind=kind, group=0, **(MARK if image < marks else AREA), **values)
        for image in range(10)
    ]


def test_a_close_vote_on_the_form_does_not_make_a_new_cause() -> None:
    for sides in (("mark", "surroundings"), ("surroundings", "mark")):
        marks = [6 if side == "mark" else 5 for side in sides]
        changes = compared(group_of(sides[0], marks[0]), group_of(sides[1], marks[1], first=10))
        assert list(changes) == [sides[1]], "one cause, with the name that the new audit gives it"
        assert changes[sides[1]].status == "no significant change"
        assert (changes[sides[1]].old_count, changes[sides[1]].new_count) == (10, 10)
    other = compared(group_of("mark", 9), group_of("surroundings", 1, first=10))
    assert {kind: change.status for kind, change in other.items()} == {"mark": "gone", "surroundings": "new"}
    named = compared(group_of("mark", 6), group_of("surroundings", 5, first=10, name="buoy"))
    assert {kind: change.status for kind, change in named.items()} == {"mark": "gone", "surroundings": "new"}
    # Of two groups of the old audit, the one whose evidence is areas keeps apart from the new audit's marks.
    two = group_of("surroundings", 5) + [replace(case, group=1) for case in group_of("surroundings", 0, first=10)]
    partly = compared(two, group_of("mark", 6, first=20))
    assert {kind: (change.old_count, change.new_count) for kind, change in partly.items()} == {
        "mark": (10, 10),
        "surroundings": (10, 0),
    }


def test_missed_objects_cost_recall() -> None:
    changes = compared([missed_object(image) for image in range(20)], [])
    assert changes["surroundings"].status == "gone" and changes["surroundings"].old_delta_ap == pytest.approx(
        50 / 101, abs=1e-6
    )


def test_causes_are_those_of_the_hierarchy() -> None:
    truth = GroundTruthObject((40.0, 40.0, 60.0, 60.0), 2, "buoy", 0.9, 1)
    cases = [
        make_case(0),
        make_case(1, type="classification", ground_truth=truth, evidence_kind="part of the object"),
        make_case(2, evidence_kind="unlabeled object", verdict="not confirmed"),
        missed_object(3),
        make_case(4, evidence_kind="not confirmed", verdict="not confirmed"),
        make_case(5, evidence_kind=None, method=""),
    ]
    names = [cause.name for case in cases if (cause := Cause.of(case)) is not None]
    assert names == [
        "surroundings: boat, background",
        "part of the object: boat on buoy",
        "unlabeled object: boat, background",
        "surroundings: boat missed",
    ]
    nodes = [node for root in build_causes(cases * 2, {}, lambda _: 0.0) for _, node in root.walk()]
    assert {f"{node.kind}: {node.name}" for node in nodes if node.level == "classes"} >= set(names)


def test_chance_is_rarely_called_a_change() -> None:
    """Both models make the errors of four causes with the same rates on every image."""
    kinds: tuple[EvidenceKind, ...] = ("surroundings", "mark", "another object", "look-alike")
    random, alarms = np.random.default_rng(0), 0
    for _ in range(100):
        sides = [
            [
                make_case(image, number, evidence_kind=kind)
                for image in range(30)
                for number, kind in enumerate(kinds)
                if random.random() < (0.05, 0.2, 0.4, 0.7)[number]
            ]
            for _ in range(2)
        ]
        records = [make_record(side, 30) for side in sides]
        weights = np.ones((2, 30), dtype=np.uint16)
        changes = compare_causes(*(Bootstrapped(record, tuple(range(30)), weights) for record in records))
        alarms += any(change.status != "no significant change" for change in changes)
    assert alarms <= 8, "5 % are expected at most"


def test_intervals_contain_the_true_difference() -> None:
    """Of average precision: samples of images from two models with known rates of false positives."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(40):
        rows = [[image for image in range(60) if random.random() < rate] for rate in (0.3, 0.15)]
        sides = Bootstrapped.pair(*(make_record([make_case(image) for image in row], 60) for row in rows))
        difference = sides[1].average_precision - sides[0].average_precision
        low, high = np.quantile(difference[1:], [0.025, 0.975])
        covered += low <= 1 / 1.15 - 1 / 1.3 <= high
    assert covered >= 34


def test_other_data_are_refused() -> None:
    record = make_record([make_case(0)])
    check_comparable(record, record)
    with pytest.raises(ValueError, match="score_threshold 0.3 and 0.5"):
        check_comparable(record, replace(record, score_threshold=0.5))
    with pytest.raises(ValueError, match="the same images"):
        check_comparable(record, make_record([], 41))
    renamed = replace(record, evaluation=replace(record.evaluation, names=("vessel",)))
    with pytest.raises(ValueError, match="class names"):
        check_comparable(record, renamed)
    with pytest.raises(TypeError, match="expected an Audit"):
        AuditRecord.of(3)  # type: ignore[arg-type]


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    sides = [replace(make_record([]), folder=tmp_path / name / "report") for name in ("v1", "v2")]
    assert distinct_names(*sides) == ("model (v1/report)", "model (v2/report)")
    assert distinct_names(sides[0], sides[0]) == ("model", "model")
    assert distinct_names(sides[0], replace(sides[1], model="other")) == ("model", "other")


@pytest.mark.parametrize("text", ["ap", "ap:-1", "ap:x", "cause", "ap:1"])
def test_unknown_conditions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected --fail-on"):
        parse_condition(text)


def test_conditions() -> None:
    found = AuditComparison("a", "b", 9, 0.8, 0.75, (-0.1, 0.0), (), (), (), ((0, 0), (0, 0)))
    assert parse_condition("ap:0.01") == 0.01 and parse_condition("new-cause") is None
    assert "fell by 0.050" in failure(found, 0.01) and not failure(found, 0.06) and not failure(found, None)


def test_undefined_costs_are_printed_as_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    cause = CauseChange(Cause.of(make_case(0)), "new", 0, 9, (5, 12), 0.01, nan, nan, (nan, nan), (), ())  # type: ignore[arg-type]
    kind = TypeChange("background", 0, 9, nan, nan, (nan, nan))
    print_comparison(AuditComparison("a", "b", 9, 1.0, 1.0, (0.0, 0.0), (), (cause,), (kind,), ((0, 0), (9, 9))))
    printed = capsys.readouterr().out
    assert "nan" not in printed and printed.count(" -") >= 3
    assert "status: a test corrected for the number of causes" in printed


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Audits of the demo detector, and of one that detects nothing."""
    folder = tmp_path_factory.mktemp("reports")
    scenes = write_scenes(folder, (1_000_000, 1_000_001))
    model = load_demo_detector()
    options: dict[str, Any] = {"score_threshold": 0.5, "explain": 3, "explain_missed": 1}
    detcam.audit(adapt(model, names=DEMO_NAMES), folder / "images", scenes, out=folder / "old", **options)
    model.roi_heads.box_predictor.cls_score.bias.data[1:] -= 20  # type: ignore[union-attr, index]
    detcam.audit(adapt(model, names=DEMO_NAMES), folder / "images", scenes, out=folder / "new", **options)
    return folder / "old", folder / "new"


def test_equal_audits_do_not_differ(reports: tuple[Path, Path]) -> None:
    same = compare_audits(reports[0], reports[0])
    assert not same.errors("new") and not same.errors("fixed") and len(same.errors("unchanged")) >= 3
    assert same.delta_average_precision == 0 and same.average_precision_interval == (0, 0)
    assert {change.status for change in same.causes} == {"no significant change"}
    assert all(kind.delta_ap_interval == (0, 0) for kind in same.types)


def test_command_and_page(reports: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    killed = [out / name / f".{'0' * 32}.tmp" for name in (".", "old")]
    for file in killed:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    arguments = ["compare", *map(str, reports), "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--fail-on", "new-cause"])
    assert done.exit_code == 0, done.stderr
    assert "errors fixed" in done.stdout and "index.html" in done.stdout
    assert not any(file.exists() for file in killed)
    failed = CliRunner().invoke(app, [*arguments, "--fail-on", "ap:0.01"])
    assert failed.exit_code == 3 and "--fail-on: average precision fell by" in failed.stdout
    wrong = CliRunner().invoke(app, ["compare", str(tmp_path), str(reports[1])])
    assert wrong.exit_code == 2 and "audit.json" in wrong.stderr
    data = json.loads((out / "comparison.json").read_text())
    fixed = [entry for entry in data["errors"] if entry["change"] == "fixed"]
    missed = [entry for entry in data["errors"] if entry["change"] == "new"]
    assert len(fixed) >= 3 and {entry["type"] for entry in missed} == {"missed"}
    assert data["new_average_precision"] == 0 and data["average_precision_interval"][1] < -0.5
    old_overlays = {path.name: path.read_bytes() for path in (reports[0] / "cases").glob("*.overlay.png")}
    assert {path.name: path.read_bytes() for path in (out / "old").glob("*.overlay.png")} == old_overlays != {}
    assert not list(out.rglob("*.heatmap.png"))
    with browser() as started, opener(started) as look:
        page = look(out / "index.html")
        assert page.inner_text("h1") == data["headline"][0]
        assert page.inner_text("#subject") == "FasterRCNN (old) \u2192 FasterRCNN (new)"
        page.set_viewport_size({"width": 390, "height": 800})
        assert min(page.locator("#causes th:first-child").evaluate_all("all => all.map(e => e.clientWidth)")) > 150
        for width in (390, 320):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate(f"[...document.querySelectorAll('.scroll, html')].every({FITS})"), width
        page.set_viewport_size({"width": 1280, "height": 900})
        page.get_by_role("button", name=f"fixed ({len(fixed)})").click()
        assert page.locator(".case-card").count() == 3, "those that an audit explains"
        for key in ("Enter", "Space"):
            page.locator(".case-card").first.focus()
            page.keyboard.press(key)
            page.wait_for_selector("#pair:not([hidden])")
            if key == "Enter":
                page.keyboard.press("Escape")
                page.wait_for_selector("#overview:not([hidden])")
        assert page.locator(".view").count() == 2
        assert "No such error" in page.inner_text("#pair")
        until(page, f"{PIXELS}.filter(Boolean).length === 3")  # the image twice, and one heatmap
        shots = [Image.open(io.BytesIO(page.locator(".viewer-frame").nth(side).screenshot())) for side in (0, 1)]
        sides = [np.asarray(shot.convert("RGB").resize((256, 160)), np.float32) for shot in shots]
        assert np.abs(sides[0] - sides[1]).max() > 80, "one side has a heatmap"
        page.keyboard.press("Escape")
        page.wait_for_selector("#overview:not([hidden])")
        assert not any(page.evaluate(PIXELS)), "the pixels are freed"
        page.get_by_role("button", name="unchanged").click()
    killed[0].write_bytes(b"of another process")
    with lock_folder(out), pytest.raises(RuntimeError, match="another run is working"):
        compare_audits(*reports, out=out)
    assert killed[0].exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="no comparison wrote"):
        compare_audits(*reports, out=foreign)
