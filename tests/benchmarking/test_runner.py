"""Runs: resumption, failures, selection of predictions, and controls."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import detcam
from detcam.benchmarking import Benchmark, benchmark
from detcam.benchmarking.controls import make_controls
from detcam.metrics.base import Metric
from detcam.metrics.metric_input import MetricImage
from detcam.targets import BoxTarget, register_target
from detcam.targets.registry import TARGETS
from tests.benchmarking.harbor import METRICS, SEEDS, DrawnMaps, corner, harbor_detector, truth, write_scenes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class LeftHalf(Metric):
    """The mean of a heatmap's left half."""

    name, paper, higher_is_better, range = "left_half", "none", True, (0.0, 1.0)
    calls = 0

    def value(self, image: MetricImage) -> Tensor:
        type(self).calls += 1
        return image.heatmaps[:, :, : image.heatmaps.shape[2] // 2].double().mean((1, 2))


def slope(image: Tensor, target: Any) -> np.ndarray:
    height, width = image.shape[-2:]
    value = 0.5 + 0.4 * float(image.mean())
    return np.full((height, width), value, np.float32) * np.linspace(1, 0, width, dtype=np.float32)


def drawn_by(draw: Any) -> Any:
    return lambda adapter: DrawnMaps(adapter, draw)


def compare(images: Any, out: Path | None = None, draw: Any = slope, **options: Any) -> Benchmark:
    methods = options.pop("methods", None) or {"mine": drawn_by(draw)}
    metrics = options.pop("metrics", [LeftHalf()])
    return benchmark(harbor_detector(), images, methods, metrics, out=out, top_k=2, **options)


def timeless(found: Benchmark) -> list[Any]:
    """The rows without times and memory."""
    return [(row.name, row.kind, dict(row.scores), row.tied, row.failed) for row in found]


def test_true_heatmap_is_the_best_row(tmp_path: Path) -> None:
    found = compare(
        write_scenes(tmp_path, SEEDS[:6]),
        methods={
            "corner": lambda adapter: DrawnMaps(adapter, corner),
            "gradcam": "gradcam",
            "truth": lambda adapter: DrawnMaps(adapter, truth),
        },
        metrics=METRICS,
        labels=["boat"],
        score_threshold=0.5,
        controls=False,
    )
    assert [row.name for row in found][0] == "truth"
    best = found.row("truth").scores
    for row in found[1:]:
        assert best[METRICS[0]].mean > row.scores[METRICS[0]].mean + 0.2
        assert best[METRICS[1]].mean < row.scores[METRICS[1]].mean - 0.2
        assert not row.tied
    assert found.row("truth").tied == set(METRICS)
    assert (found.images, found.targets) == (6, 12)
    assert found.recommend()[0].name == "truth"


def test_interrupted_run_resumes(tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:4])
    whole = compare(images)
    DrawnMaps.calls = LeftHalf.calls = 0

    stopping = [True]

    def stops(image: Tensor, target: Any) -> np.ndarray:
        if DrawnMaps.calls == 3 and stopping:
            stopping.clear()
            raise KeyboardInterrupt
        return slope(image, target)

    with pytest.raises(KeyboardInterrupt):
        compare(images, tmp_path / "out", stops)
    assert not (tmp_path / "out" / "benchmark.csv").exists()
    DrawnMaps.calls = 0
    cells = (path for path in (tmp_path / "out" / "cells").rglob("*.json"))
    measured = {path: json.loads(path.read_text()).get("seconds") for path in cells}
    assert sum(value is not None for value in measured.values()) >= 2 * len(whole)
    rest = compare(images, tmp_path / "out", stops)
    kept = {path: json.loads(path.read_text()).get("seconds") for path in measured}
    assert kept == measured, "times that were measured stay in the tables"
    # two of four images were complete; the method explains the others, and the first again to count work
    assert rest.computed == 2 * len(whole)
    assert DrawnMaps.calls == 3
    assert timeless(rest) == timeless(whole)
    DrawnMaps.calls = LeftHalf.calls = 0
    again = compare(images, tmp_path / "out", stops)
    assert (again.computed, DrawnMaps.calls, LeftHalf.calls) == (0, 0, 0)
    assert timeless(again) == timeless(whole)
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_damaged_result_is_recomputed(tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:2])
    whole = compare(images, tmp_path / "out")
    victim = sorted((tmp_path / "out" / "cells").rglob("mine-*.json"))[0]
    for content in (
        victim.read_bytes()[:40],
        b'{"name": "mine"}',
        victim.read_bytes().replace(b'"values": {', b'"values": 5, "": {'),
    ):
        victim.write_bytes(content)
        again = compare(images, tmp_path / "out")
        assert again.computed == 1
        assert timeless(again) == timeless(whole)
    table = tmp_path / "out" / "table.json"
    table.write_text(json.dumps({**json.loads(table.read_text()), "rows": 5}))
    with pytest.raises(ValueError, match=r"table\.json is damaged .*move it away"):
        compare(images, tmp_path / "out")


