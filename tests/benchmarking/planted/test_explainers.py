"""Explainers from outside the package: loading, validation, and rows of the planted benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import detcam
from detcam.benchmarking.planted import certification, evaluate
from detcam.benchmarking.planted import run as planted_run
from detcam.benchmarking.planted.cases import FIRST_SEEDS, PlantedCase
from detcam.benchmarking.planted.certification import certify_cases
from detcam.benchmarking.planted.explainers import check_heatmap, load_explainer
from detcam.cli.app import app
from detcam.detections import Detections, Source
from detcam.synthetic.shortcut_scenarios import BOAT
from detcam.synthetic.shortcuts import ShortcutScene

EXPLAINER = """
import numpy as np

seen = []

def center(model, image, target):
    seen.append((type(model).__name__, image.shape, image.dtype.name, target.label, target.against))
    heatmap = np.zeros(image.shape[:2])
    heatmap[80, 96] = 1
    return heatmap

not_a_function = 3
"""
TINY: dict[str, Any] = {"family_names": ["two-stage"], "scenarios": ["mark"], "cases": 2, "effort": 0.003}


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the detector's predictions: every body with a tag is a boat."""

    def predict(adapter: Any, scenes: list[ShortcutScene]) -> list[Detections]:
        answers = []
        for scene in scenes:
            bodies = [body for body in scene.of_kind("body") if scene.get(f"tag-{body.name[5:]}") is not None]
            boxes = torch.from_numpy(np.array([body.box_xyxy for body in bodies], np.float32).reshape(-1, 4))
            labels, scores = torch.full((len(bodies),), 1 + BOAT), torch.full((len(bodies),), 0.9)
            source = tuple(Source("proposal", 0, 0, None, tuple(box)) for box in boxes.tolist())
            answers.append(Detections(boxes, labels, scores, (160, 192), source, None, {}))
        return answers

    monkeypatch.setattr(certification, "predict_scenes", predict)
    monkeypatch.setattr(certification, "BATCH_SIZE", 4)


@pytest.mark.usefixtures("tagged")
def test_evaluate_gives_the_true_cause_its_due_on_both_sets_of_seeds(tmp_path: Path) -> None:
    known: dict[bytes, PlantedCase] = {}
    for seeds in FIRST_SEEDS:
        for case in certify_cases(None, 1, "mark", min_cases=2, seeds=seeds).cases:  # type: ignore[arg-type]
            known[case.scene.image.tobytes() + repr(case.target.box_xyxy).encode()] = case

    def truth(model: torch.nn.Module, image: np.ndarray, target: Any) -> torch.Tensor:
        assert isinstance(model, torch.nn.Module) and not model.training
        case = known[image.tobytes() + repr(target.box_xyxy).encode()]
        assert (target.label, target.against) == (1, 2), "why a boat rather than a barge?"
        return case.cause.float() - 0.5  # negative values count as zero

    rows = {(row.seeds, row.method): row.summary for row in evaluate(truth, tmp_path, **TINY)}
    assert set(rows) == {
        (seeds, name) for seeds in ("development", "hold-out") for name in ("truth", "filled box", "random")
    }
    for seeds in ("development", "hold-out"):
        assert rows[seeds, "truth"].cases == 2
        assert (rows[seeds, "truth"].peak, rows[seeds, "truth"].energy) == (1.0, 1.0)
        assert rows[seeds, "random"].energy < 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["detectors"], "rows of explainers are not saved"


@pytest.mark.usefixtures("tagged")
def test_evaluate_of_a_method_equals_its_own_row(tmp_path: Path) -> None:
    options: dict[str, Any] = {**TINY, "seed_sets": ["development"]}

    def odam(model: torch.nn.Module, image: np.ndarray, target: Any) -> np.ndarray:
        return detcam.ODAM(model).explain(image, [target])[0].heatmaps[0]

    rows = planted_run.benchmark_planted(tmp_path, ["odam"], explainers={"own": odam}, audit=False, **options).methods
    by_name = {row.method: row.summary for row in rows}
    assert by_name["own"].peak == by_name["odam"].peak and by_name["own"].rank == by_name["odam"].rank
    assert by_name["own"].energy == pytest.approx(by_name["odam"].energy, rel=1e-5)
    assert by_name["own"].passes > 0


@pytest.mark.usefixtures("tagged")
def test_explainer_whose_work_cannot_be_counted_has_no_passes(tmp_path: Path) -> None:
    calls = []

    def once_per_case(model: torch.nn.Module, image: np.ndarray, target: Any) -> np.ndarray:
        calls.append(target.box_xyxy)
        if calls.count(target.box_xyxy) > 1:
            raise RuntimeError("autograd with the hooks of the counter")
        return np.ones(image.shape[:2])

    rows = evaluate(once_per_case, tmp_path, **TINY, seed_sets=["development"])
    own = next(row for row in rows if row.method == "once_per_case")
    assert own.summary.cases == 2 and np.isnan(own.summary.passes)


@pytest.mark.usefixtures("tagged")
def test_command_measures_a_function_of_a_module_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_test_explainer.py").write_text(EXPLAINER)
    monkeypatch.chdir(tmp_path)
    command = "benchmark --planted --family two-stage --scenario mark --cases 1 --effort 0.003 --out planted"
    result = CliRunner().invoke(app, [*command.split(), "--explainer", "planted_test_explainer:center"])
    assert result.exit_code == 0, result.output
    assert "planted_test_explainer:center" in result.output and "audits" not in result.output
    assert [path.name for path in (tmp_path / "planted").iterdir()] == ["detectors"]
    from planted_test_explainer import seen  # type: ignore[import-not-found]

    assert seen[0] == ("FasterRCNN", (160, 192, 3), "uint8", 1, 2)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no_colon", "module:function"),
        ("no_such_module_here:f", "cannot import"),
        ("json:no_such_function", "expected a function 'no_such_function' in json"),
        ("math:pi", "got 3.14"),
    ],
)
def test_invalid_explainers_are_named(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_explainer(spec)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: np.zeros((1, 4, 6)), r"size \(4, 6\); got shape \(1, 4, 6\)"),
        (lambda: torch.full((4, 6), float("nan")), "finite"),
    ],
)
def test_invalid_heatmaps_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_heatmap(make(), (4, 6), "mine")
    assert check_heatmap(torch.ones(4, 6, requires_grad=True), (4, 6), "mine").sum() == 24
