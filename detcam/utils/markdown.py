"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()) -> str:
    """Format a table in Markdown, one line per row, with pipes in the cells escaped.

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
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