def test_failed_result_is_recomputed(tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:2])
    whole = compare(images)
    broken = [True]

    def sometimes(image: Tensor, target: Any) -> np.ndarray:
        if broken[0]:
            raise RuntimeError("out of memory")
        return slope(image, target)

    found = compare(images, tmp_path / "out", draw=sometimes)
    assert found.row("mine").failed == 2
    assert any("out of memory" in note for note in found.notes)
    broken[0] = False
    again = compare(images, tmp_path / "out", draw=sometimes)
    assert again.computed == 2
    assert timeless(again) == timeless(whole)


def test_methods_and_images_can_be_added_but_settings_cannot_change(tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:2])
    one = compare(images, tmp_path / "out")
    two = compare(
        images,
        tmp_path / "out",
        methods={"mine": drawn_by(slope), "corner": drawn_by(corner)},
    )
    assert two.computed == 2
    assert two.row("mine").scores == one.row("mine").scores
    both = {"mine": drawn_by(corner), "corner": drawn_by(corner)}
    other = compare(images, tmp_path / "out", methods=both, controls=False)
    assert other.computed == 2 and other.row("mine").scores == two.row("corner").scores
    assert {row.name for row in other} == {row.name for row in two}  # the controls stay
    both["mine"] = drawn_by(slope)
    assert compare(images, tmp_path / "out", methods=both, controls=False).row("mine").scores == one.row("mine").scores
    with pytest.raises(ValueError, match="has a row 'corner', which this run does not name"):
        compare(images, tmp_path / "out")
    write_scenes(tmp_path / "in", SEEDS[:3])
    assert compare(images, tmp_path / "out", methods=both).computed == len(two)
    with pytest.raises(ValueError, match="compares 3 images, and this run lacks 1 of them: scene-"):
        compare(images, tmp_path / "out", methods=both, limit=2)
    with pytest.raises(ValueError, match="score_threshold was None and is now 0.9"):
        compare(images, tmp_path / "out", score_threshold=0.9)
    with pytest.raises(ValueError, match="metrics was"):
        compare(images, tmp_path / "out", metrics=["sparseness"])
    (tmp_path / "out" / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="was not written by this version of detcam"):
        compare(images, tmp_path / "out")


def test_a_table_keeps_the_rows_of_earlier_runs(tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:2])
    options: dict[str, Any] = {"out": tmp_path / "out", "controls": False}
    compare(images, methods=["gradcam:eigen_smooth=true"], **options)
    write_scenes(tmp_path / "in", SEEDS[:3])
    found = compare(images, methods=["hirescam"], **options)
    assert {row.name for row in found} == {"gradcam:eigen_smooth=true", "hirescam"}
    assert found.computed == 1 + 3  # the earlier method on the new image
    assert "Rows of earlier runs in this folder: gradcam:eigen_smooth=true." in found.notes
    note = "ReachWarning from hirescam and gradcam:eigen_smooth=true: the gradient at the target layer does not reach"
    assert any(each.startswith(note) for each in found.notes), found.notes
    together = compare(images, methods=["gradcam:eigen_smooth=true", "hirescam"], controls=False)
    assert timeless(found) == timeless(together)
    with pytest.raises(ValueError, match="'gradcam:eigen_smooth=true', which this run does not name, and the name"):
        compare(images, methods=["hirescam"], batch_size=2, **options)


def test_changed_image_is_explained_again(tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:2])
    before = compare(images, tmp_path / "out")
    first = sorted(images.iterdir())[0]
    image = Image.open(first)
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(first)
    assert compare(images, tmp_path / "out").computed == len(before)


def test_unreadable_image_does_not_stop_the_run(tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:3])
    good = compare(images)
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not at all")
    Image.new("RGB", (64, 48), (120, 130, 140)).save(images / "empty.png")
    found = compare([*sorted(images.iterdir()), tmp_path / "absent.png"])
    assert timeless(found) == timeless(good)
    assert set(found.failed) == {"broken.png", "absent.png"}
    assert found.images_without_predictions == ("empty.png",)
    assert "1 image without predictions with a score of at least 0.3 excluded: empty.png." in found.notes
    assert any(note.startswith("failed: broken.png: cannot read") for note in found.notes)
    with pytest.raises(ValueError, match="no image could be explained: 1 without predictions, 1 failed; broken.png"):
        compare([images / "broken.png", images / "empty.png"])


