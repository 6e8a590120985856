"""Data files of the page: errors that are not listed at first, explanations, and files that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detcam.auditing.report import ReportSummary
from tests.auditing.report.browser import Open, ids, until
from tests.auditing.report.made_up import SampleImage, make_images, summary_of, write


@pytest.fixture(scope="module")
def samples() -> list[SampleImage]:
    return make_images(range(16))


@pytest.fixture
def unlisted(samples: list[SampleImage], tmp_path: Path) -> tuple[Path, ReportSummary]:
    """A report of which most unexplained cases have a score below the threshold."""
    summary = summary_of(samples, settings={"score_threshold": 0.6})
    return write(tmp_path, samples, summary), summary


def test_errors_below_the_threshold_are_listed_on_request(look: Open, unlisted: tuple[Path, ReportSummary]) -> None:
    index, summary = unlisted
    listed = [case for case in summary.cases if case.method or case.type == "missed" or case.score >= 0.6]
    rest = len(summary.cases) - len(listed)
    assert rest > 5
    page = look(index)
    assert set(ids(page)) == {case.id for case in listed}
    assert page.inner_text("#count") == f"{len(listed)} cases"
    assert page.inner_text("#unlisted-count") == f"{rest} errors with a score below 0.6 are not listed."
    page.click("#more")
    until(page, "document.getElementById('unlisted').hidden")
    assert set(ids(page)) == {case.id for case in summary.cases}
    assert page.inner_text("#count") == f"{len(summary.cases)} cases"
    page.select_option("#by-order", "file name")
    names = [next(case.file_name for case in summary.cases if case.id == each) for each in ids(page)]
    assert names == sorted(names)


def test_link_to_an_unlisted_case(look: Open, unlisted: tuple[Path, ReportSummary]) -> None:
    index, summary = unlisted
    case = next(case for case in summary.cases if not case.method and case.ground_truth and case.score < 0.6)
    page = look(index, f"#case={case.id}")
    assert "among the listed errors" in page.inner_text("#case")
    page.click("text=Look among the other")
    page.wait_for_selector(".case-head")
    text = page.inner_text("#case")
    assert case.ground_truth is not None
    for part in (case.id, case.file_name, f"{case.score:.3f}", case.ground_truth.name, f"{case.ground_truth.iou:.3f}"):
        assert part in text
    left, top, right, bottom = case.box_xyxy
    line = page.locator("[data-layer=box] .predicted, [data-layer=box] .concerned")
    placed = [float(line.get_attribute(name)) for name in ("x", "y", "width", "height")]
    assert placed == pytest.approx([left, top, right - left, bottom - top], abs=0.011)


def test_explanations_are_loaded_when_a_case_is_opened(look: Open, samples: list[SampleImage], tmp_path: Path) -> None:
    index = write(tmp_path, samples)
    loaded: list[str] = []
    page = look(index)
    page.on("request", lambda request: loaded.append(Path(request.url).name))
    page.click(".case-card >> nth=2")
    page.wait_for_selector(".trials")
    assert [name for name in loaded if name.startswith("details-")] == [
        path.name for path in (tmp_path / "data").glob("details-0-*")
    ]
    for _ in range(3):
        page.keyboard.press("j")
    until(page, "document.querySelector('.steps .of').innerText.startsWith('6 of')")
    assert sum(name.startswith("details-") for name in loaded) == 1


def test_a_missing_data_file_is_named(chromium: Any, samples: list[SampleImage], tmp_path: Path) -> None:
    index = write(tmp_path, samples)
    explained = next(case.id for case in summary_of(samples).cases if case.method)
    for kind, part in (("details-0", f"#case={explained}"), ("rows-0", ""), ("summary", "")):
        file = next((tmp_path / "data").glob(f"{kind}-*"))
        file.rename(tmp_path / "gone")
        page = chromium.new_page()
        page.goto(index.as_uri() + part)
        page.wait_for_selector("#error")
        assert f"data/{file.name} cannot be loaded" in page.inner_text("#error")
        if not part:
            assert page.inner_text("h1") == summary_of(samples).headline()[0]
        page.close()
        (tmp_path / "gone").rename(file)
