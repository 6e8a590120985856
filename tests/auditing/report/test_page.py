"""The HTML file: self-contained, without external resources, and safe against names with markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detcam.auditing.report.page import heat_colors, script_json
from detcam.visualize.overlay import overlay_heatmap
from tests.auditing.report.made_up import HOSTILE, make_images, summary_of, write


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
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("plain"), make_images(range(3))).read_text("utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    samples = make_images(range(3), hostile=True, names={1: HOSTILE, 2: "{{script}} <!-- \u2028"})
    summary = summary_of(samples, model=HOSTILE, annotations=HOSTILE, settings={HOSTILE: HOSTILE})
    return write(tmp_path_factory.mktemp("hostile"), samples, summary).read_text("utf-8")


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


def test_names_change_only_texts(plain: str, hostile: str) -> None:
    first, second = Reader(plain), Reader(hostile)
    assert first.elements == second.elements
    assert first.texts["style"] == second.texts["style"] and first.texts["script"][1:] == second.texts["script"][1:]
    assert len(second.texts["script"]) == 2
    data = json.loads(second.texts["script"][0])
    names = set(texts(data))
    assert HOSTILE in names and "{{script}} <!-- \u2028" in names
    assert f"{HOSTILE}/0.png" in names
    assert second.texts["title"] == [f"Audit of {HOSTILE}"]


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
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_heat_colors_match_the_overlays() -> None:
    heat = np.rint(np.linspace(0, 255, 33))[None] / 255
    black = np.zeros((1, 33, 3), np.uint8)
    shown = overlay_heatmap(black, heat, alpha=1.0)[0]
    expected = np.array(heat_colors()) * heat[0][:, None]
    assert np.abs(shown - expected).max() <= 1


def test_page_data_contains_every_case_without_empty_fields(tmp_path: Path) -> None:
    samples = make_images(range(3))
    summary = summary_of(samples)
    data = json.loads(Reader(write(tmp_path, samples).read_text("utf-8")).texts["script"][0])
    for entry, case in zip(data["cases"], summary.cases, strict=True):
        whole = case.to_json()
        assert {key: value for key, value in entry.items() if key not in ("files", "outlines")} == {
            key: value for key, value in whole.items() if value not in (None, "", [], ())
        }
        assert ("outlines" in entry) == bool(case.method)
        assert entry["files"]["image"].startswith("images/")
