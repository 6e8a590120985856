"""Appearance and accessibility of the page: contrast, dark mode, narrow windows, thousands of cases."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detcam.auditing.case import CasePart, EvidenceLocation, GroundTruthObject
from tests.auditing.report.browser import Open, overflow, until
from tests.auditing.report.made_up import HOSTILE, make_images, summary_of, write


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("report"), make_images(range(8)))


CONTRAST = """() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(c => linear(c / 255))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = node => { for (; node; node = node.parentElement) {
    const [r, g, b, a = 1] = numbers(getComputedStyle(node).backgroundColor);
    if (a > 0) return [r, g, b]; } return [255, 255, 255]; };
  const worst = {};
  for (const node of document.querySelectorAll('body *')) {
    const hasText = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.checkVisibility() || node.closest('[aria-disabled], .off, script, option')) continue;
    const [high, low] = [light(numbers(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => b - a);
    const name = node.tagName + '.' + node.className;
    worst[name] = Math.min(worst[name] ?? 99, (high + 0.05) / (low + 0.05));
  }
  return worst;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_contrast(look: Open, index: Path, dark: bool) -> None:
    page = look(index, dark=dark)
    for _ in range(2):
        contrast = page.evaluate(CONTRAST)
        assert len(contrast) > 10
        assert {name: ratio for name, ratio in contrast.items() if ratio < 4.5} == {}
        page.evaluate("location.hash = document.querySelector('.case-card').hash")
        page.wait_for_selector("#case:not([hidden])")


def test_dark_mode_follows_the_system_and_the_button(look: Open, index: Path) -> None:
    def ground(page: Any) -> int:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(color.removeprefix("rgb(").split(",")[0])

    assert ground(look(index)) > 200
    page = look(index, dark=True)
    assert ground(page) < 60 and page.inner_text("#theme") == "Light"
    page.click("#theme")
    assert ground(page) > 200 and page.inner_text("#theme") == "Dark"
    page.reload()
    assert ground(page) > 200, "the choice is remembered"
    page.emulate_media(color_scheme="light")
    page.click("#theme")
    assert ground(page) < 60


@pytest.mark.parametrize("width", [320, 375, 600, 900])
def test_narrow_windows_do_not_scroll_horizontally(look: Open, index: Path, width: int) -> None:
    page = look(index, width=width, height=780)
    assert overflow(page) == 0
    table = page.locator("#causes .scroll")
    assert table.evaluate("node => node.scrollWidth - node.clientWidth") == 0, "no column is cut"
    page.click(".case-card:has-text('confirmed') >> nth=0")
    page.wait_for_selector(".trials")
    assert overflow(page) == 0
    image = page.locator(".viewer-image").bounding_box()
    assert image["width"] > 0.5 * width and image["x"] >= 0


def test_long_names_do_not_scroll_horizontally(look: Open, tmp_path: Path) -> None:
    samples = make_images(range(2), names={1: "Donaudampfschifffahrtsgesellschaft" * 4, 2: HOSTILE}, hostile=True)
    page = look(write(tmp_path, samples), width=375)
    assert overflow(page) == 0
    page.click(".case-card >> nth=0")
    page.wait_for_selector("#case:not([hidden])")
    assert overflow(page) == 0


@pytest.mark.parametrize("name", ["refrigerator", "Plasmodium_falciparum_gametocyte"])
def test_parts_on_an_object_with_a_long_name_fit_a_phone(look: Open, tmp_path: Path, name: str) -> None:
    samples = make_images(range(1))
    case = next(case for case in summary_of(samples).cases if case.type == "background" and case.parts)
    truth = GroundTruthObject((1.0, 1.0, 9.0, 9.0), 2, name, 0.0, 1)
    locations: tuple[EvidenceLocation, ...] = ("ground truth", "predicted box", "same class")
    parts = tuple(CasePart(0.13, location, 0.45, needed=False) for location in locations)
    case = replace(case, group=None, ground_truth=truth, parts=parts)
    page = look(write(tmp_path, samples, summary_of(samples, cases=(case,), groups=())), f"#case={case.id}", width=320)
    page.wait_for_selector("#case .parts")
    assert overflow(page) == 0 and f"nearby {name}" in page.inner_text("#case .parts")
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")


def test_controls_and_images_have_accessible_names(look: Open, index: Path) -> None:
    page = look(index)
    nameless = """() => [...document.querySelectorAll('button, a[href], select, input, [role], dialog')]
      .filter(node => !(node.getAttribute('aria-label') || node.getAttribute('aria-labelledby')
        || node.textContent.trim() || node.title
        || (node.labels && [...node.labels].some(label => label.textContent.trim()))))
      .map(node => node.outerHTML.slice(0, 120))"""
    doubled = (
        "() => [...document.querySelectorAll('[id]')].map(o => o.id).filter((id, at, all) => all.indexOf(id) !== at)"
    )
    for _ in range(2):
        assert page.evaluate(nameless) == []
        assert page.evaluate(doubled) == []
        assert page.locator("main:not([hidden])").count() == 1 and page.locator("main:not([hidden]) h1").count() == 1
        assert page.locator("img:not([alt])").count() == 0
        page.evaluate("location.hash = document.querySelector('.case-card').hash")
        page.wait_for_selector("#case:not([hidden])")


def test_focus_is_visible(look: Open, index: Path) -> None:
    page = look(index)
    for _ in range(6):
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))"
        )
        assert style == ["solid", 2]


