"""Tables and lines in Markdown."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from detcam.utils.text import without_controls


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()) -> str:
    """Format a table in Markdown, one line per row, with pipes in the cells escaped.

    Cells are Markdown: names of users go through `plain_line`.

    Args:
        columns: the headings.
        rows: the cells of each row.
        right: the columns that are aligned to the right, as numbers are.

    Example:
        >>> from detcam.utils.markdown import markdown_table
        >>> print(markdown_table(["method", "passes"], [["gradcam", "1"]], right=["passes"]))
        | method | passes |
        | --- | ---: |
        | gradcam | 1 |
    """
    rule = ["---:" if column in right else "---" for column in columns]
    return "\n".join([_line(columns), _line(rule), *(_line(row) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(without_controls(cell).replace("|", "\\|") for cell in cells) + " |"


def plain_line(text: str) -> str:
    r"""Return a text in one line that Markdown shows as it is: no HTML, links or code of names from files.

    Example:
        >>> from detcam.utils.markdown import plain_line
        >>> print(plain_line("<b>boat"))
        \<b>boat
    """
    return re.sub(r"([\\`\[<])", r"\\\1", without_controls(" ".join(text.split())))
