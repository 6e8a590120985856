"""The first screen of the page, curves and confusions, and its accessibility, in a browser."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from detcam.auditing.report import ReportSummary
from detcam.auditing.report.causes import ACTION_TEXTS, top_causes
from tests.auditing.report.browser import Open, ids, until
from tests.auditing.report.made_up import SampleImage, make_images, summary_of, write

# The whole result names every element of the page.
AXE = """axe.run(document).then(results => ({
  passes: results.passes.length,
  violations: results.violations.map(found => [found.impact, found.id, found.nodes[0].html]),
}))"""


@pytest.fixture(scope="module")
def samples() -> list[SampleImage]:
    return make_images(range(8))


@pytest.fixture(scope="module")
def summary(samples: list[SampleImage]) -> ReportSummary:
    return summary_of(samples, settings={"score_threshold": 0.25})


@pytest.fixture(scope="module")
def index(samples: list[SampleImage], summary: ReportSummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("report"), samples, summary)


def test_first_screen_names_the_costliest_causes_with_an_image_and_an_action(
    look: Open, index: Path, summary: ReportSummary
) -> None:
    page = look(index)
    tops = top_causes(summary.causes, {case.id: case for case in summary.cases})
    assert len(tops) == 3
    assert page.locator(".cause .sentence").all_inner_texts() == [top.sentence for top in tops]
    assert page.locator(".cause .action").all_inner_texts() == [ACTION_TEXTS[top.action] for top in tops]
    until(page, "[...document.querySelectorAll('.cause img')].every(node => node.naturalWidth > 300)")
    bottom = page.evaluate("document.querySelector('.top-causes').getBoundingClientRect().bottom")
    assert bottom < 900, "on the first screen"
    page.click(".cause >> nth=1 >> button")
    assert set(ids(page)) == set(tops[1].cause.case_ids)
    assert page.inner_text("#custom") == tops[1].sentence
    page.click("#clear")
    assert page.inner_text("#custom") == "" and len(ids(page)) > len(tops[1].cause)
    page.click(".cause >> nth=0 >> a")
    assert page.evaluate("decodeURIComponent(location.hash)") == f"#case={tops[0].example.id}"


def test_causes_say_for_how_many_errors_they_are_confirmed(
    look: Open, samples: list[SampleImage], tmp_path: Path
) -> None:
    made = summary_of(samples[:2], groups=())
    causes = tuple(
        replace(cause, children=(), confirmed_count=index and len(cause)) for index, cause in enumerate(made.causes)
    )
    page = look(write(tmp_path, samples[:2], replace(made, groups=(), causes=causes)))
    tops = top_causes(causes, {case.id: case for case in made.cases})
    shown = page.locator(".cause .facts").all_inner_texts()
    assert {top.cause.confirmed_count > 0 for top in tops} == {True, False}
    for facts, top in zip(shown, tops, strict=True):
        count, size = top.cause.confirmed_count, len(top.cause)
        assert (f"evidence confirmed for {count} of {size}" in facts) == ("confirmed" in facts) == (count > 0)


def test_threshold_is_marked_in_the_curves(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index)
    line = page.locator("line.here")
    left, right = (page.locator(".plot >> nth=1 >> line.grid >> nth=0").get_attribute(name) for name in ("x1", "x2"))
    position = (float(line.get_attribute("x1")) - float(left)) / (float(right) - float(left))
    assert position == pytest.approx(0.25)
    top = page.locator(".plot >> nth=0 >> line.grid >> nth=1")
    dot = page.locator("circle.here")
    bottom, height = (float(top.get_attribute(name)) for name in ("y1", "y2"))
    assert summary.curves is not None
    recall = (float(dot.get_attribute("cx")) - float(left)) / (float(right) - float(left))
    precision = (bottom - float(dot.get_attribute("cy"))) / (bottom - height)
    assert recall == pytest.approx(0.75) and precision == pytest.approx(0.475)
    assert "At the score threshold 0.25: precision 0.47, recall 0.75, F1 0.58." in page.inner_text("#charts")


def test_cells_of_the_confusions_filter_the_list(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index)
    page.click(".confusion button[title='background \u2192 boat']")
    expected = {case.id for case in summary.cases if case.type == "background" and case.score >= 0.25}
    assert set(ids(page)) == expected
    shown = page.inner_text(".confusion button[title='background \u2192 boat']")
    assert int(shown) == len(expected)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_finds_no_violation(look: Open, index: Path, width: int, dark: bool) -> None:
    axe = pytest.importorskip("axe_core_python", reason="axe-core is not installed (pip install axe-core-python)")
    script = resources.files(axe).joinpath("axe.min.js").read_text("utf-8")
    page = look(index, width=width, dark=dark)
    page.evaluate(script)

    def violations() -> list[Any]:
        results: dict[str, Any] = page.evaluate(AXE)
        assert results["passes"] > 20
        return list(results["violations"])

    page.click(".fold >> nth=0")
    assert violations() == []
    page.click(".case-card >> nth=0")
    page.wait_for_selector(".trials")
    assert violations() == []
    page.keyboard.press("?")
    assert violations() == []


def test_keyboard_reaches_every_control(look: Open, samples: list[SampleImage], tmp_path: Path) -> None:
    few = summary_of(samples[:1], groups=())
    page = look(write(tmp_path, samples[:1], replace(few, groups=())))
    controls = """() => [...document.querySelectorAll('a[href], button, select, input, summary, [tabindex="0"]')]
      .filter(node => node.checkVisibility() && !node.disabled).length"""
    expected = page.evaluate(controls)
    reached = set()
    page.evaluate("document.querySelectorAll('*').forEach((node, index) => { node.number = index; })")
    for _ in range(expected + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.number"))
    assert len(reached - {page.evaluate("document.body.number")}) >= expected


def test_reduced_motion_has_no_transitions(look: Open, index: Path) -> None:
    page = look(index)
    durations = "[...document.querySelectorAll('*')].map(node => getComputedStyle(node).transitionDuration)"
    assert set(page.evaluate(durations)) != {"0s"}
    page.emulate_media(reduced_motion="reduce")
    assert set(page.evaluate(durations)) == {"0s"}
