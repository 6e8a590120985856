"""The other commands, and the parsers of options."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path

import pyarrow as pa
import pytest
import typer

from detcam import METHODS, __version__
from detcam.cli.command import one_line_errors
from detcam.cli.explain import parse_box
from detcam.cli.options import parse_class_map, parse_size
from detcam.cli.tables import ROWS_FILE, registered_rows
from detcam.data.issues import DataWarning
from detcam.explanation.image_files import find_images
from detcam.utils.console import plural, printable, shorten
from detcam.utils.opencv import cv2
from tests.cli.files import CLASSIFIER, DETECTOR, Command, read_entries, save_image


def test_methods_table(detcam_command: Command) -> None:
    code, out, _ = detcam_command("methods")
    assert code == 0
    rows = {line.split()[0]: re.split("  +", line.strip()) for line in out.splitlines() if line}
    for name, method in METHODS.items():
        own = "yes" if method.class_discriminative else "no"
        assert rows[name][1:4] == [method.use, method.cost, own]
        assert rows[name][5] == method.paper
    assert rows["drise"][4] == "detection" and rows["odam"][4] == "all"


def test_stored_rows_are_those_of_the_registries() -> None:
    stored = json.loads(ROWS_FILE.read_text(encoding="utf-8"))
    expected = {kind: [list(row) for row in rows] for kind, rows in registered_rows().items()}
    assert stored == expected, "run python -m detcam.cli.tables"


def test_layers_table(detcam_command: Command) -> None:
    code, out, err = detcam_command("layers", "--model", DETECTOR, "--image-size", "96")
    assert code == 0, err
    rows = {line[3:].split()[0]: line for line in out.splitlines() if line.strip()}
    assert rows["backbone"].startswith("*")
    assert "256 x 3 x 4, 256 x 3 x 4, 256 x 2 x 2" in rows["backbone"]
    assert rows["backbone.body.6"].split() == ["backbone.body.6", "InvertedResidual", "8", "40", "x", "12", "x", "16"]
    assert "roi_heads.box_head" not in rows
    assert "backbone.body.6.block" not in rows
    code, out, _ = detcam_command("layers", "--model", DETECTOR, "--image-size", "96", "--depth", "4")
    assert "backbone.body.6.block" in out


def test_listed_layers_can_be_explained(detcam_command: Command, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    _, out, _ = detcam_command("layers", *CLASSIFIER)
    names = [name for line in out.splitlines() for name in line.split()[:1] if name.startswith("features.")]
    assert len(names) > 5
    for name in names[::4]:
        code, _, err = detcam_command("explain", "a.png", *CLASSIFIER, "--target-layer", name, "--out", name)
        assert code == 0, err
        assert read_entries(tmp_path / name)[0]["target_layers"] == [name]


def test_demo_gets_its_folder(detcam_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Path] = []
    monkeypatch.setattr("detcam.demo.run.run_demo", given.append)
    for folder in ("there", "~/there"):
        assert detcam_command("demo", "--out", folder)[0] == 0
    assert given == [Path("there"), Path.home() / "there"]


def test_help_version_and_unknown_commands(detcam_command: Command) -> None:
    assert detcam_command("--version") == (0, f"detcam {__version__}\n", "")
    for arguments in ((), ("--help",)):
        code, out, _ = detcam_command(*arguments)
        assert code == 0
        assert all(word in out for word in ("explain", "methods", "layers", "demo", "Examples"))
    code, out, _ = detcam_command("explain", "-h")
    assert code == 0
    assert all(word in out for word in ("What to explain", "Exit codes", "--trust-checkpoint"))
    code, _, err = detcam_command("explian")
    assert (code, err.count("\n")) == (2, 1)
    assert "No such command 'explian'" in err


def test_options_of_other_tools_are_named(detcam_command: Command) -> None:
    for arguments, hint in (
        (("explain", "--image-path", "a.png"), "Images stand without an option: detcam explain PHOTO..."),
        (("explain", "a.png", "--output_dir", "x"), "Did you mean --out?"),
        (("explain", "a.png", "--conf", "0.1"), "Did you mean --score-threshold?"),
        (("audit", "--source", "x"), "Did you mean --images?"),
        (("explain", "a.png", "--aug_smooth"), "--aug-smooth"),
    ):
        code, _, err = detcam_command(*arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert hint in err
    code, _, err = detcam_command("compare", "a", "b", "--conf", "1")  # which has no such option under any name
    assert code == 2 and "No such option" in err and "--conf" in err and "Did you mean" not in err


def test_problems_of_data_are_noted_unless_the_results_list_them(capsys: pytest.CaptureFixture[str]) -> None:
    with one_line_errors(debug=False):
        warnings.warn("a.json: 1 problem", DataWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: something else\n"
    with pytest.raises(typer.Exit), one_line_errors(debug=False):
        warnings.warn("a.json: 1 problem", DataWarning, stacklevel=1)
        raise ValueError("no image can be used")
    assert capsys.readouterr().err.splitlines() == ["detcam: no image can be used", "note: a.json: 1 problem"]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (MemoryError(), "MemoryError"),
        (cv2.error("(-4:Insufficient memory) Failed to allocate 9 bytes"), None),
        (pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"), None),
    ],
    ids=["Python", "OpenCV", "pyarrow"],
)
def test_a_lack_of_memory_in_any_library_is_one_line(
    capsys: pytest.CaptureFixture[str], error: Exception, shown: str | None
) -> None:
    remedies = {True: "allow more (--max-memory)", False: "end other programs to free some"}
    for has_limit, remedy in remedies.items():
        with pytest.raises(typer.Exit) as caught, one_line_errors(debug=False, has_limit=has_limit):
            raise error
        printed = capsys.readouterr().err
        assert (
            caught.value.exit_code == 2 and printed == f"detcam: memory does not suffice; {remedy} ({shown or error})\n"
        )
    with pytest.raises(KeyError), one_line_errors(debug=False):
        raise KeyError("a fault of the program keeps its traceback")


@pytest.mark.parametrize("limit", [["--max-memory", "8G"], []], ids=["limit", "no limit"])
def test_a_lack_of_memory_names_the_limit_that_was_set(
    detcam_command: Command, monkeypatch: pytest.MonkeyPatch, limit: list[str]
) -> None:
    def fail(*_: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("detcam.cli.options.ModelOptions.load", fail)
    code, _, err = detcam_command("layers", *CLASSIFIER, *limit)
    assert code == 2 and ("--max-memory" in err) == bool(limit), err


def test_target_layers_separated_by_commas(detcam_command: Command, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    code, _, err = detcam_command("explain", "a.png", *CLASSIFIER, "--target-layer", "features.9, features.12")
    assert code == 0, err
    assert read_entries(tmp_path / "explanations")[0]["target_layers"] == ["features.9", "features.12"]
    note = "note: mobilenet_v3_small has random weights: its predictions and heatmaps mean nothing"
    assert err.splitlines()[0] == note
    assert read_entries(tmp_path / "explanations")[0]["model"] == "mobilenet_v3_small random weights"


def test_find_images_in_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deep/c.PNG", ".hidden/d.png", "deep/.e.png"):
        save_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in find_images([str(tmp_path)])] == ["a.jpg", "b.png", "c.PNG"]
    assert [path.name for path in find_images([str(tmp_path / "**" / "*.*")])] == ["a.jpg", "b.png", "c.PNG"]
    assert len(find_images([str(tmp_path), str(tmp_path / "b.png")])) == 3
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        find_images([str(tmp_path / "void")])


def test_parsers_and_text_helpers() -> None:
    assert parse_box("1, 2.5,3,4") == (1, 2.5, 3, 4)
    assert (parse_size("320"), parse_size("256x320")) == (320, (256, 320))
    assert parse_class_map(["red cell = RBC", "3=boat"]) == {"red cell": "RBC", "3": "boat"}
    assert (plural(1, "target"), plural(2, "target"), plural(2, "box")) == ("1 target", "2 targets", "2 boxes")
    assert shorten("a" * 20 + "b" * 20, 11) == "aaaa…bbbbbb"
    assert printable("evil\x1b[2Jname\n") == "evil?[2Jname?"


METHOD_FILE = """
from detcam.methods import register_method
from detcam.cam import BaseCAM

