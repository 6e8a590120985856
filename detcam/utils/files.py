"""Atomic writing of files, file names, and conversion of values for JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, BinaryIO, SupportsFloat

import numpy as np

from detcam.utils.text import without_controls

FORMULA_SIGNS = "=+-@"
"""First characters, after spaces and in any width, of a text that a spreadsheet evaluates."""
QUOTE = "'"
"""What marks a cell of a spreadsheet as text."""
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.tmp")
FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
"""Numbers of the errors of a full disk."""
MAX_NAME_BYTES = 80
"""Maximum length of a `slug`; file systems allow 255 bytes for the whole file name."""


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False also for a name that no file system takes (NUL, too long)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False also for a name that no file system takes."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def with_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` at its beginning replaced by the home folder; a name such as ``~draft.png`` is none."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises an error for such a name


def is_in_folder(path: Path, folder: Path) -> bool:
    """Return whether a path, its links followed, lies in a folder or one below it."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file system takes
        return False


def json_bytes(content: object, indent: int | None = None) -> bytes:
    """Return JSON in UTF-8; bytes of a file name that are no text become escapes, which `json.loads` reads back.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return utf8_bytes(json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=False))


def utf8_bytes(text: str) -> bytes:
    r"""Return a text in UTF-8; bytes of a file name that are no text become escapes such as ``\udce9``."""
    return text.encode("utf-8", "backslashreplace")


def csv_cell(value: object) -> Any:
    """Return a value for a CSV table that neither a spreadsheet evaluates nor a terminal obeys.

    A text that would be a formula gets an apostrophe, and control characters become escapes.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    first = unicodedata.normalize("NFKC", value).lstrip()[:1]
    return f"{QUOTE if first and first in FORMULA_SIGNS else ''}{without_controls(value)}"


class StorageError(OSError):
    """A file of the results cannot be written: the disk is full, or the folder is gone."""


def is_storage_error(error: BaseException) -> bool:
    """Return whether an exception is about the disk of the results, not about one image."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in FULL)


def _describe(error: OSError, path: Path) -> str:
    """Why a file cannot be written."""
    if error.errno in FULL:
        return f"no space is left on the disk to write {path}; free some, and run it again (audit, explain: --resume)"
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return f"{path.parent} was removed while files were written there; run it again"
    return str(error)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file under a temporary name, which is flushed to the disk and renamed unless there is an exception.

    Raises:
        StorageError: the file cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(_describe(error, path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes | Iterable[bytes], *, flush_folder: bool = False) -> Path:
    """Write a file under a temporary name, flush it to the disk and rename it, so that no reader sees a part of it.

    Args:
        path: the file.
        content: its content, or parts of it, which are written one by one.
        flush_folder: whether the name, too, is on the disk when the function returns.

    Returns:
        The path.
    """
    with replacing(path) as file:
        file.writelines([content] if isinstance(content, bytes) else content)
    if flush_folder and hasattr(os, "O_DIRECTORY"):  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return path


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of `replace_file` that a killed process left in a folder."""
    for file in folder.glob(".*.tmp"):
        if TEMPORARY_NAME.fullmatch(file.name):
            file.unlink(missing_ok=True)


def read_json(path: Path, schema: str, version: int) -> dict[str, Any]:
    """Read a JSON file of detcam.

    Raises:
        ValueError: the file is not JSON, or has another schema or version.
    """
    remedy = "move it away, or choose another folder"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from error
    found = (content.get("schema"), content.get("version")) if isinstance(content, dict) else (None, None)
    if found != (schema, version):
        raise ValueError(
            f"{path} was not written by this version of detcam: expected {schema} version {version}, got "
            f"{found[0]} version {found[1]}; {remedy}"
        )
    return content


@contextmanager
def checked_fields(path: Path, remedy: str) -> Iterator[None]:
    """Turn the errors of code that reads fields of a file into a ValueError, since the file lacks them."""
    try:
        yield
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {remedy}") from error


def check_same_settings(path: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that results on disk were computed with the present settings.

    Args:
        path: the file or folder of the results.
        stored: settings of the results, as JSON holds them.
        current: the present settings.

    Raises:
        ValueError: they differ; the message names each setting with both values.
    """
    different = [name for name in {**stored, **current} if stored.get(name) != current.get(name)]
    if different:
        changes = "; ".join(
            f"{name} was {stored.get(name)!r:.80} and is now {current.get(name)!r:.80}" for name in different
        )
        raise ValueError(
            f"{path} contains results of other settings, which must not be mixed: {changes}. Choose another folder, or "
            "repeat the earlier settings"
        )


def slug(text: str) -> str:
    """Return a safe file name: letters, digits, ``_`` and ``-`` of any script; other characters become ``_``."""
    name = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", text)).strip("_")
    return name.encode(errors="ignore")[:MAX_NAME_BYTES].decode(errors="ignore") or "unnamed"


def json_number(value: SupportsFloat) -> float | None:
    """Return a number for JSON, rounded to seven significant digits; None if it is not finite."""
    value = float(value)
    return float(f"{value:.7g}") if math.isfinite(value) else None


def json_value(value: object) -> Any:
    """Convert any value for JSON.

    Containers and dataclasses are converted element by element, numbers by `json_number`, other objects by str.
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return json_number(value)
    if type(value) in (list, tuple):  # quicker than the checks of abstract types
        return [json_value(inner) for inner in value]  # type: ignore[attr-defined]
    if is_dataclass(value) and not isinstance(value, type):
        return json_value(vars(value))
    if isinstance(value, Mapping):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    if isinstance(value, np.integer):
        return int(value)
    return json_number(value) if hasattr(value, "__float__") else str(value)


def json_document(header: Mapping[str, Any], **lists: Iterable[Any]) -> Iterator[bytes]:
    """Yield the parts of a JSON object, UTF-8, whose lists are too long to be in memory as text.

    Args:
        header: the first fields, at least one, as JSON holds them.
        **lists: further fields, whose entries are converted one by one and written on a line each.
    """
    yield json_bytes(header, indent=1).removesuffix(b"\n}")
    for name, entries in lists.items():
        yield b',\n "' + name.encode() + b'": ['
        separator = b"\n"
        for entry in entries:
            yield separator + json_bytes(entry)
            separator = b",\n"
        yield b"\n ]"
    yield b"\n}\n"


def is_audit(folder: Path) -> bool:
    """Return whether a folder holds the report of an audit."""
    file = folder / "audit.json"
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return b'"detcam/audit"' in opened.read(200)


def check_report(folder: Path) -> None:
    """Raise ValueError unless a folder has the file ``audit.json`` of a report."""
    if not (folder / "audit.json").is_file():
        raise ValueError(f"{folder} has no file audit.json; give the folder of a finished report (detcam audit --out)")
