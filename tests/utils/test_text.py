"""Lines of messages."""

from __future__ import annotations

import pytest

from detcam.utils.text import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("\n file not found\nmore", "file not found"),
        ("word " * 100, "word " * 59 + "word ..."),
        ("/" * 400, "/" * 300 + " ..."),
    ],
)
def test_first_line(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
