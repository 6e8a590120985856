"""A log of what a process was doing, from which the next one learns what ended it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

MAX_CRASHES = 3
"""Number of processes that may end during the same call before it is skipped. A user who kills a run several times in
the same call cannot be told from a crash, so that one is not enough."""


class CrashLog:
    """Calls functions that can end the process, such as the decoders of image files.

    A line is appended to the file before a call, and removed after it, whether it returns or raises. A line that is
    left over belongs to a call during which the process ended.

    Args:
        path: file of the log; it is created by the first call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._crashes = Counter(path.read_text("utf-8", "replace").splitlines()) if path.exists() else Counter[str]()

    @property
    def has_crashes(self) -> bool:
        """Whether a process ended during a call."""
        return bool(self._crashes)

    def close(self) -> None:
        """Remove the file if no process ended."""
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()

    def call(self, name: str, function: Callable[..., T], *args: object) -> T:
        """Call a function, unless it has ended too many processes.

        Args:
            name: identifies the call in the run; without line breaks.
            function: the function.
            *args: its arguments.

        Raises:
            ValueError: the call ended `MAX_CRASHES` processes.
        """
        if self._crashes[name] >= MAX_CRASHES:
            raise ValueError(f"the process ended {self._crashes[name]} times while it was working on it")
        with self._noted(name):
            return function(*args)

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """Keep a line in the file; without one where the disk is full, or the folder gone: the results will say so."""
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError:
            yield
            return
        try:
            size = os.fstat(file).st_size
            with suppress(OSError):
                os.write(file, f"{name}\n".encode())
            try:
                yield
            finally:
                os.ftruncate(file, size)
        finally:
            os.close(file)
