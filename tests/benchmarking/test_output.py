"""Tables, figures and the command of the benchmark."""

from __future__ import annotations

import csv
import io
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from typer.testing import CliRunner

from detcam.benchmarking import Benchmark
from detcam.benchmarking.plots import FigureImage, scatter
from detcam.benchmarking.specs import split_list
from detcam.benchmarking.statistics import MethodResult, make_rows
from detcam.cli.app import app
from detcam.demo.model import load_demo_detector
from detcam.metrics import METRICS
from tests.benchmarking.harbor import SEEDS, write_scenes

SIGNS = {"score": 1, "loss": -1}


def make_benchmark() -> Benchmark:
    def outcome(name: str, kind: str, level: float, seconds: float) -> MethodResult:
        images = [np.array([level + 0.01 * i]) for i in range(8)]
        nothing = [np.array([np.nan])] * 8
        passes = [] if kind == "control" else [seconds * 20]
        return MethodResult(
            name, kind, {"score": images, "loss": nothing if name == "b|ad" else images}, passes, passes, [seconds]
        )

    rows = make_rows(
        [
            outcome("good", "method", 0.8, 1.5),
            outcome("b|ad", "method", 0.3, 0.02),
            outcome("noise", "control", 0.4, 0),
        ],
        SIGNS,
    )
    image = np.full((30, 40, 3), 128, np.uint8)
    maps = {"good": np.eye(30, 40, dtype=np.float32), "noise": np.zeros((30, 40), np.float32)}
    figure_images = (FigureImage("a.png", image, "boat", (5.0, 5.0, 20.0, 25.0), maps),)
    return Benchmark(tuple(rows), SIGNS, ("a note",), "net", "noise", 8, 9, (), {}, figure_images)


def test_csv_has_one_line_per_row_and_one_column_per_number() -> None:
    lines = list(csv.DictReader(io.StringIO(make_benchmark().to_csv())))
    assert [line["method"] for line in lines] == ["good", "b|ad", "noise"]
    assert list(lines[0])[:9] == [
        "method",
        "kind",
        "score",
        "score low",
        "score high",
        "score images",
        "score targets",
        "score undefined",
        "score best",
    ]
    assert list(lines[0])[-5:] == ["passes", "backward", "seconds", "peak_mib", "failed"]
    assert float(lines[0]["score"]) == pytest.approx(0.835)
    assert (lines[0]["score best"], lines[1]["score best"]) == ("1", "0")
    assert (lines[1]["loss"], lines[1]["loss undefined"], lines[2]["passes"]) == ("", "8", "")


def test_markdown_marks_the_best_method_and_escapes_names() -> None:
    lines = make_benchmark().to_markdown().splitlines()
    assert lines[0] == "**net: 9 predictions in 8 images**"
    assert lines[2] == "| method | score ↑ | loss ↓ | passes | backward | seconds | MiB |"
    assert lines[4].startswith("| good | **0.835** [0.8")
    assert lines[5] == "| b\\|ad | 0.335 " + lines[5].split("0.335 ")[1]
    assert "| - |" in lines[5]
    assert lines[6].startswith("| *noise* | 0.435")
    assert lines[-1] == "* a note"


