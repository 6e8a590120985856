"""What was wrong with a data set: counted, told once, never raised half-way and never lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class DataIssue:
    """One thing that was wrong, and what became of it.

    Attributes:
        kind: what was wrong, in words that all problems of a kind share: ``"image is missing"``.
        message: the particular case, and whether something was left out because of it.
        image_id: the image concerned, as the file names it, or None.
        annotation_id: the annotation concerned, as the file names it, or None.
    """

    kind: str
    message: str
    image_id: int | str | None = None
    annotation_id: int | str | None = None


class DataIssues:
    """An unchangeable list of problems, with counts by kind.

    Args:
        items: the problems, in the order in which they were met.
    """

    def __init__(self, items: Iterable[DataIssue] = ()) -> None:
        self._items = tuple(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[DataIssue]:
        return iter(self._items)

    def __add__(self, other: DataIssues) -> DataIssues:
        return DataIssues((*self._items, *other))

    def of(self, kind: str) -> list[DataIssue]:
        """The problems of one kind."""
        return [issue for issue in self if issue.kind == kind]

    def counts(self) -> dict[str, int]:
        """How many of each kind, the most frequent first."""
        return dict(Counter(issue.kind for issue in self).most_common())

    def summary(self, examples: int = 2) -> str:
        """One line per kind: its count and the first cases' messages; empty where nothing was wrong."""
        lines = []
        for kind, count in self.counts().items():
            shown = "; ".join(issue.message for issue in self.of(kind)[:examples])
            lines.append(f"{count} x {kind}: {shown}{'; ...' if count > examples else ''}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"DataIssues({self.counts()})"
