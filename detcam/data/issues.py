"""Problems of a data set, collected while it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from detcam.utils.console import shorten

MAX_MESSAGE_LENGTH = 400


class DataWarning(UserWarning):
    """Problems of a data set. Results that list them hold the same as `issues`."""


@dataclass(frozen=True)
class DataIssue:
    """One problem of a data set.

    Attributes:
        kind: the kind of problem, such as ``"image is missing"``.
        message: description of the case, and of any entry that is left out; the middle of one that is longer than
            `MAX_MESSAGE_LENGTH` is left out, since names and ids in a file may be of any length.
        image_id: id of the image in the file, or None.
        annotation_id: id of the annotation in the file, or None.
    """

    kind: str
    message: str
    image_id: int | str | None = None
    annotation_id: int | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", shorten(self.message, MAX_MESSAGE_LENGTH))


class DataIssues:
    """An immutable list of problems, with counts by kind.

    Args:
        items: the problems, in order of occurrence.
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
        """Return the problems of one kind."""
        return [issue for issue in self if issue.kind == kind]

    def counts(self) -> dict[str, int]:
        """Return the number of problems of each kind: those of files and images first, then the most frequent."""
        of_annotations = {issue.kind for issue in self if issue.annotation_id is not None}
        counts = Counter(issue.kind for issue in self).most_common()
        return dict(sorted(counts, key=lambda item: item[0] in of_annotations))  # a missing image costs its annotations

    def summary(self, examples: int = 2) -> str:
        """Return one line per kind with its count and the messages of the first `examples` cases."""
        lines = []
        for kind, count in self.counts().items():
            shown = "; ".join(issue.message for issue in self.of(kind)[:examples])
            lines.append(f"{count} x {kind}: {shown}{'; ...' if count > examples else ''}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"DataIssues({self.counts()})"
