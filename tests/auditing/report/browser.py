"""A headless browser for the tests of the page, and helper functions."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Open = Callable[..., Any]
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Start headless Chromium; skip the test if it is not installed."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as running:
        # The browser opens only files of the tests. Its sandbox does not work in containers.
        started = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def opener(started: Any) -> Iterator[Open]:
    """Return a function that opens a page from disk. Errors, warnings and network requests fail the test."""
    errors: list[str] = []
    contexts = []

    def look(index: Path, part: str = "", *, width: int = 1280, height: int = 900, dark: bool = False) -> Any:
        scheme = "dark" if dark else "light"
        contexts.append(started.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(f"{request.url}: {request.failure}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or errors.append(request.url))
        page.goto(index.as_uri() + part)
        return page

    try:
        yield look
    finally:
        for context in contexts:
            context.close()
    # Moving to the next case can abort the loading of an image.
    assert [text for text in errors if "ERR_ABORTED" not in text] == []


def until(page: Any, condition: str) -> None:
    """Wait for a condition in JavaScript. The page's security policy blocks playwright's own wait_for_function."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(condition)


FRAMES = """async () => {
  for (let frame = 0; frame < 5; frame++) await new Promise(requestAnimationFrame);
}"""


def ids(page: Any) -> list[str]:
    """Return the ids of all cases in the list, after scrolling to its end."""
    while True:
        before = page.locator(".case-card").count()
        page.evaluate("document.getElementById('end').scrollIntoView()")
        page.evaluate(FRAMES)  # the scroll event, the frame it requests, and the following one
        if page.locator(".case-card").count() == before:
            break
    case_ids: list[str] = page.eval_on_selector_all(".case-card", "all => all.map(node => node.dataset.id)")
    return case_ids


def shown_layers(page: Any) -> set[str]:
    """Return the names of the visible layers."""
    visible = "all => all.filter(node => node.style.display !== 'none').map(node => node.dataset.layer)"
    return set(page.eval_on_selector_all("[data-layer]", visible))


def overflow(page: Any) -> int:
    """Return by how many pixels the page is wider than the window."""
    excess: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return excess
