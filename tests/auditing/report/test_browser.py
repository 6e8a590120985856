"""The page in a browser, opened from disk."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detcam.auditing.case import AuditCase
from detcam.auditing.errors import ERROR_TYPES
from detcam.auditing.report import ReportSummary
from detcam.visualize.overlay import overlay_heatmap
from tests.auditing.report.browser import Open, ids, shown_layers, until
from tests.auditing.report.made_up import HOSTILE, SampleImage, make_images, summary_of, write


@pytest.fixture(scope="module")
def samples() -> list[SampleImage]:
    return make_images(range(16))


@pytest.fixture(scope="module")
def summary(samples: list[SampleImage]) -> ReportSummary:
    return summary_of(samples)


@pytest.fixture(scope="module")
def index(samples: list[SampleImage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("report"), samples)


def explained(summary: ReportSummary) -> AuditCase:
    return next(
        case for case in summary.cases if case.method and case.ground_truth is not None and case.is_false_positive
    )


def test_overview_shows_the_results(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index)
    assert page.inner_text("h1") == summary.headline()[0]
    assert page.inner_text("#headline .lead") == " ".join(summary.headline()[1:])
    figures = dict(
        zip(page.locator(".figures dt").all_inner_texts(), page.locator(".figures dd").all_inner_texts(), strict=True)
    )
    assert figures["AP at IoU 0.50"] == "0.712" and figures["confirmed"] == str(
        sum(case.confirmed for case in summary.cases)
    )
    rows = page.locator("#charts .card:first-child tbody tr")
    lost = {row.split()[0]: row.split()[1:] for row in rows.all_inner_texts()}
    assert lost == {
        kind: [str(summary.error_counts[kind]), f"{summary.delta_ap_by_type[kind]:.3f}"]
        for kind in summary.error_counts
    }
    most = max(summary.delta_ap_by_type.values())
    widths = rows.locator(".filled").evaluate_all(
        "all => all.map(node => node.getBoundingClientRect().width / node.parentNode.getBoundingClientRect().width)"
    )
    assert widths == pytest.approx([value / most for value in summary.delta_ap_by_type.values()], abs=0.01)
    sentences = page.locator(".group .sentence").all_inner_texts()
    assert sentences == [group.sentence for group in summary.groups][: len(sentences)] and sentences
    assert "Settings" in page.inner_text("#about") and "1 data issue" in page.inner_text("#about")
    page.locator("#groups").scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('.group img')].slice(0, 6).every(node => node.naturalWidth > 300)")


def test_causes_fold_out_and_filter_the_list(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index)
    nodes = [(depth, cause) for root in summary.causes for depth, cause in root.walk()]
    roots = [cause.name for depth, cause in nodes if depth == 0]
    rows = page.locator("#causes tbody tr")
    visible = page.locator("#causes tbody tr:visible")
    assert rows.count() == len(nodes) and visible.count() == len(roots) > 1
    first, children = summary.causes[0], summary.causes[0].children
    cells = visible.first.locator("th, td").all_inner_texts()
    assert cells[0].endswith(first.name) and cells[1:3] == [str(len(first)), str(first.confirmed_count)]
    assert cells[4] == f"{first.estimated_delta_ap:.3f}"
    estimates = [(f"{cause.estimated_count:.0f}", *cause.estimated_interval) for _, cause in nodes]
    assert page.locator("#causes tbody tr td:nth-child(4)").all_text_contents() == [
        number if f"{low:.0f}" == f"{high:.0f}" else f"{number} ({low:.0f}\u2013{high:.0f})"
        for number, low, high in estimates
    ], "an interval without width is not shown"
    page.click("#causes tbody tr:first-child .fold")
    assert visible.count() == len(roots) + len(children) > len(roots)
    page.click("#causes tbody tr:first-child .fold")
    assert visible.count() == len(roots)
    page.click("#causes tbody tr:first-child .row-name")
    assert sorted(ids(page)) == sorted(first.case_ids)
    assert page.locator(".shares li").all_inner_texts() == [share.sentence for share in summary.inventory]


def test_stacked_bars_are_proportional_to_the_counts(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index)
    boat = next(item for item in summary.classes if item.name == "boat")
    bar = page.locator("#charts .card:nth-child(2) tbody tr", has_text="boat").locator(".filled")
    pieces = bar.locator(".piece").evaluate_all(
        "all => all.map(node => [node.className.split(' ')[1], node.getBoundingClientRect().width])"
    )
    total = sum(boat.errors.values())
    width = sum(width for _, width in pieces)
    assert {kind: width_ / width for kind, width_ in pieces} == pytest.approx(
        {kind: count / total for kind, count in boat.errors.items() if count}, abs=0.01
    )


def test_filters_and_orders(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index)
    cases = summary.cases

    def expect(wanted: list[str]) -> None:
        assert sorted(ids(page)) == sorted(wanted)
        shown = page.inner_text("#count").split()
        assert shown[0] == str(len(wanted))
        page.click("#clear")

    assert len(ids(page)) == len(cases)
    for name, value in (("type", "background"), ("verdict", "strong"), ("evidence_location", "ground truth")):
        page.select_option(f"#by-{name}", value)
        expect([case.id for case in cases if getattr(case, name) == value])
    page.select_option("#by-evidence_location", "none")
    expect([case.id for case in cases if case.evidence_location is None])
    page.select_option("#by-label", "2")
    page.select_option("#by-type", "duplicate")
    expect([case.id for case in cases if case.label == 2 and case.type == "duplicate"])
    page.select_option("#by-group", "0")
    expect([case.id for case in cases if case.group == 0])
    page.fill("#by-low", "0.3")
    page.fill("#by-high", "0.6")
    expect([case.id for case in cases if 0.3 <= case.score <= 0.6])
    page.fill("#by-text", "sCENE 00")
    expect([case.id for case in cases if "Scene 00" in case.file_name])
    page.select_option("#by-order", "score")
    assert ids(page) == [case.id for case in sorted(cases, key=lambda case: -case.score)]
    page.select_option("#by-order", "delta AP")
    assert ids(page) == [case.id for case in sorted(cases, key=lambda case: (-case.delta_ap, -case.score))]
    page.select_option("#by-order", "file name")
    names = [next(c.file_name for c in cases if c.id == each) for each in ids(page)]
    assert names == sorted(names)
    page.select_option("#by-type", "duplicate")
    page.fill("#by-low", "0.2")
    filtered = ids(page)
    assert str(page.evaluate("location.hash")).startswith("#cases?type=duplicate&")
    page.reload()
    until(page, f"document.querySelectorAll('#list .case-card').length === {len(filtered)}")
    assert ids(page) == filtered and page.input_value("#by-order") == "file name"
    page.click(".case-card >> nth=0")
    page.go_back()
    page.wait_for_selector("#overview:not([hidden])")
    assert ids(page) == filtered
    page.click("#clear")
    assert len(ids(page)) == len(cases) and page.evaluate("location.hash") == "#cases?order=file+name"
    page.evaluate("location.hash = '#cases?high=0&low=x&order=toString'")
    until(page, "document.getElementById('count').textContent === 'No case matches these filters.'")
    values = [page.input_value(f"#by-{name}") for name in ("low", "high", "order")]
    assert values == ["0", "0", "explained first"], "the maximum 0 is kept; what is no number or order is not"
    page.click("#clear")
    page.fill("#by-text", "nothing like it")
    assert page.inner_text("#count") == "No case matches these filters." and not ids(page)


@pytest.mark.parametrize("count", [2, 16])
def test_missing_values_are_not_shown(look: Open, tmp_path: Path, count: int) -> None:
    """The text contains no "false", "null" or "undefined"."""
    samples = make_images(range(count))
    page = look(write(tmp_path, samples))
    whole = page.inner_text("body")
    case = explained(summary_of(samples))
    for text in (whole, look(tmp_path / "index.html", f"#case={case.id}").inner_text("#case")):
        lines = {line.strip() for line in text.splitlines()}
        assert not lines & {"false", "true", "null", "undefined", "NaN"}


def test_charts_and_groups_filter_the_list(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index)
    page.click("#charts button:has-text('strong') >> nth=0")
    assert set(ids(page)) == {case.id for case in summary.cases if case.verdict == "strong"}
    first = summary.groups[0]
    page.click(".group >> nth=0 >> button")
    assert set(ids(page)) == set(first.case_ids)
    page.click(".group >> nth=0 >> a >> nth=1")
    assert page.evaluate("decodeURIComponent(location.hash)") == f"#case={first.case_ids[1]}"


def test_case_view_shows_all_fields(look: Open, index: Path, summary: ReportSummary) -> None:
    case = explained(summary)
    page = look(index, f"#case={case.id}")
    text = page.inner_text("#case")
    assert case.ground_truth is not None and case.evidence_shares is not None
    for part in (
        case.sentence,
        case.question,
        case.reason,
        case.file_name,
        case.id,
        f"{case.score:.3f}",
        f"{case.ground_truth.iou:.3f}",
    ):
        assert part in text
    rows = [row.split("\t") for row in page.locator(".trials tbody tr").all_inner_texts()][1:]
    assert [(r[0].strip(), r[1].strip(), r[2].strip(), r[4].strip()) for r in rows] == [
        (trial.intervention, trial.fill, f"{trial.score:.3f}", trial.outcome) for trial in case.trials
    ]
    pieces = page.locator(".findings section:has-text('Location of the ') .piece")
    widths = pieces.evaluate_all("all => all.map(node => node.getBoundingClientRect().width)")
    assert [w / sum(widths) for w in widths] == pytest.approx(
        [
            case.evidence_shares[location]
            for location in ("predicted box", "ground truth", "same class", "ring", "scene")
        ],
        abs=0.01,
    )
    line = page.locator("[data-layer=box] .predicted")
    left, top, right, bottom = case.box_xyxy
    placed = [float(line.get_attribute(name)) for name in ("x", "y", "width", "height")]
    assert placed == pytest.approx([left, top, right - left, bottom - top], rel=1e-5)


def test_all_ground_truth_boxes_are_drawn(
    look: Open, index: Path, samples: list[SampleImage], summary: ReportSummary
) -> None:
    case = explained(summary)
    page = look(index, f"#case={case.id}")
    image = next(image for image in samples if image.truths.image_id == case.image_id)
    assert page.locator("[data-layer=truths] rect.line").count() == len(image.truths)
    assert page.locator("[data-layer=truths] rect.concerned").count() == 1


def test_case_view_shows_the_size_of_the_verdict_and_the_parts(look: Open, index: Path, summary: ReportSummary) -> None:
    for verdict, location in (("strong", "confirmed evidence"), ("not confirmed", "tested region")):
        case = next(case for case in summary.cases if case.verdict == verdict and case.is_false_positive)
        page = look(index, f"#case={case.id}")
        words = page.inner_text(".findings section:has-text('Verdict')").split("\n")
        assert ("about 1\u202f% of wrong regions get this grade" in words) == (verdict == "strong")
        assert f"{case.effect:.2f}" in words and case.proposal in words
        assert page.locator(f".findings h2:text-is('Location of the {location}')").count() == 1
        rows = [row.split("\t") for row in page.locator(".parts tbody tr").all_inner_texts()]
        score = max(trial.score for trial in case.trials if trial.intervention == "without evidence")
        assert [[cell.strip() for cell in row[3:]] for row in rows] == [
            [f"{score:.3f}", "ends"], ["0.200", "ends"], ["0.450", "ends only together"],
        ]  # fmt: skip
        assert [row[1].strip() for row in rows[1:]] == ["1\u202f%", "0.3\u202f%"]


def test_objects_of_unknown_classes_are_named(look: Open, samples: list[SampleImage], tmp_path: Path) -> None:
    cases = summary_of(samples).cases
    case = next(case for case in cases if case.verdict == "strong" and case.ground_truth is not None)
    truth = replace(case.ground_truth, name="kite", is_known=False)
    changed = replace(case, ground_truth=truth, evidence_object="gull")
    cases = tuple(changed if each is case else each for each in cases)
    page = look(write(tmp_path, samples, summary_of(samples, cases=cases)), f"#case={case.id}")
    rows = dict(zip(*(page.locator(f".numbers {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert rows["ground truth"] == "kite (a class that the model does not know)"
    assert rows["confirmed evidence lies on"] == "another object: gull"


def test_other_needed_parts_are_dashed_and_without_the_evidence(
    look: Open, index: Path, summary: ReportSummary
) -> None:
    page = look(index, f"#case={explained(summary).id}")
    style = "node => getComputedStyle(node).strokeDasharray"
    assert page.eval_on_selector("[data-layer=needed] .line", style) != "none"
    assert page.eval_on_selector("[data-layer=evidence] .line", style) == "none"
    paths = [page.get_attribute(f"[data-layer={name}] .line", "d").split("M")[1:] for name in ("needed", "evidence")]
    assert not set(paths[0]) & set(paths[1]) and all(paths)


def test_charts_of_evidence_count_confirmed_cases(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index)
    for caption, key in (
        ("location of the confirmed evidence", "evidence_location"),
        ("confirmed evidence proposed by", "proposal"),
    ):
        rows = page.locator(f"#charts table:has(caption:text-is('{caption}')) tbody tr")
        shown = [int(row.split()[-1]) for row in rows.all_inner_texts()]
        expected = Counter(getattr(case, key) for case in summary.cases if case.confirmed)
        assert sorted(count for count in shown if count) == sorted(expected.values())
    rows.first.locator("button").click()
    most = max(expected, key=lambda name: expected[name])
    assert set(ids(page)) == {case.id for case in summary.cases if case.confirmed and case.proposal == most}


def test_without_average_precision_cases_are_ranked_by_score(
    look: Open, samples: list[SampleImage], tmp_path: Path
) -> None:
    cases = tuple(replace(case, delta_ap=math.nan) for case in summary_of(samples).cases)
    groups = [replace(group, delta_ap=math.nan) for group in summary_of(samples).groups]
    classes = [replace(each, average_precision=math.nan) for each in summary_of(samples).classes]
    page = look(
        write(
            tmp_path, samples, summary_of(
                samples, cases=cases, groups=groups, classes=classes, inventory=(), average_precision=math.nan,
                false_positive_delta_ap=math.nan, delta_ap_by_type=dict.fromkeys(ERROR_TYPES, math.nan),
            ),
        )
    )  # fmt: skip
    assert ids(page) == [case.id for case in sorted(cases, key=lambda case: (not case.method, -case.score))]
    assert page.inner_text("#charts h2 >> nth=0") == "Errors by type" and "AP at" not in page.inner_text(".figures")
    for text in (
        page.inner_text("#overview"),
        look(tmp_path / "index.html", f"#case={cases[0].id}").inner_text("#case"),
    ):
        assert "delta AP" not in text.replace("largest delta AP", "") and "nan" not in text.lower().split()


def test_lines_are_thin_and_unfilled(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index, f"#case={explained(summary).id}")
    styles = page.eval_on_selector_all(
        "[data-layer] rect, [data-layer] path",
        "all => all.map(node => getComputedStyle(node)).map(s => [s.fill, s.vectorEffect, parseFloat(s.strokeWidth)])",
    )
    assert len(styles) > 6
    for fill, effect, width in styles:
        assert (fill, effect) == ("none", "non-scaling-stroke") and width <= 3


def test_keys_toggle_layers_and_zoom(look: Open, index: Path, summary: ReportSummary) -> None:
    case = explained(summary)
    page = look(index, f"#case={case.id}")
    start = {"box", "truths", "heat", "evidence", "needed"}
    assert shown_layers(page) == start
    for key, layer in (
        ("b", "box"),
        ("t", "truths"),
        ("h", "heat"),
        ("e", "evidence"),
        ("n", "needed"),
        ("c", "control"),
    ):
        page.keyboard.press(key)
        assert shown_layers(page) == start ^ {layer}
        assert page.is_checked(f"#layer-{layer}") == (layer == "control")
        page.keyboard.press(key)
        assert shown_layers(page) == start
    page.click("label:has(#layer-heat)")
    assert shown_layers(page) == start - {"heat"}
    view = [float(part) for part in page.get_attribute(".viewer-image", "viewBox").split()]
    assert view == [0, 0, 256, 192]
    page.keyboard.press("z")
    x, y, width, height = (float(part) for part in page.get_attribute(".viewer-image", "viewBox").split())
    left, top, right, bottom = case.box_xyxy
    assert x <= left and y <= top and x + width >= right and y + height >= bottom and width < 200
    assert width / height == pytest.approx(256 / 192)


def test_heatmap_looks_like_an_overlay(
    look: Open, index: Path, samples: list[SampleImage], summary: ReportSummary
) -> None:
    case = explained(summary)
    page = look(index, f"#case={case.id}")
    for key in "bte":
        page.keyboard.press(key)
    image = np.asarray(Image.open(next((index.parent / "images").glob(f"*{case.image_id:03d}-*.jpg"))))
    maps = next(maps for image in samples for other, maps in image.cases if other.id == case.id)
    assert maps is not None
    heat = maps.heatmap / np.float32(255)

    def error(alpha: float) -> float:
        page.wait_for_timeout(150)
        shot = Image.open(io.BytesIO(page.locator(".viewer-image").screenshot())).convert("RGB")
        small = np.asarray(shot.resize((256, 192), Image.Resampling.BOX)).astype(float)
        hot = heat > 0.3
        return float(np.abs(small - overlay_heatmap(image, heat, alpha=alpha))[hot].mean())

    for alpha in (0.8, 0.4):
        page.evaluate(
            "value => { const slider = document.getElementById('opacity');"
            " slider.value = value; slider.dispatchEvent(new Event('input')); }",
            alpha,
        )
        assert error(alpha) < 6 < 15 < error(alpha - 0.4)
    page.keyboard.press("h")
    assert error(0.0) < 6 < 15 < error(0.8)


def test_opacity_slider_works_from_the_keyboard(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index, f"#case={explained(summary).id}")
    page.focus("#opacity")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert float(page.eval_on_selector("[data-layer=heat]", "node => node.style.opacity")) == pytest.approx(0.7)
    assert page.inner_text(".opacity output").split() == ["70", "%"]
    assert page.evaluate("location.hash").endswith(explained(summary).id), "arrows belong to the slider then"


def test_navigation_between_cases(look: Open, index: Path, summary: ReportSummary) -> None:
    page = look(index)
    order = [case.id for case in sorted(summary.cases, key=lambda case: (not case.method, -case.score))]

    def current_case() -> str:
        return str(page.evaluate("location.hash")).removeprefix("#case=")

    page.click(".case-card >> nth=1")
    assert current_case() == order[1] and page.inner_text(".steps .of") == f"2 of {len(order)}"
    for key, position in (("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        until(page, f"location.hash === '#case={order[position]}'")
        until(page, f"document.querySelector('.steps .of').innerText === '{position + 1} of {len(order)}'")
    page.click("text=Previous")
    page.wait_for_selector("text=Previous >> xpath=self::*[@aria-disabled='true']")
    assert current_case() == order[0]
    page.keyboard.press("k")
    assert current_case() == order[0]
    page.keyboard.press("Escape")
    page.wait_for_selector("#overview:not([hidden])")
    assert page.evaluate("document.activeElement.dataset.id") == order[0], "the opened card has the focus"
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.id") == order[1]
    for key in ("Enter", "Space"):
        page.keyboard.press(key)
        page.wait_for_selector("#case:not([hidden])")
        assert current_case() == order[1]
        page.go_back()
        page.wait_for_selector("#overview:not([hidden])")


def test_search_and_help_keys(look: Open, index: Path) -> None:
    page = look(index)
    page.keyboard.press("/")
    until(page, "document.activeElement.id === 'by-text'")
    page.keyboard.type("jk?/")
    assert page.input_value("#by-text") == "jk?/", "keys belong to the field"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") != "by-text"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible() and page.locator("#help kbd").count() > 10
    assert page.evaluate("document.getElementById('help').scrollTop") == 0, "it opens at its beginning"
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


def test_link_to_an_unknown_case(look: Open, index: Path) -> None:
    page = look(index, "#case=%3Cb%3Enobody%E0")
    assert "There is no case" in page.inner_text("#case")
    page.click("text=All cases")
    page.wait_for_selector("#overview:not([hidden])")


def test_names_are_shown_as_text(look: Open, tmp_path: Path) -> None:
    samples = make_images(range(3), hostile=True, names={1: HOSTILE, 2: HOSTILE + "2"})
    known = summary_of(samples, model=HOSTILE, settings={HOSTILE: HOSTILE}).cases
    wild = replace(known[0], id=HOSTILE, sentence=HOSTILE, question=HOSTILE, reason=HOSTILE)
    samples[0].cases[0] = (wild, samples[0].cases[0][1])
    page = look(write(tmp_path, samples, summary_of(samples, model=HOSTILE, annotations=HOSTILE, groups=())))
    assert HOSTILE in page.inner_text("#subject")
    page.click(".case-card[data-id^='</script>']")
    assert page.inner_text(".case-head .file") == wild.file_name and HOSTILE in page.inner_text(".findings")
    assert page.evaluate("decodeURIComponent(location.hash)") == "#case=" + HOSTILE
    page.reload()
    assert HOSTILE in page.inner_text(".findings")
    assert page.evaluate("window.hacked") is None and page.locator("img[onerror], #case b").count() == 0
    assert page.locator("script").count() == 2
