"""Files that are written whole or not at all, file names, and values that JSON can hold."""

from __future__ import annotations

import math
import os
import re
import unicodedata
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

MAX_NAME_BYTES = 80  # bytes; file systems allow 255 for the whole file name


def replace_file(path: Path, content: bytes) -> Path:
    """Write a file so that nobody sees half of it."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def slug(text: str) -> str:
    """Letters, digits, ``_`` and ``-`` of any script; all else becomes ``_``, so no path can be built from it."""
    name = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", text)).strip("_")
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "unnamed"


def number(value: SupportsFloat) -> float | None:
    """A number for JSON: seven digits, null where it is not finite."""
    value = float(value)
    return float(f"{value:.7g}") if math.isfinite(value) else None


def plain(value: object) -> Any:
    """What JSON can hold: lists, texts, numbers as `number` writes them, texts of all else."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, np.integer):
        return int(value)
    return number(value) if hasattr(value, "__float__") else str(value)


def is_audit(folder: Path) -> bool:
    """Whether a folder holds the report of an audit."""
    file = folder / "audit.json"
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return b'"detcam/audit"' in opened.read(200)
