"""Output that the terminal, the pipe or the disk cannot take, and names that would change the terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from detcam.auditing.remedies.remedies import GroupRemedy, Repair, readme
from detcam.benchmarking.planted.results import MethodRow, PlantedResults
from detcam.benchmarking.planted.tables import NO_HITS, markdown_tables
from detcam.benchmarking.result import Benchmark
from detcam.benchmarking.statistics import Estimate, Row
from detcam.cli.app import app
from detcam.explanation.writer import EXPLANATIONS_FILE, read_index
from detcam.utils.files import csv_cell, slug, utf8_bytes
from tests.cli.files import CLASSIFIER, Command, read_entries, save_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

HOSTILE = "a\x1b[31m\u202egnp\x07.png"
HELP = [sys.executable, "-m", "detcam", "--help"]


def test_a_name_that_is_not_utf8_is_explained_and_listed(detcam_command: Command, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    for file in ("a.png", name):
        save_image(tmp_path / "in" / file)
    code, out, err = detcam_command("explain", "in", *CLASSIFIER)
    assert code == 0 and not err.count("Traceback")
    entries = {entry["name"]: entry for entry in read_entries(tmp_path / "explanations")}
    assert set(entries) == {"a.png", name} and Path(entries[name]["path"]).is_file()
    assert rb"caf\udce9.png" in (tmp_path / "explanations" / EXPLANATIONS_FILE).read_bytes()
    assert "caf?.png" in out


def test_names_in_notes_and_errors_have_no_control_characters(detcam_command: Command, tmp_path: Path) -> None:
    save_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / HOSTILE).write_bytes(b"no image")
    _, out, err = detcam_command("explain", "in", *CLASSIFIER)
    assert "skipped" in err
    for arguments in (["explain", HOSTILE + "x", *CLASSIFIER], ["explain", "in", "--model", HOSTILE]):
        code, more, error = detcam_command(*arguments)
        assert code == 2 and ("a?[31m?gnp?" in error or "a\\x1b[31m\\u202egnp" in error)
        out, err = out + more, err + error
    assert all(character.isprintable() or character == "\n" for character in out + err)


def test_an_encoding_without_the_signs_of_a_table_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the output of a redirection on Windows."""
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "\u4f60.png")
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, "cp1252"))
    with pytest.raises(SystemExit) as caught:
        app(["explain", ".", *CLASSIFIER], prog_name="detcam")
    assert caught.value.code == 0 and rb"\u4f60" in content.getvalue()


def test_a_closed_stream_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "a.png")
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as caught:
        app(["explain", "a.png", *CLASSIFIER], prog_name="detcam")
    assert caught.value.code == 0 and len(read_entries(tmp_path / "explanations")) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and devices of POSIX")
def test_a_broken_pipe_and_a_full_disk_are_no_tracebacks() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    broken = subprocess.run(HELP, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (broken.returncode, broken.stderr) == (1, "")
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as disk:
            full = subprocess.run(HELP, stdout=disk, stderr=subprocess.PIPE, text=True, check=False)
        assert full.returncode == 2 and len(full.stderr.splitlines()) == 1 and "No space left" in full.stderr


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", " =1", "\uff1d1", "\ufe621", "\u00a0=1"])
def test_formulas_in_tables_get_an_apostrophe(text: str) -> None:
    assert csv_cell(text) == "'" + text


@pytest.mark.parametrize("value", ["a=1", "", 1.5, -2, "\u4f60"])
def test_other_cells_are_unchanged(value: object) -> None:
    assert csv_cell(value) == value


def test_files_that_one_reads_in_a_terminal_have_no_control_characters_html_or_links() -> None:
    name = "a\x1b[31m\u202e\x9b <b>[x](y) \U0001f469\u200d\U0001f680"
    plain = r"a\x1b[31m\u202e\x9b <b>[x](y) " + "\U0001f469\u200d\U0001f680"  # the emoji stays whole
    markup = r"a\\x1b\[31m\\u202e\\x9b \<b>\[x](y) " + "\U0001f469\u200d\U0001f680"
    assert csv_cell(name) == plain and csv_cell("\t=1") == r"'\t=1"
    remedy = GroupRemedy(0, name, "review boxes", "", name, 0.5, ("a",), {name: 1}, "")
    text = readme(Repair((remedy,), {"review boxes": 1}, Path()))
    assert text.count(markup) == 3 and "<b>[" not in text
    estimate = Estimate(0.5, 0.4, 0.6, 2, 2, 0)
    kinds: tuple[Literal["method", "control"], ...] = ("method", "control")
    rows = tuple(Row(name, kind, {name: estimate}, frozenset(), 1, 0, 1, 1, 0) for kind in kinds)
    result = Benchmark(rows, {name: 1}, (name,), name, "", 1, 1, (), {})
    assert result.to_markdown().count(markup) == 5 and "<b>[" not in result.to_markdown()
    planted = PlantedResults((), (MethodRow("fcos", "context", "development", name, NO_HITS),), ())
    assert f"| {markup} | fcos |" in markdown_tables(planted) and "<b>[" not in markdown_tables(planted)


def test_texts_of_any_bytes_are_written() -> None:
    text = json.dumps(os.fsdecode(b"\xe9"), ensure_ascii=False)
    assert json.loads(utf8_bytes(text)) == "\udce9"
    assert slug("\udce9a/../\x1b[0m") == "a_0m" and slug("..") == "unnamed"


@pytest.mark.parametrize(
    "change",
    [
        {"stem": "../../x"},
        {"stem": ["x"]},
        {"path": {}},
        {"targets": 5},
        {"targets": [{}]},
        {"targets": [5]},
        {"target_layers": None},
        {"smoothing": [1]},
    ],
    ids=str,
)
def test_an_index_of_somebody_else_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    entry = {"path": None, "name": "a", "digest": "0", "model": "m", "method": "odam", "stem": "a.odam"}
    entry |= {"target_layers": ["x"], "smoothing": [], "targets": [{"overlay": "a.png", "heatmap": "b.png"}]}
    path = tmp_path / EXPLANATIONS_FILE
    for images, is_good in (([entry], True), ([{**entry, **change}], False), (5, False)):
        path.write_text(json.dumps({"schema": "detcam/explanations", "version": 2, "images": images}))
        if is_good:
            assert read_index(path) == images
        else:
            with pytest.raises(ValueError, match="move it away"):
                read_index(path)
    path.write_text(json.dumps({"schema": "detcam/explanations", "version": 2, "mages": [entry]}))
    with pytest.raises(ValueError, match="move it away"):
        read_index(path)
