"""The HTML file: self-contained, without external resources, and safe against names with markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detcam.auditing.report import page_data
from detcam.auditing.report.images import heat_colors
from detcam.auditing.report.page_data import script_json
from detcam.visualize.overlay import overlay_heatmap
from tests.auditing.report.made_up import HOSTILE, make_images, read_data, summary_of, write


class Reader(HTMLParser):
    """Collects elements with their attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.texts:
            self.texts[self.inside].append(data)


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain"), make_images(range(3)))


@pytest.fixture(scope="module")
def plain(plain_page: Path) -> str:
    return plain_page.read_text("utf-8")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = make_images(range(3), hostile=True, names={1: HOSTILE, 2: "{{script}} <!-- \u2028"})
    summary = summary_of(samples, model=HOSTILE, annotations=HOSTILE, settings={HOSTILE: HOSTILE})
    return write(tmp_path_factory.mktemp("hostile"), samples, summary)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def test_names_change_only_texts(plain: str, hostile_page: Path) -> None:
    first, second = Reader(plain), Reader(hostile_page.read_text("utf-8"))
    assert first.elements == second.elements
    assert first.texts["style"] == second.texts["style"] and first.texts["script"][1:] == second.texts["script"][1:]
    assert len(second.texts["script"]) == 2
    assert json.loads(second.texts["script"][0])["model"] == HOSTILE
    assert second.texts["title"] == [f"Audit of {HOSTILE}"]


def test_data_files_hold_names_as_json_without_markup(hostile_page: Path) -> None:
    data = read_data(hostile_page.parent)
    names = set(texts(data))
    assert {HOSTILE, "{{script}} <!-- \u2028", f"{HOSTILE}/0.png"} <= names
    for path in (hostile_page.parent / "data").iterdir():
        text = path.read_text("ascii")
        assert not set("<>&") & set(text) and text.count("\n") == 1


def test_script_json_has_no_markup_characters() -> None:
    value = {"a": HOSTILE, "b": "<!--<script>\u2028\u2029&amp;", "\udcff": ["ü", 1.5, None]}
    text = script_json(value)
    assert json.loads(text) == value
    assert text.isascii() and not set("<>&") & set(text)


def test_page_has_no_external_resources(plain: str) -> None:
    reader = Reader(plain)
    for tag, attributes in reader.elements:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value in ("#", "#cases", "data:,"), (tag, value)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    script, style = reader.texts["script"][1], reader.texts["style"][0]
    addresses = set(re.findall(r"https?://[^\"' )]+", script + style))
    assert addresses == {"http://www.w3.org/2000/svg"}
    for word in ("fetch(", "XMLHttpRequest", "import(", "@import", "url(http", "innerHTML", "eval("):
        assert word not in script + style


