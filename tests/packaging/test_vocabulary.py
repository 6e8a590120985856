"""Names: terms of the field, one name for one thing, and prefixes of limits and defaults."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.tree import REPOSITORY, modules, parsed

AVOIDED = frozenset(
    [
        "picture",
        "pictures",
        "doubt",
        "doubts",
        "ladder",
        "rung",
        "rungs",
        "likeness",
        "honesty",
        "tally",
        "told",
        "owes",
    ]
)
"""Words for which the field has terms: image, verification, region-size search, typicality, run state."""

PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (REPOSITORY / "docs").glob("*.md")
)


def definitions(tree: ast.Module) -> Iterator[str]:
    """The public classes, functions and type aliases of a module."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            yield ast.unparse(node.target)


def identifiers(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines, and its strings that may be keys."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name: parsed(file) for name, file in modules().items()}


def test_one_name_for_one_thing(trees: dict[str, ast.Module]) -> None:
    places = defaultdict(set)
    for module, tree in trees.items():
        for name in definitions(tree):
            places[name].add(module)
    twice = {name: sorted(found) for name, found in places.items() if len(found) > 1 and name != "main"}
    assert not twice


def test_names_are_terms_of_the_field(trees: dict[str, ast.Module]) -> None:
    wrong = {
        f"{module}: {name}"
        for module, tree in trees.items()
        for name in identifiers(tree)
        if set(re.findall("[A-Z]?[a-z]+", name)) & AVOIDED or name in ("place", "places")
    }
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_use_terms_of_the_field(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)  # former keys are code
    assert not set(re.findall(r"\w+", text.lower())) & AVOIDED


def test_prefixes_of_limits_and_defaults(trees: dict[str, ast.Module]) -> None:
    """A numeric constant that is described as a limit or a default begins with MAX_, MIN_ or DEFAULT_."""
    wrong = []
    for module, tree in trees.items():
        for constant, text in zip(tree.body, tree.body[1:], strict=False):
            if not isinstance(constant, ast.Assign) or not isinstance(constant.value, ast.Constant):
                continue
            doc = ast.unparse(text.value).lower() if isinstance(text, ast.Expr) else ""
            name = ast.unparse(constant.targets[0]).lstrip("_")
            described = re.match(r"'(at most|at least|maximum|minimum|smallest|largest|default)\b|.*by default", doc)
            if isinstance(constant.value.value, (int, float)) and described:
                wrong += [f"{module}.{name}"] * (not name.startswith(("MAX_", "MIN_", "DEFAULT_")))
    assert not wrong
