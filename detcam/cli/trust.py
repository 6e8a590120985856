"""Asks on a terminal whether a checkpoint that contains code is trusted."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import typer

from detcam.utils.console import printable


def ask_to_trust(files: Iterable[str | None]) -> bool:
    """Ask once whether the files that contain code may run it; return whether they may.

    Only on a terminal: elsewhere the error that names ``--trust-checkpoint`` follows when the file is read.

    Args:
        files: names of a model and its weights; those that are no files of `torch.save` are left out.
    """
    from detcam.models.checkpoints import foreign_globals
    from detcam.models.files import SUFFIXES

    paths = [Path(name) for name in files if name and Path(name).suffix in SUFFIXES - {".safetensors"}]
    code = {path: names for path in paths if path.is_file() and (names := foreign_globals(path))}
    if not code or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    for path, names in code.items():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        print(f"{printable(str(path))} holds more than tensors ({printable(shown)}).", file=sys.stderr)
    return typer.confirm("Reading it runs code from the file. Do you trust its source?", err=True)
