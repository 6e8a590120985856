"""Values and lines of text."""

from __future__ import annotations

import ast
import re
from typing import Any

MAX_LINE_LENGTH = 300
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that a terminal or an editor obeys: control characters, line ends, and the direction of text."""


def parse_value(text: str) -> Any:
    """Parse a number, ``none``, ``true``, ``false``, or a list of values with commas; other texts are returned as is.

    Example:
        >>> from detcam.utils.text import parse_value
        >>> parse_value("0.5"), parse_value("None"), parse_value("64,32"), parse_value("resnet34")
        (0.5, None, (64, 32), 'resnet34')
    """
    if "," in text:
        return tuple(parse_value(part) for part in text.split(","))
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; of a long one, whole words of `MAX_LINE_LENGTH` characters."""
    line = str(error).strip().split("\n")[0]
    return line if len(line) <= MAX_LINE_LENGTH else f"{line[:MAX_LINE_LENGTH].rsplit(' ', 1)[0]} ..."


def without_controls(text: str) -> str:
    r"""Return a text with escapes, such as ``\x1b``, for control characters and those that set the direction of text.

    Example:
        >>> from detcam.utils.text import without_controls
        >>> print(without_controls("\x1b[31mred"))
        \x1b[31mred
    """
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