def test_heatmaps_of_another_size_or_with_nan_are_excluded_from_means(tmp_path: Path) -> None:
    images = write_scenes(tmp_path, SEEDS[:3])
    good = compare(images)
    first: list[int] = []

    def small_once(image: Tensor, target: Any) -> np.ndarray:
        mean = round(float(image.sum()))
        first.append(mean)
        return slope(image[:, ::2] if mean == first[0] else image, target)

    found = compare(images, draw=small_once)
    row = found.row("mine")
    assert row.failed == 1
    assert row.scores["left_half"].images == 2
    others = compare(sorted(images.iterdir())[1:]).row("mine").scores["left_half"].mean
    assert row.scores["left_half"].mean == pytest.approx(others)
    assert found.row("filled box").scores == good.row("filled box").scores
    assert any("expected heatmaps of shape (N, 192, 256)" in note for note in found.notes)
    assert "mine: failed on 1 image." in found.notes

    def nan_once(image: Tensor, target: Any) -> np.ndarray:
        drawn = slope(image, target)
        if target.source is not None and target.box_xyxy == best[0]:
            drawn[5, 5] = math.nan
        return drawn

    adapter = harbor_detector()
    best = [adapter.targets_of(adapter.predict(p, top_k=1)[0])[0].box_xyxy for p in sorted(images.iterdir())]
    own = compare(images, draw=nan_once).row("mine").scores["left_half"]
    assert (own.undefined, own.targets, own.images) == (1, 5, 3)
    assert math.isfinite(own.mean)


def test_noise_differs_between_images_and_targets_and_is_reproducible() -> None:
    images = [torch.rand(3, 20, 30), torch.rand(3, 20, 30)]
    targets = [[BoxTarget((2.0, 2.0, 9.0, 9.0), 1), BoxTarget((2.0, 2.0, 9.0, 9.0), 2)]] * 2
    for name in ("random", "random, blurred"):
        drawn = [
            torch.cat(
                next(e for e in make_controls("detection", seed) if e.name == name).explain(None, images, targets)
            )
            for seed in (0, 0, 1)
        ]
        assert torch.equal(drawn[0], drawn[1])
        maps = [*drawn[0], *drawn[2]]
        assert all(not torch.equal(one, other) for one, other in combinations(maps, 2))


