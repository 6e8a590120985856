"""A browser that the tests of the report page share."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.auditing.report.browser import Open, browser, opener


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture
def look(chromium: Any) -> Iterator[Open]:
    with opener(chromium) as opened:
        yield opened
