"""Modules of the user, which register methods, adapters, metrics and targets."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path


def import_modules(names: Sequence[str]) -> None:
    """Import modules by name or file, which registers the methods, adapters, metrics and targets in them.

    Raises:
        ImportError: a module or file cannot be found, or fails.
    """
    folder = str(Path.cwd())
    if names and folder not in sys.path:
        sys.path.insert(0, folder)
    for name in names:
        try:
            if name.endswith(".py"):
                _run_file(Path(name))
            else:
                importlib.import_module(name)
        except Exception as error:
            raise ImportError(f"--import {name}: {type(error).__name__}: {error}") from error


def _run_file(path: Path) -> None:
    """Import a file as a module of its own name, unless a module of that name is loaded already."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
