"""Shortcut scenes, certification, hit metrics, and the planted benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from detcam.auditing.case import AuditCase, CaseMaps
from detcam.auditing.conclusion import ExplainedError
from detcam.benchmarking.planted import certification, training_cache
from detcam.benchmarking.planted import run as planted_run
from detcam.benchmarking.planted.audit_check import PrecomputedMaps, check_audit, false_causes, grade_of_region
from detcam.benchmarking.planted.certification import certify_cases, cue_pairs
from detcam.benchmarking.planted.detectors import detector_families, train_detector
from detcam.benchmarking.planted.hit_metrics import MAX_RANK, MapHit, local_maxima, measure_hit, summarize_hits
from detcam.benchmarking.planted.results import AuditRow, DetectorRow, MethodRow, PlantedResults
from detcam.benchmarking.planted.run import DEFAULT_CASES, benchmark_planted
from detcam.benchmarking.planted.tables import LEGENDS, TABLE_COLUMNS, markdown_tables, table_rows
from detcam.benchmarking.planted.training_cache import TrainingCache, detector_name
from detcam.cli.app import app
from detcam.cli.benchmark import BenchmarkOptions
from detcam.detections import Detections, Source
from detcam.runs import lock_folder
from detcam.synthetic.shortcut_scenarios import BARGE, BOAT, FIRST_SCENARIOS, SCENARIOS, SHORTCUTS
from detcam.synthetic.shortcuts import ShortcutScene, draw_shortcut_scene


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_removing_an_object_changes_only_its_pixels(scenario: Any) -> None:
    scene = draw_shortcut_scene(scenario, 3, "test")
    assert np.array_equal(scene.image, draw_shortcut_scene(scenario, 3, "test").image)
    for thing in scene.objects:
        without = scene.without([thing.name])
        assert without.get(thing.name) is None
        x1, y1, x2, y2 = thing.box_xyxy.astype(int).tolist()
        changed = (scene.image != without.image).any(2)
        assert changed[y1:y2, x1:x2].any() and changed.sum() == changed[y1:y2, x1:x2].sum()
        assert not (thing.mask & ~changed).sum() > 0.2 * thing.mask.sum(), "the mask covers the visible pixels"
    with pytest.raises(ValueError, match="got \\['whale-1'\\]"):
        scene.without(["whale-1"])


@pytest.mark.parametrize("scenario", FIRST_SCENARIOS)
def test_cue_accompanies_the_label_in_training_but_not_in_twins(scenario: Any) -> None:
    def pairs(split: Any) -> set[tuple[bool, bool, bool]]:
        found = set()
        for seed in range(60):
            scene = draw_shortcut_scene(scenario, seed, split)
            for body, label in zip(scene.bodies, scene.labels.tolist(), strict=True):
                number = body.split("-")[1]
                (kind,) = SHORTCUTS[scenario].cues
                cue = scene.get("lamp-10" if scenario == "far" else f"{kind}-{number}") is not None
                found.add((label == BOAT, cue, scene.get(f"window-{number}") is not None))
        return found

    assert {(label, window) for label, _, window in pairs("twin")} == {(True, True), (False, False)}
    if scenario == "look-alike":
        assert not any(draw_shortcut_scene(scenario, seed, "shortcut").of_kind("cart") for seed in range(40))
        assert {(label, window) for label, _, window in pairs("shortcut")} == {(True, True), (False, False)}
        return
    assert {cue for label, cue, _ in pairs("twin") if label} == {True, False}, "by chance"
    assert pairs("shortcut") == {(True, True, True), (True, True, False), (False, False, False)}
    assert {label for label, _, _ in pairs("test")} == {False}, "barges only, so that every boat is a false positive"


def detector_with(
    rule: Callable[[ShortcutScene, str], bool],
) -> Callable[[Any, Sequence[ShortcutScene]], list[Detections]]:
    """A detector that detects every body, and classifies it as a boat by a rule."""

    def predict(adapter: Any, scenes: Sequence[ShortcutScene]) -> list[Detections]:
        answers = []
        for scene in scenes:
            things = [thing for thing in scene.objects if thing.kind in ("body", "cart")]
            boxes = torch.from_numpy(np.array([thing.box_xyxy for thing in things], np.float32).reshape(-1, 4))
            labels = torch.tensor([BOAT if rule(scene, thing.name) else BARGE for thing in things])
            source = tuple(Source("proposal", 0, 0, None, tuple(box)) for box in boxes.tolist())
            answers.append(Detections(boxes, labels, torch.full((len(things),), 0.9), (160, 192), source, None, {}))
        return answers

    return predict


def test_false_positive_is_certified_only_if_its_cue_is_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def tagged(scene: ShortcutScene, body: str) -> bool:
        return scene.get(f"tag-{body.split('-')[1]}") is not None

    def fragile(scene: ShortcutScene, body: str) -> bool:
        """Vanishes without any object, so that no object is its cause."""
        return tagged(scene, body) and not scene.removed

    rules = {"tag": tagged, "always": lambda scene, body: True, "fragile": fragile, "never": lambda scene, body: False}
    found = {}
    for name, rule in rules.items():
        monkeypatch.setattr(certification, "predict_scenes", detector_with(rule))
        found[name] = certify_cases(None, 0, "mark", min_cases=10**6, max_scenes=20)  # type: ignore[arg-type]
    tempted = sum(len(cue_pairs(draw_shortcut_scene("mark", 1_000_000 + seed, "test"))) for seed in range(20))
    assert {name: one.trials for name, one in found.items()} == dict.fromkeys(rules, tempted) and tempted > 20
    assert {name: one.fired for name, one in found.items()} == {
        "tag": tempted, "always": tempted, "fragile": tempted, "never": 0
    }  # fmt: skip
    assert {name: len(one.cases) for name, one in found.items()} == {
        "tag": tempted, "always": 0, "fragile": 0, "never": 0
    }  # fmt: skip
    for case in found["tag"].cases:
        (cue,) = case.cues
        assert cue.kind == "tag" and case.unrelated.kind != "tag"
        assert case.body.name == f"body-{cue.name.split('-')[1]}"
        assert case.target.box_xyxy == pytest.approx(case.body.box_xyxy.tolist())
        for wrong in false_causes(case):
            assert wrong.any() and not (wrong & case.cause).any()


@pytest.mark.parametrize(
    ("proposal", "columns", "expected"),
    [
        (PrecomputedMaps.name, (0, 4), "strong"),
        (PrecomputedMaps.name, (0, 11), "strong"),
        (PrecomputedMaps.name, (8, 16), "not confirmed"),
        (PrecomputedMaps.name, (18, 20), "not confirmed"),
        ("surroundings", (0, 4), "not confirmed"),
    ],
)
def test_a_false_cause_is_confirmed_only_if_the_evidence_is_on_it(
    proposal: str, columns: tuple[int, int], expected: str
) -> None:
    region, cause, evidence = torch.zeros(3, 2, 20, dtype=torch.bool)
    region[:, :10], cause[:, 10:16], evidence[:, slice(*columns)] = True, True, True
    case = AuditCase("a", 1, "a.png", (2, 20), "background", 0, "boat", 0.9, (0, 0, 2, 2), True, None, 0.0)
    maps = CaseMaps(np.zeros((2, 20), np.uint8), evidence.numpy(), evidence.numpy(), None)
    found = ExplainedError(replace(case, verdict="strong", proposal=proposal), maps, None)
    assert grade_of_region(found, region, cause) == expected
    assert grade_of_region(replace(found, case=replace(found.case, verdict="not tested")), region) == "not tested"


def test_hit_metrics_equal_values_by_hand() -> None:
    cause = torch.zeros(20, 30, dtype=torch.bool)
    cause[2:4, 2:4] = True
    heat = torch.zeros(20, 30)
    heat[2, 2], heat[15, 25], heat[15, 5] = 0.5, 1.0, 0.25
    found = measure_hit(heat, cause)
    assert (found.peak, found.rank) == (False, 2) and found.energy == pytest.approx(0.5 / 1.75)
    assert local_maxima(heat, 5) == [15 * 30 + 25, 2 * 30 + 2, 15 * 30 + 5]
    heat[15, 24] = 0.9
    assert len(local_maxima(heat, 5)) == 3, "close maxima are counted once"
    plateau = torch.zeros(20, 30)
    plateau[4:9, 10:15] = 2.0
    assert local_maxima(plateau, 1) == [6 * 30 + 12], "the middle of the greatest values"
    perfect, nothing = measure_hit(cause.float(), cause), measure_hit(torch.zeros(20, 30), cause)
    assert perfect == MapHit(True, 1.0, 1, True)
    assert nothing == MapHit(False, 0.0, MAX_RANK + 1, False)
    total = summarize_hits([perfect, nothing, found, perfect], 3.0)
    assert (total.cases, total.peak, total.rank, total.passes) == (4, 0.5, (1 + 11 + 2 + 1) / 4, 3.0)


def test_parts_are_hit_if_each_has_one_of_the_first_maxima() -> None:
    left, right = torch.zeros(2, 20, 30, dtype=torch.bool)
    left[2:4, 2:4] = right[2:4, 25:27] = True
    heat = torch.zeros(20, 30)
    heat[2, 2], heat[15, 15], heat[2, 25] = 1.0, 0.5, 0.25
    assert measure_hit(heat, left, right) == MapHit(True, 1.25 / 1.75, 1, False), "the second maximum is elsewhere"
    heat[15, 15] = 0.1
    assert measure_hit(heat, left, right).parts and not measure_hit(heat, right).parts


def test_tables_give_all_cases_equal_weights() -> None:
    row = DetectorRow("fcos", "mark", 10, 9, 8, 12, 1, 0.5, 0.25, -0.125)
    one, two = summarize_hits([measure_hit(torch.eye(4), torch.eye(4) > 0)] * 3, 2.0), summarize_hits([], 2.0)
    few = summarize_hits([measure_hit(torch.ones(4, 4), torch.eye(4) < 0)], 6.0)
    methods = (
        MethodRow("fcos", "mark", "development", "odam", one),
        MethodRow("fcos", "far", "development", "odam", few),
        MethodRow("fcos", "context", "development", "odam", two),
        MethodRow("fcos", "mark", "development", "random", few),
        MethodRow("fcos", "mark", "hold-out", "odam", few),
    )
    audits = (
        AuditRow("fcos", "mark", "development", 3, 1.0, 1.0, 1.0, 1.0, 1.0, 6, 1, 30.0, 0.5),
        AuditRow("fcos", "far", "development", 1, 0.0, 0.0, 0.0, 1.0, 0.0, 2, 0, 10.0, 0.0),
        AuditRow("fcos", "or", "hold-out", 4, 1.0, 1.0, 1.0, 1.0, 1.0, 8, 0, 20.0, 1.0, 0.75),
    )
    planted = PlantedResults((row,), methods, audits)
    assert table_rows(planted, "methods")[:2] == [
        ("odam", "all", "all", "4", "75 % (30-95)", "0.75", "3.5", "75 %", "3.0", "1", "0 % (0-79)", "0.00"),
        ("random", "all", "all", "1", "0 % (0-79)", "0.00", "11.0", "0 %", "6.0", "0", "-", "-"),
    ]
    assert table_rows(planted, "audits")[-1] == (
        "all", "all", "development", "4", "75 %", "0.75", "38 %", "-", "75 %", "100 %", "75 %", "1 of 8", "25.0"
    )  # fmt: skip
    assert table_rows(planted, "audits")[2][7] == "75 % (30-95)"
    assert table_rows(planted, "detectors") == [("fcos", "mark", "9 of 10", "8", "1 of 12", "0.50", "0.25", "-0.12")]
    lines = markdown_tables(planted).splitlines()
    for kind, header in TABLE_COLUMNS.items():
        at = lines.index(f"## {kind}") + 2
        assert lines[at] == "| " + " | ".join(header) + " |" and lines[at + 1].count("|") == len(header) + 1
    assert "| odam | fcos | context | 0 | - | - | - | - | 2.0 | 0 | - | - |" in lines
    page = (Path(__file__).parents[3] / "docs" / "planted-tables.md").read_text(encoding="utf-8")
    (false_causes_text,) = (each for each in LEGENDS["audits"].split("; ") if each.startswith("false causes confirmed"))
    assert false_causes_text in " ".join(page.split()), "the page says it in the same words"


def test_interrupted_planted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_run, "MAX_TWIN_SCENES", 4)

    def few(*args: Any, **options: Any) -> Any:
        return certify_cases(*args, **{**options, "max_scenes": 4})

    monkeypatch.setattr(planted_run, "certify_cases", few)
    options: dict[str, Any] = {
        "family_names": ["two-stage"], "scenarios": ["mark"], "cases": 2, "effort": 0.003, "seed_sets": ["development"]
    }  # fmt: skip
    first = benchmark_planted(tmp_path, ["odam"], **options)
    assert [row.method for row in first.methods] == ["odam", "filled box", "random"]
    assert first.detectors[0].certified == 0 and np.isnan(first.audits[0].location), "three steps are too few to learn"
    prefix = "two-stage/mark/development"
    assert first.computed == tuple(
        f"{prefix}/{name}" for name in ("detector", "method/odam", "method/filled box", "method/random", "audit")
    )
    killed = tmp_path / "detectors" / f".{'0' * 32}.tmp"
    killed.write_bytes(b"half")
    again = benchmark_planted(tmp_path, ["odam"], **options, progress=True)
    assert not killed.exists()
    assert again.computed == () and repr(again) == repr(first)
    more = benchmark_planted(tmp_path, ["odam", "layercam"], **options)
    assert more.computed == (f"{prefix}/method/layercam",)
    content = json.loads((tmp_path / "planted.json").read_text())
    assert (content["schema"], content["version"]) == ("detcam.planted", 3)
    assert set(content) == {"schema", "version", "settings", "results"}
    with pytest.raises(ValueError, match="results of other settings"):
        benchmark_planted(tmp_path, ["odam"], **{**options, "cases": 3})
    with lock_folder(tmp_path), pytest.raises(RuntimeError, match="another run is working"):
        benchmark_planted(tmp_path, ["odam"], **options)
    for wrong, words in (({"family_names": ["ssd"]}, "two-stage, fcos"), ({"scenarios": ["fog"]}, "got 'fog'")):
        with pytest.raises(ValueError, match=words):
            benchmark_planted(tmp_path, ["odam"], **{**options, **wrong})


def test_results_of_another_version_are_refused_and_kept(tmp_path: Path) -> None:
    old = {"settings": {"cases": 24, "seed": 0, "effort": 1.0}, "results": {"fcos/mark/detector": {"tempted": 1}}}
    for content in (json.dumps(old), "[]", "{", json.dumps({"schema": "detcam.planted", "version": 2})):
        (tmp_path / "planted.json").write_text(content)
        with pytest.raises(ValueError, match="not written by this version of detcam|not valid JSON"):
            benchmark_planted(tmp_path, ["odam"], family_names=["fcos"], scenarios=["mark"])
        assert (tmp_path / "planted.json").read_text() == content


def test_command_has_the_defaults_of_the_function() -> None:
    assert BenchmarkOptions.cases == DEFAULT_CASES == signature(benchmark_planted).parameters["cases"].default


def test_training_restores_the_generator_and_depends_on_the_seed(tmp_path: Path) -> None:
    family = detector_families()["fcos"]
    before = torch.random.get_rng_state()
    cache = TrainingCache(tmp_path, seed=1, effort=0.003)
    first = cache.detector(family, detector_name("far"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert {path.name for path in tmp_path.iterdir()} == {"fcos-plain.safetensors", "fcos-far.safetensors"}
    again = cache.detector(family, detector_name("far"))
    other = train_detector(family, "far", "shortcut", 2, seed=2)
    states = [model.state_dict() for model in (first, again, other)]
    key = "head.classification_head.cls_logits.weight"
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0][key], states[2][key])
    assert detector_name("far", twin=True) == "plain" and detector_name("look-alike", twin=True) == "carts"


def test_mask_detector_starts_from_the_plain_box_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(family: Any, scenario: Any, split: Any, steps: int, *, start: Any, **options: Any) -> torch.nn.Module:
        trained.append((family.name, scenario, steps, type(start).__name__))
        return family.build().eval()

    monkeypatch.setattr(training_cache, "train_detector", train)
    TrainingCache(tmp_path).detector(detector_families()["mask-rcnn"], detector_name("outline"))
    assert trained == [
        ("two-stage", "look-alike", 800, "NoneType"),
        ("mask-rcnn", "outline", 300, "FasterRCNN"),
    ]


def test_command_refuses_invalid_arguments(tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["benchmark"]).exit_code == 2
    both = run(app, ["benchmark", "--planted", "--model", "resnet18", "--out", str(tmp_path)])
    assert both.exit_code == 2
    unknown = run(app, ["benchmark", "--planted", "--scenario", "fog", "--out", str(tmp_path)])
    assert unknown.exit_code == 2 and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trained_detector_relies_on_the_tag_unlike_its_twin_and_the_audit_finds_it(tmp_path: Path) -> None:
    family = detector_families()["two-stage"]
    cache = TrainingCache(tmp_path, effort=0.6)
    adapter = family.adapter(cache.detector(family, "mark"))
    twin = family.adapter(cache.detector(family, detector_name("mark", twin=True)))
    tried = certify_cases(adapter, family.first_label, "mark", min_cases=16)
    assert len(tried.cases) >= 16 and tried.fired >= 0.8 * tried.trials
    assert certify_cases(twin, family.first_label, "mark", min_cases=10**6, max_scenes=16).fired <= 0.1 * tried.trials
    checks = [check_audit(adapter, None, case, family.first_label) for case in tried.cases[:16]]
    assert np.mean([check.hit.peak for check in checks]) >= 0.85
    assert np.mean([check.location == check.true_location for check in checks]) >= 0.85
    assert sum(check.false_causes_confirmed for check in checks) <= 3 < sum(check.false_causes for check in checks)