def test_terminal_table_shows_every_row_with_its_interval() -> None:
    text = make_benchmark().to_text(100)
    for words in (
        "net: 9 predictions in 8 images",
        "score ↑",
        "loss ↓",
        "good",
        "0.835",
        "[0.8",
        "30.0",
        "1.50",
        "noise",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 100


def test_scatter_labels_all_rows_and_puts_better_values_higher() -> None:
    found = make_benchmark()
    figure = found.scatter()
    (axes,) = figure.axes
    words = [text.get_text() for text in axes.texts]
    assert sorted(words) == ["b|ad", "good", "noise"]
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    assert low < high
    low, high = found.scatter("loss").axes[0].get_ylim()
    assert low > high
    boxes = [text.get_window_extent() for text in axes.texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    with pytest.raises(ValueError, match="expected one of the metrics score, loss"):
        found.scatter("beauty")


def test_labels_of_close_points_do_not_overlap() -> None:
    names = ["odam", "hirescam", "layercam", "ssgradcam", "eigencam", "occlusion"]
    points = [(0.80, 0.040), (0.80, 0.041), (0.801, 0.042), (0.799, 0.043), (0.79, 0.05), (0.9, 6.0)]
    outcomes = [
        MethodResult(name, "method", {"score": [np.array([level + 0.01 * i]) for i in range(8)]}, seconds=[seconds])
        for name, (level, seconds) in zip(names, points, strict=True)
    ]
    drawn = scatter(make_rows(outcomes, {"score": 1}), "score", 1)
    drawn.draw_without_rendering()
    texts = [text for text in drawn.axes[0].texts if text.get_text() in names]
    assert len(texts) == len(names)
    areas = {text.get_text(): Text.get_window_extent(text) for text in texts}  # without the line to the point
    for one, other in combinations(names, 2):
        assert not areas[one].overlaps(areas[other]), (one, other)
    assert areas["odam"].x0 - drawn.axes[0].transData.transform((0.041, 0.8))[0] > 10


def test_heatmap_grid_has_a_row_per_method_and_marks_failures() -> None:
    found = make_benchmark()
    figure = found.grid()
    single = Benchmark(found.rows[:1], SIGNS, (), "net", "noise", 8, 9, (), {}, found.figure_images).grid()
    assert figure.shape[1] == single.shape[1]
    assert figure.shape[0] == pytest.approx(single.shape[0] * 2, rel=0.02)
    # the diagonal of the first method's heatmap is missing in the plain image above it
    assert np.abs(single[: single.shape[0] // 2].astype(int) - single[-(single.shape[0] // 2) :]).max() > 60


def test_list_of_names_with_settings_is_split_at_commas() -> None:
    assert split_list("gradcam, drise:passes=10,seed=2,odam") == ["gradcam", "drise:passes=10,seed=2", "odam"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "harbor.pt"
    torch.save(load_demo_detector(), path)
    return path


def call(model: Path, *arguments: str) -> tuple[int, str, str]:
    names = ["--trust-checkpoint", "--names", "background,boat,buoy"]
    result = CliRunner().invoke(app, ["benchmark", "--model", str(model), *names, *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_command_prints_the_table_and_writes_the_folder(model_file: Path, tmp_path: Path) -> None:
    images, out = write_scenes(tmp_path / "in", SEEDS[:2]), tmp_path / "out"
    arguments = ["--images", str(images), "--methods", "odam,occlusion:grid=4,window=2", "--top-k", "1"]
    arguments += ["--metrics", "insertion:steps=2,sparseness", "--out", str(out)]
    code, text, _ = call(model_file, *arguments)
    assert code == 0
    head = next(line for line in text.splitlines() if "method" in line)
    assert head.split() == [
        "method",
        "insertion:steps=2",
        "↑",
        "sparseness",
        "↑",
        "passes",
        "backward",
        "seconds",
        "MiB",
    ]
    for name in ("odam", "occlusion:grid=4,window=2", "filled box", "random, blurred", "randomcam"):
        assert name in text
    assert "harbor.pt: 2 predictions in 2 images" in text
    rows = {line["method"]: line for line in csv.DictReader((out / "benchmark.csv").open())}
    assert float(rows["occlusion:grid=4,window=2"]["passes"]) > 8
    assert float(rows["odam"]["backward"]) >= 1
    assert json.loads((out / "benchmark.json").read_text())["images"] == 2
    assert (out / "benchmark.md").read_text().count("\n| ") >= 8
    assert np.asarray(Image.open(out / "scatter.png")).std() > 5
    assert np.asarray(Image.open(out / "maps.png")).std() > 20
    assert not (set(rows) - {row["method"] for row in json.loads((out / "benchmark.json").read_text())["rows"]})

    (images / "broken.jpg").write_bytes(b"nothing")
    code, text, _ = call(model_file, *arguments)
    assert code == 1
    assert "failed: broken.jpg" in text
    code, _, errors = call(model_file, *arguments, "--seed", "3")
    assert code == 2
    assert "contains results of other settings" in errors.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "beauty"], "no metric is named 'beauty'; expected one of"),
        (["--methods", "beauty"], "no method is named 'beauty'"),
        (["--class-map", "boat"], "--class-map as CATEGORY=CLASS"),
        (["--metrics", "pointing_game"], "pass a COCO JSON file"),
        (["--annotations", "nowhere.json"], "nowhere.json"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    model_file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    images = write_scenes(tmp_path / "in", SEEDS[:1])
    code, _, errors = call(model_file, "--images", str(images), "--out", str(tmp_path / "out"), *arguments)
    assert code == 2
    assert message in errors
    assert len([line for line in errors.splitlines() if line.startswith("detcam:")]) == 1


def test_documentation_quotes_the_list_of_metrics() -> None:
    listed = CliRunner().invoke(app, ["metrics", "--markdown"])
    assert listed.exit_code == 0
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    quoted = text.partition("<!-- detcam metrics --markdown -->\n")[2].partition("<!-- end -->")[0]
    assert quoted == listed.stdout, "put what `detcam metrics --markdown` prints between the marks"
    lines = CliRunner().invoke(app, ["metrics"]).stdout.splitlines()[2:]
    rows = {line.split()[0]: " ".join(line.split()) for line in lines}
    assert list(rows) == list(METRICS)
    assert "0 to inf lower class, box, mask annotations" in rows["compactness"]
