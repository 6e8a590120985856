"""The whole audit on scenes whose false positives have a known cause: a wake without a boat."""

from __future__ import annotations

import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import detcam
from detcam import adapt
from detcam.adapters import Adapter
from detcam.auditing import Audit, AuditCase, explainer, pipeline, stages
from detcam.auditing.background_type import BackgroundClassifier
from detcam.auditing.case import CaseMaps
from detcam.auditing.grouping import assignment
from detcam.auditing.report import ReportWriter
from detcam.auditing.stages import UNREADABLE
from detcam.cli.app import app
from detcam.cli.audit import print_summary
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from tests.auditing.scenes import write_scenes
from tests.helpers import Snapshot

SEEDS = (1_000_000, 1_000_001, 1_000_003)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return adapt(load_demo_detector(), names=DEMO_NAMES)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), SEEDS)


def run(adapter: Adapter, scenes: Path, out: Path | None, **options: Any) -> Audit:
    return detcam.audit(adapter, scenes.parent / "images", scenes, out=out, score_threshold=0.5, **options)


@pytest.fixture(scope="module")
def whole(adapter: Adapter, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    before = Snapshot(adapter.model)
    found = run(adapter, scenes, tmp_path_factory.mktemp("whole"))
    before.check()
    return found


def report(found: Audit) -> dict[str, Any]:
    """The report's ``audit.json`` without what differs from run to run."""
    assert found.report is not None
    data: dict[str, Any] = json.loads((found.report.parent / "audit.json").read_text())
    return {key: value for key, value in data.items() if key not in ("seconds", "created")}


def test_every_false_positive_is_traced_to_its_wake(whole: Audit) -> None:
    explained = whole.explained
    assert len(explained) >= 4 and {case.type for case in explained} == {"background"}
    for case in explained:
        scene = draw_scene(SEEDS[int(case.image_id) - 1])
        wakes = np.any([scene.object(name).mask for name in scene.ghost_boxes_xyxy], axis=0)
        assert case.peak_xy is not None and case.evidence_shares is not None
        x, y = case.peak_xy
        assert wakes[y, x], "the strongest evidence lies on the wake"
        assert case.confirmed and case.evidence_location in ("ring", "scene")
        assert case.evidence_shares["predicted box"] < 0.25 and sum(case.evidence_shares.values()) == pytest.approx(1)
        assert case.minimal_region_fraction is not None and case.minimal_region_fraction < 0.011
        assert {trial.intervention for trial in case.trials} >= {"without evidence", "box control", "random control"}
        assert "outside the box" in case.sentence and "confirmed" in case.sentence
        assert case.question == "why boat here?" and 10 < case.forward_passes < 40


def test_causes_contain_every_explained_case_once(whole: Audit) -> None:
    held = [name for cause in whole.causes for name in cause.case_ids]
    assert sorted(held) == sorted(case.id for case in whole.explained)
    by_id = {case.id: case for case in whole.cases}
    assert all(by_id[name].evidence_kind == cause.kind for cause in whole.causes for name in cause.case_ids)
    for group in whole.groups:
        assert group.confirmed_count == len(group) >= 2 and f"boat: {len(group)} background error" in group.sentence
        assert all(by_id[name].group == group.number for name in group.case_ids)
    grouped = {name for group in whole.groups for name in group.case_ids}
    assert all(case.group is None for case in whole.cases if case.id not in grouped)
    (cause,) = whole.causes
    assert repr(whole).startswith("Audit(") and f"({cause.name}: {len(cause)})" in repr(whole)


def test_a_notebook_shows_counts_causes_and_the_report(whole: Audit) -> None:
    hostile = "<script>alert(1)</script>"
    cases = [replace(case, name=hostile) for case in whole.explained]
    page = replace(whole, cases=cases, report=Path("<b>") / "index.html")._repr_html_()
    assert page.startswith("<div><p><strong>5 false positives with a score of at least 0.5")
    assert "0 missed objects; average precision 1.000. 5 of 5 explained" in page
    assert "surroundings" in page and "delta AP" in page and "counterfactual pairs" in page
    assert "&lt;b&gt;/index.html" in page and "&lt;script&gt;" in page and "<script" not in page
    unlabeled = replace(whole, cases=[], causes=(), report=None, is_unlabeled=True)
    lines = "0 detections with a score of at least 0.5, no annotations."
    assert unlabeled._repr_html_() == f"<div><p><strong>{lines}</strong> </p></div>"
    assert "0 detections" in repr(unlabeled) and "no annotations" in repr(unlabeled)


def test_the_report_contains_every_case_and_its_evidence(whole: Audit) -> None:
    assert whole.report is not None
    data = report(whole)
    read = [AuditCase.from_json(found) for found in data["cases"]]
    assert [found.to_json() for found in read] == [found.to_json() for found in whole.cases]
    for found in data["cases"]:
        if not found["method"]:
            continue
        scene = draw_scene(SEEDS[found["image_id"] - 1])
        wakes = np.any([scene.object(name).mask for name in scene.ghost_boxes_xyxy], axis=0)
        files = [whole.report.parent / "cases" / f"{found['id']}.{name}.png" for name in ("evidence", "control")]
        evidence, control = (np.asarray(Image.open(path)) > 0 for path in files)
        assert (
            evidence.mean() == pytest.approx(found["evidence_fraction"], abs=0.001)
            and found["evidence_fraction"] < 0.02
        )
        assert wakes[evidence].mean() > 0.3 > wakes[control].mean()
        assert abs(int(control.sum()) - int(evidence.sum())) <= 0.1 * evidence.sum()


def test_an_audit_is_pickled(whole: Audit) -> None:
    again = pickle.loads(pickle.dumps(whole))
    assert [case.to_json() for case in again.cases] == [case.to_json() for case in whole.cases]
    assert again.groups == whole.groups and [case.id for case in again.explained] == [
        case.id for case in whole.explained
    ]


def test_the_command_prints_the_results(scenes: Path, tmp_path: Path) -> None:
    model = tmp_path / "harbor.pt"
    torch.save(load_demo_detector(), model)
    arguments = ["audit", "--model", str(model), "--trust-checkpoint", "--images", str(scenes.parent / "images")]
    arguments += ["--annotations", str(scenes), "--out", str(tmp_path / "out"), "--score-threshold", "0.5"]
    named = [*arguments, "--names", "background,vessel,buoy", "--class-map", "boat=vessel", "--explain", "2"]
    result = CliRunner().invoke(app, named)
    assert result.exit_code == 0, result.stderr
    (row,) = [line.split() for line in result.stdout.splitlines() if line.startswith("background")]
    assert row[0] == "background" and row[3] == "2" and sum(map(int, row[4:6])) == 2 and int(row[1]) >= 4
    assert "2 of 2 explained false positives have a confirmed cause" in result.stdout
    assert "confirmed evidence proposed by: " in result.stdout
    assert "vessel" in result.stdout and "confirmed" in result.stdout and "index.html" in result.stdout
    again = CliRunner().invoke(app, named)
    assert again.exit_code == 2 and "--resume" in again.stderr
    unknown = CliRunner().invoke(app, [*arguments, "--names", "a,b,c", "--class-map", "boat"])
    assert unknown.exit_code == 2 and "CATEGORY=CLASS" in unknown.stderr


def test_a_random_sample_gives_the_shares_of_the_causes(
    adapter: Adapter, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(adapter, scenes, tmp_path / "out", explain=3, explain_missed=0, explain_order="random")
    again = run(adapter, scenes, None, explain=3, explain_missed=0, explain_order="random")
    assert [case.id for case in found.explained] == [case.id for case in again.explained]
    assert found.inventory == again.inventory and sum(share.count for share in found.inventory) == 3
    errors = [case for case in found.cases if case.is_false_positive and case.score >= 0.5]
    assert {share.population_size for share in found.inventory} == {len(errors)}
    assert report(found)["inventory"] == [share.to_json() for share in found.inventory]
    print_summary(found)
    assert f"  {found.inventory[0].sentence}" in capsys.readouterr().out.splitlines()
    wrong = {"explain_order": ["area"], "batch_size": [0, 1.5, "4"], "explain": [1.5]}
    for name, values in {**wrong, "explain_missed": [-1], "sample_seed": [-1]}.items():
        for value in values:
            with pytest.raises(ValueError, match=f"expected {name} .* got {value!r}"):
                run(adapter, scenes, None, **{name: value})


def test_unexplained_errors_are_assigned_to_causes(
    adapter: Adapter, scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (pipeline, assignment):
        monkeypatch.setattr(module, "MIN_EXPLAINED", 3)
    features: list[dict[int, np.ndarray]] = []
    plain = BackgroundClassifier.box_features

    def box_features(self: BackgroundClassifier, indices: list[int]) -> dict[int, np.ndarray]:
        features.append(plain(self, indices))
        return features[-1]

    monkeypatch.setattr(BackgroundClassifier, "box_features", box_features)
    found = run(adapter, scenes, None, explain=3, explain_missed=0, explain_order="random")
    errors = [index for index, case in enumerate(found.cases) if case.is_false_positive and case.score >= 0.5]
    assert set(features[0]) == set(errors) and len({values.shape for values in features[0].values()}) == 1
    assert found.assignment is not None
    assert (len(found.assignment.explained), len(found.assignment.assigned)) == (3, len(found.cases) - 3)
    total = sum(cause.estimated_count for cause in found.causes)
    assert total == pytest.approx(len(found.cases)) and len(errors) <= total
    print_summary(found)
    assert "unexplained errors are assigned to the causes" in capsys.readouterr().out


def test_the_same_cause_seen_from_the_other_side_is_no_other_cause(adapter: Adapter, tmp_path: Path) -> None:
    scene = draw_scene(SEEDS[0]).image
    Image.fromarray(scene).save(tmp_path / "scene.png")
    Image.fromarray(np.ascontiguousarray(scene[:, ::-1])).save(tmp_path / "mirrored.png")
    found = detcam.audit(adapter, tmp_path, labels=["boat"], score_threshold=0.5, explain=4)
    assert [len(group) for group in found.groups] == [4] and len({case.image_id for case in found.explained}) == 2


def test_terminal_shows_groups_and_the_hierarchy_of_causes(whole: Audit, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(whole)
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("groups of similar errors, largest delta AP first")
    assert lines[at + 1] == f"  {whole.groups[0].sentence}"
    rows = [line.split("  ") for line in lines]
    (root,) = whole.causes
    row = next(line.split() for line in lines if line.startswith(f"{root.name} "))
    assert row[-3:] == [str(len(root)), str(root.confirmed_count), f"{root.delta_ap:.3f}"]
    assert any(row[0] == "" and "boat, background" in row[1:] for row in rows)
    whole_tree = replace(root, children=root.children * 8)
    print_summary(replace(whole, causes=(whole_tree,)))
    assert "and 3 more in the report" in capsys.readouterr().out


def test_without_objects_errors_are_ranked_by_effect_and_score(
    adapter: Adapter, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(scenes.read_text())
    path = tmp_path / "none.json"
    path.write_text(json.dumps({**data, "annotations": []}))
    with pytest.warns(UserWarning, match="no annotated objects"):
        found = detcam.audit(adapter, scenes.parent / "images", path, out=tmp_path / "report", explain=4)
    assert all(np.isnan(case.delta_ap) for case in found.cases) and len(found.explained) == 4
    assert "average precision undefined" in repr(found)
    drops = [
        sum(case.score * case.effect for case in found.confirmed if case.id in group.case_ids) for group in found.groups
    ]
    assert drops == sorted(drops, reverse=True)
    assert AuditCase.from_json(found.cases[0].to_json()).to_json() == found.cases[0].to_json()
    print_summary(found)
    printed = capsys.readouterr().out
    assert "nan" not in printed.lower() and "Average precision is undefined" in printed and "delta AP" not in printed
    assert all("nan" not in group.sentence and " score" in group.sentence for group in found.groups)
    count = sum(case.is_false_positive and case.score >= 0.3 for case in found.cases)
    assert f"{count} false positives with a score of at least 0.3" in printed


def test_the_model_is_moved_to_the_device_and_back(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, moves = adapt(load_demo_detector(), names=DEMO_NAMES), []
    adapter.model.to = lambda device: moves.append(str(device))  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    run(adapter, scenes, None, explain=0, explain_missed=0, device="cuda")
    assert moves == ["cuda", "cpu"]


class Killed(Exception):
    """Raised half-way on purpose."""


def test_an_interrupted_audit_resumes_with_the_same_results(
    adapter: Adapter, scenes: Path, whole: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is interrupted before the first case, between two cases of an image, and after an image."""
    write = ReportWriter.case
    written: list[str] = []
    stop: int | None = 0

    def counting(self: ReportWriter, case: AuditCase, image: np.ndarray, maps: CaseMaps | None) -> None:
        if len(written) == stop:
            raise Killed
        write(self, case, image, maps)
        written.append(case.id)

    monkeypatch.setattr(ReportWriter, "case", counting)
    for stop in (0, 1, 3):
        with pytest.raises(Killed):
            run(adapter, scenes, tmp_path, resume=stop > 0, batch_size=1)
        assert not (tmp_path / "index.html").exists()
        with pytest.raises(ValueError, match="contains an unfinished audit; resume it"):
            run(adapter, scenes, tmp_path, batch_size=1)
    stop = None
    found = run(adapter, scenes, tmp_path, resume=True, batch_size=1)
    assert set(written) == {case.id for case in whole.explained}
    assert len(written) - len(set(written)) == 1, "only the image that was interrupted is explained twice"
    first, second = report(whole), report(found)
    assert [case["id"] for case in first["cases"]] == [case["id"] for case in second["cases"]]
    for one, other in zip(first["cases"], second["cases"], strict=True):
        assert one["verdict"] == other["verdict"] and one["evidence_location"] == other["evidence_location"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_images_are_explained_together_as_far_as_memory_allows(
    adapter: Adapter, scenes: Path, whole: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    verified: list[int] = []
    explain, verify = explainer.ErrorExplainer.explain, explainer.verify_together

    def explaining(self: Any, images: Any) -> Any:
        groups.append(len(images))
        return explain(self, images)

    def verifying(images: Any) -> Any:
        verified.append(len(images))
        return verify(images)

    monkeypatch.setattr(explainer.ErrorExplainer, "explain", explaining)
    monkeypatch.setattr(explainer, "verify_together", verifying)
    monkeypatch.setattr(explainer, "MAX_LEVEL_BYTES", 1)
    monkeypatch.setattr(pipeline, "DEFAULT_BATCH_SIZE", 2)
    run(adapter, scenes, None)
    assert groups == [3] and verified == [1, 1, 1], "activations of more than one image do not fit"
    monkeypatch.setattr(stages, "MAX_GROUP_PIXELS", 1)
    monkeypatch.setattr(explainer, "MAX_LEVEL_BYTES", 2**30)
    found = run(adapter, scenes, None)
    assert groups == [3, 2, 1] and verified == [1, 1, 1, 2, 1], "at least one batch"
    assert [(case.id, case.verdict) for case in found.explained] == [(c.id, c.verdict) for c in whole.explained]
    monkeypatch.setattr(stages, "MAX_PIXELS", 1)
    groups.clear()
    run(adapter, scenes, None, explain=2, explain_missed=0)
    assert groups == [1, 1], "two cases of one size do not fit"


def test_two_audits_of_one_model_at_once(adapter: Adapter, scenes: Path, whole: Audit, tmp_path: Path) -> None:
    before = Snapshot(adapter.model)
    found: dict[str, Audit] = {}

    def work(name: str) -> None:
        found[name] = run(adapter, scenes, tmp_path / name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before.check()
    for name in ("one", "other"):
        assert [case.to_json() for case in found[name].cases] == [case.to_json() for case in whole.cases]


def test_a_folder_is_not_overwritten(adapter: Adapter, scenes: Path, whole: Audit) -> None:
    assert whole.report is not None
    out = whole.report.parent
    assert not (out / "run").exists(), "a finished audit has no working files"
    with pytest.raises(ValueError, match="contains a finished audit; choose a new folder, or run it again"):
        run(adapter, scenes, out)
    with pytest.raises(ValueError, match="other settings.*explain was 200 and is now 3"):
        run(adapter, scenes, out, resume=True, explain=3)
    same = run(adapter, scenes, out, resume=True)
    assert [case.to_json() for case in same.cases] == [case.to_json() for case in whole.cases]


def test_images_that_cannot_be_read_are_left_out_and_counted(adapter: Adapter, tmp_path: Path) -> None:
    path = write_scenes(tmp_path, SEEDS[:2])
    broken = tmp_path / "images" / f"scene-{SEEDS[0]}.png"
    broken.write_bytes(broken.read_bytes()[:-20_000])
    with pytest.warns(UserWarning, match="."):
        data = json.loads(path.read_text())
        data["images"].append({"id": 9, "file_name": "nowhere.png", "height": 10, "width": 10})
        path.write_text(json.dumps(data))
        found = run(adapter, path, None, explain=0, explain_missed=0)
    assert len(found.issues.of(UNREADABLE)) == 1 and len(found.issues.of("image is missing")) == 1
    assert {case.image_id for case in found.cases} == {2} and not found.explained


def test_no_detections_and_no_annotations(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "black.png")
    path = tmp_path / "empty.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "black.png", "height": 48, "width": 64}],
                "annotations": [],
                "categories": [{"id": 1, "name": "boat"}],
            }
        )
    )
    found = run(adapter, path, tmp_path / "out")
    assert not found.cases and not found.groups and found.report is not None and found.report.exists()


@pytest.mark.parametrize("options", [{}, {"explain": 0}], ids=["default", "missed objects alone"])
def test_an_image_size_with_only_missed_objects(adapter: Adapter, tmp_path: Path, options: dict[str, Any]) -> None:
    """The first image of its size has nothing to verify: an object that the detector does not see at all."""
    path = write_scenes(tmp_path, SEEDS[2:])
    Image.new("RGB", (256, 90), (120, 120, 120)).save(tmp_path / "images" / "gray.png")
    data = json.loads(path.read_text())
    data["images"].append({"id": 9, "file_name": "gray.png", "height": 90, "width": 256})
    missed = {"id": 99, "image_id": 9, "category_id": 10, "bbox": [50, 20, 40, 40], "area": 1600, "iscrowd": 0}
    data["annotations"].append(missed)
    path.write_text(json.dumps(data))
    found = run(adapter, path, tmp_path / "out", **options)
    (case,) = [case for case in found.cases if case.image_id == 9]
    assert case.type == "missed" and case.failure_stage
    assert found.report is not None and found.report.exists()
    assert {case.image_id for case in found.explained if case.is_false_positive} == (set() if options else {1})


def test_a_classifier_is_refused(scenes: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(TypeError, match="expected a detector"):
        detcam.audit(model, scenes.parent / "images", scenes)


def test_labels_choose_the_errors_to_explain(adapter: Adapter, scenes: Path, whole: Audit) -> None:
    buoys = run(adapter, scenes, None, labels=["Buoy"])
    assert not [case for case in buoys.explained if case.name != "buoy"]
    assert len(buoys.cases) == len(whole.cases), "errors of all classes are counted"
    boats = run(adapter, scenes, None, labels=[1, "boat"], explain=1, explain_missed=0)
    assert [case.name for case in boats.explained] == ["boat"]
    with pytest.raises(ValueError, match="no class named 'whale'"):
        run(adapter, scenes, None, labels=["whale"])
