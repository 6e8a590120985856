"""Paragraphs and tables for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence

WIDEST = 88

Echo = Callable[[str], None]


def say(echo: Echo, text: str) -> None:
    """A paragraph as wide as the terminal, up to a width that reads well, and an empty line."""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    # Only at spaces: file names and layer names stay whole.
    echo(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) + "\n")


def table(echo: Echo, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns, numbers to the right and words to the left; the last ones go where the terminal is narrow."""
    cells = [row for row in (heads, *rows) if any(row)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    numeric = [all(row[i][:1].isdigit() for row in rows) for i in range(len(heads))]
    while len(widths) > 1 and sum(widths) + 2 * len(widths) > shutil.get_terminal_size().columns:
        widths.pop()
    for row in cells:
        padded = [t.rjust(w) if n else t.ljust(w) for t, w, n in zip(row, widths, numeric, strict=False)]
        echo(("  " + "  ".join(padded)).rstrip())
    echo("")