def test_thousands_of_cases_are_rendered_lazily(look: Open, tmp_path: Path) -> None:
    samples = make_images(range(2))
    few = summary_of(samples).cases
    many = tuple(
        replace(
            few[at % len(few)],
            id=f"case-{at}",
            score=1 - at / 5000,
            method="ReachCAM",
            file_name=f"{at}.png",
            group=None,
        )
        for at in range(5000)
    )
    page = look(write(tmp_path, samples, summary_of(samples, cases=many, groups=())))
    assert page.locator(".case-card").count() < 300
    before = page.locator(".case-card").count()
    page.evaluate("document.getElementById('end').scrollIntoView()")
    until(page, f"document.querySelectorAll('.case-card').length > {before}")
    assert page.locator(".case-card").count() < 600
    page.fill("#by-text", "4999")
    assert page.locator(".case-card").count() == 1
    page.click(".case-card")
    page.wait_for_selector("#case:not([hidden])")
    page.keyboard.press("Escape")
    page.click("#clear")
    page.evaluate("location.hash = '#case=case-1234'")
    page.wait_for_selector("#case:not([hidden])")
    assert page.inner_text(".steps .of").replace("\u202f", "") == "1235 of 5000"
    page.keyboard.press("Escape")
    until(page, "document.activeElement.dataset.id === 'case-1234'")
    box = page.locator("[data-id=case-1234]").bounding_box()
    assert -50 < box["y"] < 900


def test_only_cards_near_the_window_exist(look: Open, tmp_path: Path) -> None:
    samples = make_images(range(2))
    few = summary_of(samples).cases
    many = tuple(replace(few[at % len(few)], id=f"case-{at}", score=1 - at / 1000, group=None) for at in range(1000))
    page = look(write(tmp_path, samples, summary_of(samples, cases=many, groups=())))
    page.select_option("#by-order", "score")
    positions = "[...document.querySelectorAll('#list li')].map(node => Number(node.getAttribute('aria-posinset')))"
    seen: set[int] = set()
    for _ in range(60):
        drawn = page.evaluate(positions)
        assert drawn == list(range(drawn[0], drawn[0] + len(drawn))) and len(drawn) <= 240
        seen |= set(drawn)
        if drawn[-1] == 1000:
            break
        page.evaluate("document.getElementById('end').scrollIntoView()")
        until(
            page, f"Number(document.querySelector('#list li:last-child').getAttribute('aria-posinset')) > {drawn[-1]}"
        )
    assert seen == set(range(1, 1001)) and drawn[0] > 700
    assert page.locator("#list li").last.get_attribute("aria-setsize") == "1000"
    for _ in range(60):
        if page.evaluate(positions)[0] == 1:
            break
        page.evaluate("document.getElementById('start').scrollIntoView()")
        page.wait_for_timeout(80)
    assert page.evaluate(positions)[:3] == [1, 2, 3]
    assert page.locator(".case-card").first.get_attribute("data-id") == "case-0"