def test_content_security_policy_allows_only_own_script_and_style(plain: str) -> None:
    reader = Reader(plain)
    policy = next(a["content"] for _, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none';") and "unsafe" not in policy
    for kind, text in (("script", reader.texts["script"][1]), ("style", reader.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        extra = " 'strict-dynamic'" if kind == "script" else ""
        assert f"{kind}-src 'sha256-{digest}'{extra};" in policy


def test_heat_colors_match_the_overlays() -> None:
    heat = np.rint(np.linspace(0, 255, 33))[None] / 255
    black = np.zeros((1, 33, 3), np.uint8)
    shown = overlay_heatmap(black, heat, alpha=1.0)[0]
    expected = heat_colors() * heat[0][:, None]
    assert np.abs(shown - expected).max() <= 1


def test_details_contain_the_fields_of_explained_cases_without_empty_ones(tmp_path: Path) -> None:
    samples = make_images(range(3))
    summary = summary_of(samples)
    data = read_data(write(tmp_path, samples).parent)
    details = data["details-0"]["cases"]
    explained = {case.id: case for case in summary.cases if case.method}
    assert details.keys() == explained.keys()
    audit = {entry["id"]: entry for entry in json.loads((tmp_path / "audit.json").read_text("utf-8"))["cases"]}
    for case_id, entry in details.items():
        whole = explained[case_id].to_json()
        assert {key: value for key, value in entry.items() if key not in ("files", "outlines")} == {
            key: value for key, value in whole.items() if value not in (None, "", [], ())
        }
        assert set(entry["outlines"]) == {"evidence", "needed", "control"}
        assert entry["files"] == {kind: path for kind, path in audit[case_id]["files"].items() if path}
        boxes = [item["box_xyxy"] for item in data["details-0"]["objects"][entry["files"]["image"]]]
        truths = next(image.truths for image in samples if image.truths.image_id == entry["image_id"])
        assert np.allclose(boxes, truths.boxes_xyxy, rtol=1e-6)


def decoded(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a file of rows."""
    for row in range(len(table["columns"]["id"])):
        values = {name: column[row] for name, column in table["columns"].items()}
        for name, texts_of in table["texts"].items():
            values[name] = texts_of[values[name]]
        values["image"] = table["images"][values["image"]]
        yield values | {name: column.get(str(row)) for name, column in table["sparse"].items()}


def test_rows_contain_every_case_the_unlisted_ones_in_files_of_their_own(tmp_path: Path) -> None:
    samples = make_images(range(6))
    summary = summary_of(samples, settings={"score_threshold": 0.6})
    index = write(tmp_path, samples, summary)
    start = json.loads(Reader(index.read_text("utf-8")).texts["script"][0])
    data = read_data(index.parent)
    files = [list(decoded(data[f"rows-{number}"])) for number in range(len(start["rows"]))]
    assert [len(rows) for rows in files] == start["rows"] and (len(files), start["start"]) == (2, 1)
    assert start["listed"] == len(files[0])
    cases = {case.id: case for case in summary.cases}
    assert sorted(row["id"] for rows in files for row in rows) == sorted(cases)
    is_listed = {case.id: bool(case.method) or case.type == "missed" or case.score >= 0.6 for case in cases.values()}
    assert {row["id"] for row in files[0]} == {case_id for case_id, listed in is_listed.items() if listed}
    order = [(not cases[row["id"]].method, -cases[row["id"]].score) for row in files[0]]
    assert order == sorted(order)
    for row in (row for rows in files for row in rows):
        case = cases[row["id"]]
        assert (row["type"], row["verdict"], row["class"], row["group"]) == (
            case.type, case.verdict, [case.label, case.name], case.group,
        )  # fmt: skip
        assert row["score"] == pytest.approx(case.score) and row["delta_ap"] == pytest.approx(case.delta_ap)
        assert row["box_xyxy"] == pytest.approx(case.box_xyxy, abs=0.01)
        assert row["image"]["file_name"] == case.file_name and row["thumbnail"] == f"cases/{case.id}.thumbnail.jpg"
        assert (row["detail"] is not None) == bool(case.method)
        truth = case.ground_truth
        if truth is not None:
            known, is_known, iou, annotation_id, box = row["ground_truth"]
            assert data["rows-0" if is_listed[case.id] else "rows-1"]["texts"]["class"][known] == [
                truth.label,
                truth.name,
            ]
            assert (is_known, iou, annotation_id) == (1, pytest.approx(truth.iou), truth.annotation_id)
            assert box == pytest.approx(truth.box_xyxy, abs=0.01)


def test_page_and_data_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of any length and any number of cases leave the page small and its files of a bounded size."""
    monkeypatch.setattr(page_data, "MAX_ROWS", 50)
    monkeypatch.setattr(page_data, "MAX_LISTED", 120)
    monkeypatch.setattr(page_data, "MAX_DETAIL_CHARACTERS", 20_000)
    monkeypatch.setattr(page_data, "MAX_OBJECTS", 2)
    samples = make_images(range(2))
    few = summary_of(samples, settings={"score_threshold": 0.3})
    cases = [
        replace(few.cases[at % len(few.cases)], id=f"case-{at}", name="n" * 10_000, file_name=f"{'f' * 10_000}{at}")
        for at in range(400)
    ]
    summary = replace(few, cases=tuple(cases), groups=(), causes=(), model="m" * 10**6, annotations="a" * 10**6)
    index = write(tmp_path, samples, summary)
    assert index.stat().st_size < 200_000
    start = json.loads(Reader(index.read_text("utf-8")).texts["script"][0])
    assert max(start["rows"]) == 50 and sum(start["rows"]) == 400 and start["start"] == 3
    data = read_data(index.parent)
    assert len([name for name in data if name.startswith("details-")]) > 5
    longest = max(len(json.dumps(entry)) for name, each in data.items() if "details" in name for entry in each["cases"])
    for name, content in data.items():
        limit = 20_000 + 2 * longest + 12_000 if "details" in name else 100_000
        assert len(json.dumps(content)) < limit, name
    assert max(map(len, texts(data))) <= page_data.MAX_TEXT + 1
    assert all(len(objects) <= 2 for name in data if "details" in name for objects in data[name]["objects"].values())


def test_data_files_of_earlier_audits_are_removed_after_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = make_images(range(2))
    index = write(tmp_path, samples, summary_of(samples, seconds=1.0))
    before = {path.name for path in (tmp_path / "data").iterdir()}
    (tmp_path / "data" / "notes.js").write_text("mine")

    def fail(*_: object) -> bytes:
        raise OSError("disk is full")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="full"):
        broken.setattr("detcam.auditing.report.writer.render_page", fail)
        write(tmp_path, samples, summary_of(samples, seconds=2.0))
    assert before < {path.name for path in (tmp_path / "data").iterdir()}, "the earlier page still works"
    write(tmp_path, samples, summary_of(samples, seconds=2.0))
    run = json.loads(Reader(index.read_text("utf-8")).texts["script"][0])["run"]
    after = {path.name for path in (tmp_path / "data").iterdir()} - {"notes.js"}
    assert len(after) == 3 and all(name.endswith(f"-{run}.js") for name in after)
    assert (tmp_path / "data" / "notes.js").exists() and not after & before