@register_method
class MeanActivationCAM(BaseCAM):
    name = "meanactivation"
    paper = "none"
    cost = "1 forward"
    use = "a test"
    uses_gradients = False
    class_discriminative = False

    def saliency(self, activations, gradients):
        return activations.mean(1)
"""


@pytest.mark.usefixtures("registries_as_they_were")
@pytest.mark.parametrize("module", ["own_method.py", "own_method"])
def test_import_option_adds_a_method(
    detcam_command: Command, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_method.py").write_text(METHOD_FILE)
    save_image(tmp_path / "a.png")
    options = ("explain", "a.png", *CLASSIFIER, "--method", "MeanActivation")
    code, _, err = detcam_command(*options)
    assert code == 2 and "no method is named 'MeanActivation'" in err
    code, _, err = detcam_command(*options, "--import", module)
    sys.modules.pop("own_method", None)
    assert code == 0, err
    assert read_entries(tmp_path / "explanations")[0]["method"] == "meanactivation"


def test_import_option_reports_what_is_missing(detcam_command: Command) -> None:
    for module, message in (
        ("no_such_module", "detcam: --import no_such_module: ModuleNotFoundError: No module named 'no_such_module'"),
        ("no_such_file.py", "detcam: --import no_such_file.py: FileNotFoundError"),
    ):
        code, _, err = detcam_command("methods", "--import", module)
        assert code == 2
        assert err.startswith(message)