def test_an_audit_without_errors(look: Open, tmp_path: Path) -> None:
    samples = make_images(range(1))
    zero = dict.fromkeys(summary_of(samples).error_counts, 0)
    empty = summary_of(
        samples, cases=(), groups=(), false_positive_count=0, false_positive_delta_ap=0.0, error_counts=zero,
        classes=(), delta_ap_by_type=dict.fromkeys(zero, 0.0), average_precision=1.0,
    )  # fmt: skip
    page = look(write(tmp_path, [], empty))
    assert page.inner_text("h1") == "No false positives." and page.inner_text("#count") == "No errors."
    assert not page.locator("#groups").is_visible()


def test_controls_that_the_effect_does_not_compare_are_counted(look: Open, tmp_path: Path) -> None:
    samples = make_images(range(1))
    case = next(case for case in summary_of(samples).cases if case.trials)
    number = sum("control" in trial.intervention for trial in case.trials)
    cases = [replace(case, id=f"case-{each}", group=None, compared_controls=each) for each in (number - 1, number)]
    index = write(tmp_path, samples, summary_of(samples, cases=tuple(cases), groups=()))
    for each in cases:
        page = look(index, f"#case={each.id}", width=320)
        page.wait_for_selector("#case .trials")
        is_said = f"compares {number - 1} of the {number} controls" in page.inner_text("#case")
        assert is_said == (each.id == f"case-{number - 1}")
        assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")


def test_undefined_costs_say_why(look: Open, tmp_path: Path) -> None:
    samples = make_images(range(1))
    cases = [replace(case, delta_ap=math.nan, group=None) for case in summary_of(samples).cases if case.method]
    chosen = {case.type == "missed": case for case in cases}
    index = write(tmp_path, samples, summary_of(samples, cases=tuple(chosen.values()), groups=()))
    for is_missed, case in chosen.items():
        text = look(index, f"#case={case.id}").inner_text("#case")
        assert ("undefined, there is no other object" if is_missed else "undefined, the class has no objects") in text
    assert set(chosen) == {True, False}


def test_images_out_of_view_keep_no_pixels(look: Open, tmp_path: Path) -> None:
    samples = make_images(range(2))
    case = next(case for case in summary_of(samples).cases if case.method)
    many = (case, *(replace(case, id=f"case-{at}", group=None, score=1 - at / 1000) for at in range(400)))
    (tmp_path / "cases").mkdir()
    for each in many[1:]:
        Image.new("RGB", (8, 6)).save(tmp_path / "cases" / f"{each.id}.thumbnail.jpg")
    page = look(write(tmp_path, samples, summary_of(samples, cases=many, groups=())))
    drawn = "[...document.querySelectorAll('.case-card canvas')].filter(node => node.width).length"
    for _ in range(6):
        page.evaluate("document.getElementById('end').scrollIntoView()")
        page.wait_for_timeout(60)
    until(page, f"{drawn} > 5")
    assert page.evaluate(drawn) < 100 < page.locator(".case-card").count()
    far = "Math.abs(node.getBoundingClientRect().top - innerHeight / 2) > innerHeight / 2 + 700"
    until(page, drawn.replace("=> node.width", f"=> node.width && {far}") + " === 0")
    assert page.locator("#list img").count() == 0
    page.evaluate(f"location.hash = '#case={case.id}'")
    page.wait_for_selector("#case:not([hidden])")
    canvases = "[...document.querySelectorAll('.viewer-frame canvas')].map(node => node.width)"
    until(page, f"String({canvases}) === '256,256'")
    page.evaluate("globalThis.before = document.querySelectorAll('.viewer-frame canvas')")
    page.keyboard.press("Escape")
    until(page, "[...before].every(node => node.width === 0)")
