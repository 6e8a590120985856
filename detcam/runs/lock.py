"""The lock of a folder, held by the process that works in it, and gone with the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import filelock

from detcam.utils.files import with_home

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextmanager
def lock_folder(out: str | Path | None) -> Iterator[Path]:
    """Create a folder and hold its lock; the file of the lock is removed at the end.

    Args:
        out: the folder; None takes a temporary one, which is removed at the end.

    Yields:
        The folder.

    Raises:
        RuntimeError: another process or thread works in the folder, or the folder was removed meanwhile.
    """
    if out is None:
        with TemporaryDirectory(prefix="detcam-") as temporary:
            yield Path(temporary)
        return
    folder = with_home(out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = _acquire(folder / LOCK)
    except (BlockingIOError, filelock.Timeout):
        raise RuntimeError(f"another run is working in {folder}; wait for its end, or choose another folder") from None
    try:
        yield folder
        if not folder.is_dir():
            raise FileNotFoundError(folder)
    except OSError as error:
        if folder.is_dir():
            raise
        raise RuntimeError(f"{folder} was removed while the run was working in it; run it again") from error
    finally:
        _release(lock, folder / LOCK)


def _acquire(path: Path) -> int | filelock.BaseFileLock:
    """Lock a file that is at its path while it is locked; return its descriptor, or on Windows the lock."""
    if fcntl is None:
        return filelock.FileLock(path, timeout=0, thread_local=False).acquire().lock
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):  # else its holder removed it after it was opened here
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _release(lock: int | filelock.BaseFileLock, path: Path) -> None:
    """Remove the file while it is locked, so that whoever opened it before finds that it is gone."""
    if not isinstance(lock, int):
        lock.release()  # which removes the file
        return
    try:
        if _is_at(lock, path):  # not where the folder was removed and made again
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _is_at(file: int, path: Path) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
