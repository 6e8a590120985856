"""A real browser for the page's tests, and what they ask it."""

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
    """A headless Chromium; the test skips where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as running:
        # Everything the browser opens was written by the test; in containers it has no sandbox of its own.
        started = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def opener(started: Any) -> Iterator[Open]:
    """A function that opens a page from disk; at the end, nothing may have been complained of or asked of a network."""
    complaints: list[str] = []
    contexts = []

    def look(index: Path, part: str = "", *, width: int = 1280, height: int = 900, dark: bool = False) -> Any:
        scheme = "dark" if dark else "light"
        contexts.append(started.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(index.as_uri() + part)
        return page

    try:
        yield look
    finally:
        for context in contexts:
            context.close()
    # Loading that a move to the next case cuts short is no fault.
    assert [text for text in complaints if "ERR_ABORTED" not in text] == []


def until(page: Any, condition: str) -> None:
    """Wait for a condition in JavaScript: the page forbids what playwright's own waiting is made of."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(condition)


def ids(page: Any) -> list[str]:
    """The ids of all cases that the list shows, scrolled to its end."""
    while True:
        before = page.locator(".case-card").count()
        page.evaluate("document.getElementById('end').scrollIntoView()")
        page.wait_for_timeout(60)
        if page.locator(".case-card").count() == before:
            break
    found: list[str] = page.eval_on_selector_all(".case-card", "all => all.map(one => one.dataset.id)")
    return found


def shown_layers(page: Any) -> set[str]:
    """The layers that are drawn over the image."""
    drawn = "all => all.filter(one => one.style.display !== 'none').map(one => one.dataset.layer)"
    return set(page.eval_on_selector_all("[data-layer]", drawn))


def overflow(page: Any) -> int:
    """By how many pixels the page is wider than the window."""
    wider: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wider
