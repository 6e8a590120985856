"""The tests: they mirror the packages, share no helpers by test modules, and use no private names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.packaging.tree import REPOSITORY, modules, parsed

TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def private(name: str) -> bool:
    return re.fullmatch("_[A-Za-z]\\w*(?<!_)", name) is not None


def private_names() -> set[str]:
    """The private functions, classes, constants and attributes of the package."""
    found = set()
    for file in modules().values():
        for node in ast.walk(parsed(file)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if private(name)}


def test_every_package_has_a_folder_of_tests() -> None:
    packages = {name.removeprefix("detcam.") for name, file in modules().items() if file.name == "__init__.py"}
    missing = [name for name in packages - {"detcam"} if not list(folder(name).rglob("test_*.py"))]
    assert not missing


def folder(package: str) -> Path:
    return REPOSITORY / "tests" / package.replace(".", "/")


def test_no_test_module_is_imported() -> None:
    wrong = [
        f"{file}: {node.module}"
        for file in TESTS
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.ImportFrom)
        and any(part.startswith("test_") for part in [*(node.module or "").split("."), *(a.name for a in node.names)])
    ]
    assert not wrong


def test_no_private_name_of_the_package_is_used() -> None:
    names, wrong = private_names(), []
    for file in TESTS:
        for node in ast.walk(parsed(file)):
            used: list[str] = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("detcam", "tests"):
                used = [alias.name for alias in node.names if private(alias.name)]
            elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                used = [node.attr] if node.attr in names else []
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # for monkeypatch and getattr
                used = [node.value] if node.value.split(".")[-1] in names else []
            wrong += [f"{file.relative_to(REPOSITORY)}:{getattr(node, 'lineno', '')} {name}" for name in used]
    assert not wrong