def test_controls_are_rows_and_the_filled_box_fills_the_box(tmp_path: Path) -> None:
    images = write_scenes(tmp_path, SEEDS[:2])
    found = compare(images)
    names = {row.name for row in found if row.kind == "control"}
    assert {"random", "random, blurred", "filled box", "filled box, blurred", "randomcam", "sobel"} <= names
    adapter = harbor_detector()
    means = []
    for path in sorted(images.iterdir()):
        shares = []
        for x1, y1, x2, y2 in adapter.predict(path, score_threshold=0.3, top_k=2)[0].boxes_xyxy.tolist():
            hot = 0
            for row in range(192):
                for column in range(128):
                    hot += x1 <= column + 0.5 < x2 and y1 <= row + 0.5 < y2
            shares.append(hot / (192 * 128))
        means.append(sum(shares) / 2)
    assert found.row("filled box").scores["left_half"].mean == pytest.approx(sum(means) / 2, abs=1e-6)
    assert found.row("random").scores["left_half"].mean == pytest.approx(0.5, abs=0.01)
    assert found.row("random").scores == compare(images).row("random").scores
    assert found.row("random").scores != compare(images, seed=1).row("random").scores
    assert [row.kind for row in found] == sorted((row.kind for row in found), reverse=True)
    assert {row.kind for row in compare(images, controls=False)} == {"method"}
    named = compare(images, methods=["gradcam", "randomcam"])
    assert [row.name for row in named if row.name.startswith("randomcam")] == ["randomcam"]
    assert named.row("randomcam").kind == "control"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["odam", "odam"]}, "odam is given twice"),
        ({"methods": ["grandcam"]}, "no method is named 'grandcam'; did you mean .*gradcam"),
        ({"methods": ["drise:masks=9"]}, "drise has no setting 'masks'"),
        ({"methods": ["attentionrollout"]}, "this model does detection: leave it out"),
        ({"methods": ["randomcam"]}, "at least one method that is no control"),
        ({"methods": {"filled box": "odam"}}, "filled box is the name of a control"),
        ({"metrics": ["beauty"]}, "no metric is named 'beauty'; expected one of"),
        ({"metrics": ["insertion:step=3"]}, "insertion:step=3"),
        ({"metrics": ["pointing_game"]}, "needs annotations"),
        ({"metrics": []}, "at least one metric"),
        ({"limit": 0}, "limit as an int of at least 1"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_runs(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(write_scenes(tmp_path, SEEDS[:1]), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:1])
    compare(images, tmp_path / "out")
    settings = tmp_path / "out" / "settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "version": 1}))
    with pytest.raises(ValueError, match="expected detcam.benchmark version 2, got detcam.benchmark version 1"):
        compare(images, tmp_path / "out")


def test_predictions_are_selected_as_in_explain(tmp_path: Path) -> None:
    images = write_scenes(tmp_path, SEEDS[:1])
    (by_name,) = compare(images, labels=["boat"], progress=True).figure_images
    (by_index,) = compare(images, labels=1).figure_images
    assert by_name.caption == by_index.caption == "boat"
    assert compare(images, labels=["buoy"]).figure_images[0].caption == "buoy"
    with pytest.raises(ValueError, match="whale"):
        compare(images, labels=["whale"])
    left = compare(images, quantity="x1", methods=["gradcam"], metrics=["sparseness"], controls=False)
    assert "x1" in left.figure_images[0].caption
    with pytest.raises(ValueError, match="no quantity is named 'beauty'"):
        compare(images, quantity="beauty")


@pytest.fixture
def twice() -> Iterator[str]:
    @register_target("twice")
    def function(output: Any, target: Any) -> Tensor:
        return 2 * target(output)

    yield "twice"
    TARGETS.unregister("twice")


def test_registered_target_is_used_by_name(tmp_path: Path, twice: str) -> None:
    images = write_scenes(tmp_path, SEEDS[:1])
    options: dict[str, Any] = {"methods": ["gradcam"], "metrics": ["sparseness"], "controls": False, "labels": [1]}
    found, plain = compare(images, quantity=twice, **options), compare(images, **options)
    assert found.failed == {} and found.figure_images[0].caption == "twice of boat"
    score, other = (result.row("gradcam").scores["sparseness"].mean for result in (plain, found))
    assert score == pytest.approx(other, abs=1e-4)


def test_batch_size_applies_to_every_method(tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:1])
    sizes = []

    class Recorder(DrawnMaps, abstract=True):
        def explain(self, *arguments: Any, **options: Any) -> Any:
            sizes.append(self.batch_size)
            return super().explain(*arguments, **options)

    methods = {"mine": lambda adapter: Recorder(adapter, slope)}
    default = compare(images, methods=methods, controls=False)
    found = compare(images, tmp_path / "out", methods=methods, controls=False, batch_size=3)
    assert found.row("mine").scores["left_half"].mean == default.row("mine").scores["left_half"].mean
    assert set(sizes[: len(sizes) // 2]) == {DrawnMaps(harbor_detector(), slope).batch_size} and sizes[-1] == 3
    assert compare(images, tmp_path / "out", methods=methods, controls=False, batch_size=5).computed == 1
    with pytest.raises(ValueError, match="batch_size as an int of at least 1; got '4'"):
        compare(images, methods=methods, batch_size="4")


def test_model_is_restored(tmp_path: Path) -> None:
    from tests.helpers import Snapshot

    assert detcam.benchmark is benchmark
    adapter = harbor_detector()
    before = Snapshot(adapter.model)
    benchmark(adapter, write_scenes(tmp_path, SEEDS[:1]), ["gradcam:eigen_smooth=true"], [LeftHalf()], controls=False)
    before.check()


def test_classifier_is_compared_with_a_blob_in_the_middle() -> None:
    from detcam.adapters import adapt
    from tests.helpers import TinyCNN

    adapter = adapt(TinyCNN(), image_size=32, target_layers=["conv2"])
    images = [torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = benchmark(adapter, images, ["gradcam", "layercam"], ["insertion:steps=4", "sparseness"], model_name="tiny")
    assert found.reference == "blob in the middle"
    assert found.title == "tiny: 2 predictions in 2 images"
    assert found.row("gradcam").passes > 0.99
    assert {image.name for image in found.figure_images} == {"image-1", "image-2"}
    assert json.loads(found.to_json())["rows"][0]["method"] == found[0].name
