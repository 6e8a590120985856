"""Fair comparisons: missing values, results of other settings, and damaged results."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detcam
from detcam import adapt
from detcam.adapters import Adapter, detector
from detcam.benchmarking.conclusions import make_notes
from detcam.benchmarking.specs import describe_settings
from detcam.benchmarking.statistics import MethodResult, make_rows
from detcam.demo.model import load_demo_detector
from detcam.metrics import Deletion, ROADMostRelevantFirst
from detcam.metrics.sanity import RandomizationCheck, randomization
from detcam.perturbation.fills import BlurFill
from detcam.synthetic.harbor import DEMO_NAMES
from detcam.utils.hashing import adapter_digest
from tests.auditing.scenes import write_scenes


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return adapt(load_demo_detector(), names=DEMO_NAMES)


def outcome(name: str, values: list[float]) -> MethodResult:
    return MethodResult(name, "method", {"score": [np.array([value]) for value in values]}, seconds=[1.0] * len(values))


def notes_of(found: list[MethodResult]) -> list[str]:
    rows = make_rows(found, {"score": 1})
    return make_notes(found, rows, {"score": 1}, (), unannotated={}, resamples=2000, seed=0)


def test_method_without_values_on_hard_images_is_not_best() -> None:
    """A is worse by 0.05 wherever both have a value, and has none on the ten hard images."""
    easy, hard = [0.9] * 10, [0.4] * 10
    found = [outcome("A", [value - 0.05 for value in easy] + [np.nan] * 10), outcome("B", easy + hard)]
    rows = {row.name: row for row in make_rows(found, {"score": 1})}
    assert rows["A"].scores["score"].mean > rows["B"].scores["score"].mean
    assert "score" in rows["B"].tied and "score" not in rows["A"].tied
    notes = notes_of(found)
    assert notes[0] == "score: A has values for too few predictions to be compared."
    assert notes[1] == "score: B reaches 0.65; there is no other method to compare with."


def test_best_method_is_not_worse_on_shared_targets() -> None:
    """A has no value of two hard images of twenty and is worse by 0.01 everywhere else: B is best."""
    b = [0.9] * 18 + [0.1] * 2
    found = [outcome("A", [value - 0.01 for value in b[:18]] + [np.nan] * 2), outcome("B", b)]
    rows = {row.name: row for row in make_rows(found, {"score": 1})}
    assert rows["A"].scores["score"].mean > rows["B"].scores["score"].mean
    assert [name for name, row in rows.items() if "score" in row.tied] == ["B"]
    assert notes_of(found)[0] == "score: B is best with 0.82, significantly better than every other method."


def run(adapter: Adapter, images: Path, out: Path, metrics: list[Any], **options: Any) -> Any:
    options = {"methods": ["gradcam"], "controls": False, "top_k": 1, "resamples": 50, **options}
    methods = options.pop("methods")
    return detcam.benchmark(adapter, images, methods, metrics, out=out, **options)


def test_results_of_other_settings_are_not_reused(adapter: Adapter, tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [1_000_000]).parent / "images"
    for number, (one, other) in enumerate(
        [
            (ROADMostRelevantFirst(75), ROADMostRelevantFirst(75, noise=3.0, seed=1)),
            (Deletion(fill=BlurFill(1), steps=2), Deletion(fill=BlurFill(30), steps=2)),
            ("insertion:steps=2", "insertion:steps=3"),
        ]
    ):
        out = tmp_path / f"out-{number}"
        run(adapter, images, out, [one])
        assert run(adapter, images, out, [one]).computed == 0
        with pytest.raises(ValueError, match="metrics was"):
            run(adapter, images, out, [other])
    mine = {"mine": lambda adapter: detcam.methods.GradCAM(adapter)}
    other_one = {"mine": lambda adapter: detcam.methods.HiResCAM(adapter)}
    out = tmp_path / "named"
    first = run(adapter, images, out, ["sparseness"], methods=mine)
    assert run(adapter, images, out, ["sparseness"], methods=mine).computed == 0
    second = run(adapter, images, out, ["sparseness"], methods=other_one)
    assert second.computed == 1 and second.row("mine").scores != first.row("mine").scores
    assert describe_settings(BlurFill(2)) == describe_settings(BlurFill(2)) != describe_settings(BlurFill(3))


def test_adapter_digest_depends_on_preprocessing() -> None:
    def made(**options: Any) -> Adapter:
        return detector(torch.nn.Conv2d(3, 4, 1), lambda raw: raw, names=["boat"], target_layers="", **options)

    whole = made(image_size=64)
    assert adapter_digest(whole) == adapter_digest(made(image_size=64))
    for other in (made(image_size=96), made(image_size=64, letterbox=True), made(image_size=64, score_threshold=0.1)):
        assert adapter_digest(other) != adapter_digest(whole)


def test_figures_of_an_earlier_run_are_not_benchmarked(adapter: Adapter, tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [1_000_000, 1_000_001]).parent / "images"
    first = run(adapter, images, images / "benchmark", ["sparseness"])
    again = run(adapter, images, images / "benchmark", ["sparseness"])
    assert first.images == again.images == 2 and again.computed == 0 and not again.images_without_predictions


def test_damaged_heatmap_and_failing_method_do_not_stop_the_run(adapter: Adapter, tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [1_000_000, 1_000_001]).parent / "images"
    before = run(adapter, images, tmp_path / "out", ["sparseness"])
    for file in (tmp_path / "out" / "cells").rglob("*.png"):
        file.write_bytes(b"broken")
    assert run(adapter, images, tmp_path / "out", ["sparseness"]).row("gradcam").scores == before.row("gradcam").scores

    class Failing(detcam.methods.GradCAM):
        name = "failing"

        def explain(self, *arguments: Any, **options: Any) -> Any:
            raise KeyError("absent")

    found = run(
        adapter, images, tmp_path / "new", ["sparseness"], methods={"bad": Failing, "good": "gradcam"}, figure_images=0
    )
    assert found.row("bad").failed == 2 and np.isfinite(found.row("good").scores["sparseness"].mean)
    assert not (tmp_path / "new" / "maps.png").exists() and (tmp_path / "new" / "scatter.png").exists()
    with pytest.raises(ValueError, match="'image' is a reserved name"):
        run(adapter, images, tmp_path / "x", ["sparseness"], methods={"image": "gradcam"})


def test_invalid_metric_settings_are_refused() -> None:
    for wrong in ({"batch_size": -1}, {"batch_size": 0}, {"protocol": "foo"}, {"steps": 2.5}):
        with pytest.raises(ValueError, match="expected"):
            Deletion(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected protocol"):
        ROADMostRelevantFirst(75, protocol="foo")  # type: ignore[arg-type]


def test_weights_of_a_two_stage_detector_are_randomized(adapter: Adapter, tmp_path: Path) -> None:
    image = write_scenes(tmp_path, [1_000_000]).parent / "images" / "scene-1000000.png"
    found = randomization(detcam.methods.GradCAM(adapter), str(image), steps=2)
    assert len(found.rank_correlation) == 2 and bool(found.rank_correlation.isfinite().all())
    assert float(found.rank_correlation[-1].abs().mean()) < 0.9


def test_randomization_of_an_empty_heatmap_is_undefined(adapter: Adapter, tmp_path: Path) -> None:
    image = write_scenes(tmp_path, [1_000_000]).parent / "images" / "scene-1000000.png"
    (found,) = adapter.predict(str(image))
    targets = adapter.targets_of(found)[:2]
    size = found.image_size_hw
    maps = torch.zeros(2, *size)
    maps[1, 5:9, 5:9] = 1

    def method(adapter: Any, images: Any, targets: Any) -> list[torch.Tensor]:
        return [maps]

    values = RandomizationCheck(steps=1).measure(adapter, [str(image)], [targets], [maps], method=method)
    assert bool(values[0].isnan()) and float(values[1]) == pytest.approx(1)


def test_incomplete_image_is_not_counted(adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that fails while a lost result is recomputed counts in no row, so that all rows use the same images."""
    images = write_scenes(tmp_path, [1_000_000, 1_000_001]).parent / "images"
    methods = ["gradcam", "hirescam"]
    run(adapter, images, tmp_path / "out", ["sparseness"], methods=methods)
    (lost, *_) = sorted((tmp_path / "out" / "cells").glob("scene-1000000*/hirescam*.json"))
    lost.unlink()

    def fails(*arguments: Any) -> Any:
        raise ValueError("no longer readable")

    monkeypatch.setattr(importlib.import_module("detcam.benchmarking.runner"), "prepare_targets", fails)
    found = run(adapter, images, tmp_path / "out", ["sparseness"], methods=methods)
    assert found.images == 1 and list(found.failed.values()) == ["no longer readable"]
    assert {found.row(name).scores["sparseness"].images for name in methods} == {1}
