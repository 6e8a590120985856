"""Tables and progress bars in the terminal.

rich is imported when the first table or bar is drawn, which keeps ``import detcam`` fast.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.table import Table

T = TypeVar("T")

PIPED_WIDTH = 400
"""Width of the output to a file or a pipe, so that a table row stays on one line."""


def make_console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or `PIPED_WIDTH` columns wide for a file or a pipe.

    Text is printed unchanged: square brackets are no markup and numbers are not highlighted.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, markup=False, highlight=False, width=None if stream.isatty() else PIPED_WIDTH)


def make_table(*columns: str, title: str = "", right: Collection[str] = ()) -> Table:
    """Return an empty table in the style of all commands.

    Args:
        *columns: the headings.
        title: a line above the table.
        right: the columns that are aligned to the right, as numbers are.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


class ProgressBar:
    """A progress bar on stderr, which only a terminal shows. It is removed at the end.

    Args:
        description: text before the bar.
        total: number of steps; None if it is unknown.
        enabled: whether to show the bar.

    Example:
        >>> from detcam.utils.console import ProgressBar
        >>> with ProgressBar("explaining", total=2) as bar:
        ...     bar.advance()
        ...     bar.advance()
    """

    def __init__(self, description: str = "", total: float | None = None, *, enabled: bool = True) -> None:
        self.description = description
        self.total = total
        self.enabled = enabled and sys.stderr.isatty()
        self._progress: Progress | None = None

    def __enter__(self) -> ProgressBar:
        if self.enabled:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=make_console(stderr=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._progress.add_task(printable(self.description), total=self.total)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def advance(self, steps: float = 1, description: str | None = None) -> None:
        """Move the bar on by some steps, with another description if one is given."""
        if self._progress is not None:
            text = None if description is None else printable(description)
            self._progress.update(self._task, advance=steps, description=text)

    def restart(self, description: str, total: float | None = None, completed: float = 0) -> None:
        """Show another activity."""
        if self._progress is not None:
            self._progress.reset(
                self._task, total=total, completed=int(completed), description=printable(description), start=True
            )

    def print(self, item: RenderableType, *, stderr: bool = False) -> None:
        """Print a line or a table above the bar, on stdout unless `stderr` is set."""
        if self._progress is not None and (stderr or sys.stdout.isatty()):
            self._progress.console.print(item, soft_wrap=isinstance(item, str))
        else:
            make_console(stderr=stderr).print(item, soft_wrap=isinstance(item, str))


def track(
    items: Iterable[T], description: str = "", *, total: float | None = None, enabled: bool = True
) -> Iterator[T]:
    """Iterate over items with a progress bar.

    Args:
        items: the items.
        description: text before the bar.
        total: number of items; None takes ``len(items)`` if there is one.
        enabled: whether to show the bar.

    Example:
        >>> from detcam.utils.console import track
        >>> sum(track([1, 2, 3], "adding"))
        6
    """
    if total is None and isinstance(items, Collection):
        total = len(items)
    with ProgressBar(description, total, enabled=enabled) as bar:
        for item in items:
            yield item
            bar.advance()


def printable(text: str) -> str:
    """Replace control characters by ``?``, which names of files and classes may contain."""
    return "".join(character if character.isprintable() else "?" for character in text)


def shorten(text: str, width: int) -> str:
    """Shorten a text to `width` characters with an ellipsis in its middle."""
    if len(text) <= width:
        return text
    return f"{text[: width // 2 - 1]}…{text[len(text) - (width - width // 2) :]}"


def short_repr(value: object) -> str:
    """Return the repr of a value in at most 60 characters, for a message."""
    try:
        return shorten(repr(value), 60)
    except (ValueError, RecursionError):  # an integer of more digits than Python converts, or a deep nesting
        return f"a {type(value).__name__} that is too long to show"


def describe_error(error: Exception) -> str:
    """Return an error's message in one line, with its type where the message alone is no sentence."""
    message = " ".join(str(error).split())
    is_sentence = bool(message) and isinstance(error, (OSError, RuntimeError, ValueError))
    return message if is_sentence else f"{type(error).__name__} {message}".strip()


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """Return a count with its noun: ``1 box``, ``2 boxes``.

    Example:
        >>> from detcam.utils.console import plural
        >>> plural(1, "target"), plural(2, "box"), plural(0, "category", "categories")
        ('1 target', '2 boxes', '0 categories')
    """
    if count == 1:
        return f"1 {noun}"
    ending = "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count} {plural_noun or noun + ending}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the hint to the nearest valid names, to be appended to a message; `otherwise` if none is near.

    Example:
        >>> from detcam.utils.console import did_you_mean
        >>> did_you_mean("infrno", ["inferno", "jet"])
        '; did you mean inferno?'
    """
    near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else otherwise
