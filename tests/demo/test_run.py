"""The demonstration tells what is so: its numbers are recomputed from what it wrote, its verdicts from the scenes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detcam.demo.evidence import MARGIN, Evidence, FalseAlarm, around
from detcam.demo.run import is_labelled, run
from detcam.detections import Detections, Source
from detcam.explanation.writer import read_heatmap
from detcam.synthetic.harbour import BOAT_LABEL, BUOY_LABEL, DEMO_SEEDS, draw_scene


@dataclass
class Told:
    folder: Path
    alarms: tuple[FalseAlarm, ...]
    lines: list[str]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.lines).split())


@pytest.fixture(scope="module")
def on_progress(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("demo")
    spoken: list[str] = []
    alarms = run(folder, echo=spoken.append)
    return Told(folder, alarms, "\n".join(spoken).split("\n"))


def found_in(boxes: list[list[float]], labels: list[int]) -> Detections:
    count = len(labels)
    return Detections(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.linspace(0.9, 0.6, count) if count else torch.zeros(0),
        (192, 256),
        (Source("proposal"),) * count,
    )


def test_every_boatless_wake_is_a_false_alarm_with_a_certified_cause(on_progress: Told) -> None:
    wakes = {(seed, wake) for seed in DEMO_SEEDS for wake in draw_scene(seed).ghost_boxes_xyxy}
    assert {(alarm.seed, alarm.wake) for alarm in on_progress.alarms} == wakes
    assert all(alarm.verdict.certified for alarm in on_progress.alarms)
    assert f"{len(wakes)} of {len(wakes)} false boats are caused by the wake" in on_progress.text


def test_the_early_layer_points_at_the_wake_and_the_last_one_cannot(on_progress: Told) -> None:
    count = len(on_progress.alarms)
    assert sum(alarm.evidence.hottest == "wake" for alarm in on_progress.alarms) >= 0.9 * count
    assert sum(alarm.last_layer.hottest == "wake" for alarm in on_progress.alarms) <= 0.2 * count
    assert np.mean([alarm.evidence.wake for alarm in on_progress.alarms]) > 0.6
    assert np.mean([alarm.last_layer.wake for alarm in on_progress.alarms]) < 0.15
    assert all(alarm.evidence.reach > 1.5 * alarm.last_layer.reach for alarm in on_progress.alarms)


def test_the_shares_are_those_of_the_saved_heatmaps(on_progress: Told) -> None:
    images = json.loads((on_progress.folder / "explanations.json").read_text())["images"]
    assert {image["method"] for image in images} == {"reachcam"}
    by_name = {image["name"]: image for image in images}
    for alarm in on_progress.alarms:
        target = by_name[f"scene-{alarm.seed}.png"]["targets"][alarm.index]
        assert target["score"] == pytest.approx(alarm.score, abs=1e-5)
        heat = read_heatmap(on_progress.folder / target["heatmap"])
        wake = draw_scene(alarm.seed).object(alarm.wake).mask
        x1, y1, x2, y2 = (round(value) for value in target["box_xyxy"])
        inside = beside = total = 0.0
        for row, column in np.ndindex(heat.shape):
            value = float(heat[row, column])
            total += value
            window = wake[max(row - MARGIN, 0) : row + MARGIN + 1, max(column - MARGIN, 0) : column + MARGIN + 1]
            if y1 <= row < y2 and x1 <= column < x2:
                inside += value
            elif value and window.any() and around(wake)[row, column]:
                beside += value
        assert alarm.evidence.box == pytest.approx(inside / total, abs=2e-3)
        assert alarm.evidence.wake == pytest.approx(beside / total, abs=2e-3)
        assert f"{alarm.evidence.box:.0%}  " in " ".join(on_progress.lines)


def test_the_table_of_detections_counts_them(on_progress: Told) -> None:
    rows = {}
    for line in on_progress.lines:
        cells = line.split()
        if len(cells) >= 5 and all(cell.isdigit() for cell in cells[:5]):
            rows[int(cells[0])] = [int(cell) for cell in cells[1:5]]
    assert set(rows) == set(DEMO_SEEDS)
    for seed, (total, boats, buoys, false) in rows.items():
        scene = draw_scene(seed)
        assert boats == len(scene.of_kind("boat"))
        assert buoys == len(scene.of_kind("buoy"))
        assert false == len(scene.ghost_boxes_xyxy)
        assert total == boats + buoys + false


def test_the_audit_s_report_is_there_and_finds_the_wakes(on_progress: Told) -> None:
    """On the scenes as they were written, with their labels, and once more in the same folder."""
    labels = json.loads((on_progress.folder / "annotations.json").read_text())
    assert {entry["file_name"] for entry in labels["images"]} == {f"scene-{seed}.png" for seed in DEMO_SEEDS}
    assert len(labels["annotations"]) == sum(len(draw_scene(seed).labels) for seed in DEMO_SEEDS)
    for entry in labels["annotations"]:
        seed = DEMO_SEEDS[entry["image_id"] - 1]
        x, y, width, height = entry["bbox"]
        assert [x, y, x + width, y + height] in draw_scene(seed).boxes_xyxy.tolist()
    audit = json.loads((on_progress.folder / "report" / "audit.json").read_text())
    cases = [case for case in audit["cases"] if case["method"] and case["is_false_positive"]]
    assert {case["id"] for case in cases} == {
        f"image-{DEMO_SEEDS.index(a.seed) + 1}-detection-{a.index}" for a in on_progress.alarms
    }
    for case in cases:
        seed = DEMO_SEEDS[case["image_id"] - 1]
        x, y = case["peak_xy"]
        assert any(draw_scene(seed).object(alarm.wake).mask[y, x] for alarm in on_progress.alarms if alarm.seed == seed)
        assert (case["verdict"], case["background_type"]) == ("confirmed", "context")
    assert f"confirms {len(cases)} of {len(cases)} causes" in on_progress.text
    assert all(f"{group['sentence']}." in on_progress.text for group in audit["groups"][:3])
    assert "report/index.html" in on_progress.text and (on_progress.folder / "report" / "index.html").exists()


def test_a_second_demonstration_takes_the_same_folder(
    on_progress: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detcam.demo.run.DEMO_SEEDS", DEMO_SEEDS[:1])
    first, second = ([json.dumps([a.evidence.wake for a in run(tmp_path, echo=lambda _: None)])] for _ in range(2))
    assert first == second and (tmp_path / "report" / "index.html").exists()


def test_a_figure_per_scene_shows_scene_heat_and_the_scene_without_the_wake(on_progress: Told) -> None:
    for seed in DEMO_SEEDS:
        figure = np.array(Image.open(on_progress.folder / f"scene-{seed}.png"))
        rows = len(draw_scene(seed).ghost_boxes_xyxy)
        assert figure.shape[1] > 4 * 512
        assert figure.shape[0] > rows * 384
        assert figure.shape[0] < (rows + 0.3) * 480
        plain = np.array(Image.open(on_progress.folder / "scenes" / f"scene-{seed}.png"))
        np.testing.assert_array_equal(plain, draw_scene(seed).image)


def test_no_line_is_wider_than_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "48")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detcam.demo.run.DEMO_SEEDS", DEMO_SEEDS[:1])
    spoken: list[str] = []
    run("out", echo=spoken.append)
    lines = "\n".join(spoken).split("\n")
    assert max(map(len, lines)) <= 48
    assert any("in box" in line and "in wake" in line for line in lines)


def test_a_label_is_found_once_and_only_by_its_class() -> None:
    scene = draw_scene(28)
    boat = scene.of_kind("boat")[0].box_xyxy.tolist()
    shifted = [boat[0] + 2, boat[1], boat[2] + 2, boat[3]]
    aside = [boat[0] + (boat[2] - boat[0]) * 0.6, boat[1], boat[2] + (boat[2] - boat[0]) * 0.6, boat[3]]
    found = found_in([boat, shifted, boat, aside], [BOAT_LABEL, BOAT_LABEL, BUOY_LABEL, BOAT_LABEL])
    assert is_labelled(found, scene) == [True, False, False, False]
    assert is_labelled(found_in([aside, shifted], [BOAT_LABEL] * 2), scene) == [False, True]
    assert is_labelled(found_in([], []), scene) == []


def test_evidence_of_a_known_map() -> None:
    class Known:
        heatmaps = torch.zeros(1, 40, 60)
        reach = None

        def box_xyxy(self, index: int) -> tuple[float, float, float, float]:
            return (10.0, 10.0, 20.0, 20.0)

    wake = np.zeros((40, 60), bool)
    wake[15:18, 24:30] = True
    known = Known()
    known.heatmaps[0, 12, 12] = 0.5  # in the box
    known.heatmaps[0, 16, 26] = 0.9  # in the wake
    known.heatmaps[0, 16, 22] = 0.1  # beside the wake
    known.heatmaps[0, 35, 50] = 0.5  # far away
    heat = Evidence.of(known, 0, wake)  # type: ignore[arg-type]
    assert heat.box == pytest.approx(0.25)
    assert heat.wake == pytest.approx(0.5)
    assert heat.elsewhere == pytest.approx(0.25)
    assert heat.hottest == "wake"
    known.heatmaps[0, 35, 50] = 1.0
    assert Evidence.of(known, 0, wake).hottest == "elsewhere"  # type: ignore[arg-type]
