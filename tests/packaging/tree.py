"""The modules of the package in the source tree."""

import ast
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = {"detcam": "detcam", "detcam.adapters": "adapters", "detcam.targets": "targets"}


def modules() -> dict[str, Path]:
    """Every module of the package by its installed name."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = file.relative_to(REPOSITORY / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = file
    return found


def parsed(file: Path) -> ast.Module:
    """The syntax tree of a file, which several tests walk."""
    return _parsed(file.read_text(encoding="utf-8"))


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)
