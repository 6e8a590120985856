"""The printed numbers of the demonstration agree with its files and the scenes."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from detcam.demo.evidence import WAKE_MARGIN, DemoFalsePositive, dilate
from detcam.demo.run import run_demo
from detcam.explanation.writer import read_heatmap
from detcam.synthetic.harbor import DEMO_SEEDS
from tests.drawn import harbor_scene


@dataclass
class DemoOutput:
    folder: Path
    false_positives: tuple[DemoFalsePositive, ...]
    lines: list[str]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.lines).split())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> DemoOutput:
    folder = tmp_path_factory.mktemp("demo")
    false_positives, lines = capture_demo(folder, width=100)
    return DemoOutput(folder, false_positives, lines)


def capture_demo(folder: str | Path, width: int) -> tuple[tuple[DemoFalsePositive, ...], list[str]]:
    stream = io.StringIO()
    false_positives = run_demo(folder, console=Console(file=stream, width=width, highlight=False, markup=False))
    return false_positives, stream.getvalue().split("\n")


def test_every_boatless_wake_causes_a_certified_false_positive(output: DemoOutput) -> None:
    wakes = {(seed, wake) for seed in DEMO_SEEDS for wake in harbor_scene(seed).ghost_boxes_xyxy}
    assert {(item.seed, item.wake) for item in output.false_positives} == wakes
    assert all(item.certification.certified for item in output.false_positives)
    assert f"The wake beside the box causes {len(wakes)} of {len(wakes)} false boats" in output.text


def test_early_layers_locate_the_wake_and_the_last_layer_does_not(output: DemoOutput) -> None:
    count = len(output.false_positives)
    assert sum(item.early_layer.peak == "wake" for item in output.false_positives) >= 0.9 * count
    assert sum(item.last_layer.peak == "wake" for item in output.false_positives) <= 0.2 * count
    assert np.mean([item.early_layer.wake for item in output.false_positives]) > 0.6
    assert np.mean([item.last_layer.wake for item in output.false_positives]) < 0.15
    assert all(item.early_layer.reach > 1.5 * item.last_layer.reach for item in output.false_positives)


def test_heat_fractions_match_the_saved_heatmaps(output: DemoOutput) -> None:
    images = json.loads((output.folder / "explanations.json").read_text())["images"]
    assert {image["method"] for image in images} == {"reachcam"}
    by_name = {image["name"]: image for image in images}
    for item in output.false_positives:
        target = by_name[f"scene-{item.seed}.png"]["targets"][item.index]
        assert target["score"] == pytest.approx(item.score, abs=1e-5)
        heat = read_heatmap(output.folder / target["heatmap"])
        wake = harbor_scene(item.seed).object(item.wake).mask
        around = dilate(wake)
        x1, y1, x2, y2 = (round(value) for value in target["box_xyxy"])
        inside = beside = total = 0.0
        for row, column in np.ndindex(heat.shape):
            value = float(heat[row, column])
            total += value
            window = wake[
                max(row - WAKE_MARGIN, 0) : row + WAKE_MARGIN + 1,
                max(column - WAKE_MARGIN, 0) : column + WAKE_MARGIN + 1,
            ]
            if y1 <= row < y2 and x1 <= column < x2:
                inside += value
            elif value and window.any() and around[row, column]:
                beside += value
        assert item.early_layer.box == pytest.approx(inside / total, abs=2e-3)
        assert item.early_layer.wake == pytest.approx(beside / total, abs=2e-3)
        assert f"{item.early_layer.box:.0%}  " in " ".join(output.lines)


def test_detection_counts_match_the_scenes(output: DemoOutput) -> None:
    rows = {}
    for line in output.lines:
        cells = line.split()
        if len(cells) >= 5 and all(cell.isdigit() for cell in cells[:5]):
            rows[int(cells[0])] = [int(cell) for cell in cells[1:5]]
    assert set(rows) == set(DEMO_SEEDS)
    for seed, (total, boats, buoys, false) in rows.items():
        scene = harbor_scene(seed)
        assert boats == len(scene.of_kind("boat"))
        assert buoys == len(scene.of_kind("buoy"))
        assert false == len(scene.ghost_boxes_xyxy)
        assert total == boats + buoys + false


def test_audit_report_confirms_the_wakes(output: DemoOutput) -> None:
    labels = json.loads((output.folder / "annotations.json").read_text())
    assert {entry["file_name"] for entry in labels["images"]} == {f"scene-{seed}.png" for seed in DEMO_SEEDS}
    assert len(labels["annotations"]) == sum(len(harbor_scene(seed).labels) for seed in DEMO_SEEDS)
    for entry in labels["annotations"]:
        seed = DEMO_SEEDS[entry["image_id"] - 1]
        x, y, width, height = entry["bbox"]
        assert [x, y, x + width, y + height] in harbor_scene(seed).boxes_xyxy.tolist()
    audit = json.loads((output.folder / "report" / "audit.json").read_text())
    cases = [case for case in audit["cases"] if case["method"] and case["is_false_positive"]]
    assert {case["id"] for case in cases} == {
        f"image-{DEMO_SEEDS.index(a.seed) + 1}-detection-{a.index}" for a in output.false_positives
    }
    for case in cases:
        seed = DEMO_SEEDS[case["image_id"] - 1]
        x, y = case["peak_xy"]
        assert any(
            harbor_scene(seed).object(item.wake).mask[y, x] for item in output.false_positives if item.seed == seed
        )
        assert (case["verdict"] in ("strong", "weak"), case["background_type"]) == (True, "context")
    assert f"confirms {len(cases)} of {len(cases)} causes" in output.text
    assert all(f"{group['sentence']}." in output.text for group in audit["groups"][:3])
    assert "report/index.html" in output.text and (output.folder / "report" / "index.html").exists()


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoOutput, DemoOutput]:
    """Two runs with one scene in the same folder, in a narrow terminal; the first path is relative, and short."""
    folder = tmp_path_factory.mktemp("twice")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("detcam.demo.run.DEMO_SEEDS", DEMO_SEEDS[:1])
        for variable in ("HOME", "USERPROFILE"):
            patch.setenv(variable, str(folder))
        first, second = (DemoOutput(folder / "out", *capture_demo(path, width=48)) for path in ("out", "~/out"))
    return first, second


def test_second_run_in_the_same_folder(two_runs: tuple[DemoOutput, DemoOutput]) -> None:
    first, second = ([item.early_layer.wake for item in run.false_positives] for run in two_runs)
    assert len(first) > 0 and first == second
    assert (two_runs[1].folder / "report" / "index.html").exists()
    assert {path.name for path in two_runs[1].folder.parent.iterdir()} == {"out"}, "~ is the home folder"


def test_each_scene_has_a_figure_with_a_row_per_false_positive(output: DemoOutput) -> None:
    for seed in DEMO_SEEDS:
        figure = np.array(Image.open(output.folder / f"scene-{seed}.png"))
        rows = len(harbor_scene(seed).ghost_boxes_xyxy)
        assert figure.shape[1] > 4 * 512
        assert figure.shape[0] > rows * 384
        assert figure.shape[0] < (rows + 0.3) * 480
        plain = np.array(Image.open(output.folder / "scenes" / f"scene-{seed}.png"))
        np.testing.assert_array_equal(plain, harbor_scene(seed).image)


def test_lines_fit_the_terminal(two_runs: tuple[DemoOutput, DemoOutput]) -> None:
    lines = two_runs[0].lines
    assert max(map(len, lines)) <= 48
    assert any("in box" in line and "in wake" in line for line in lines)
