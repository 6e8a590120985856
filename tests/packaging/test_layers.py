"""The layer order of the package: lower layers never import higher ones, and no import goes in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from os.path import commonprefix
from pathlib import Path

import pytest

from tests.packaging.tree import REPOSITORY, modules, parsed

LAYERS = (
    ("utils",),
    ("detections",),
    ("geometry", "data", "visualize", "synthetic", "trace", "runs"),
    ("layers", "segmenter_output", "rendering"),
    ("outputs",),
    ("targets", "results"),
    ("inputs", "diagnostics"),
    ("adapters",),
    ("models", "cam"),
    ("perturbation",),
    ("methods", "metrics", "factorization"),
    ("explanation", "testing"),
    ("auditing",),
    ("benchmarking", "demo"),
    ("cli",),
)
"""Modules and packages directly in detcam, the lowest layer first; those of one layer do not import one another."""

MAX_MODULES = 14
MAX_PACKAGES = 15


def imports(name: str, file: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """The package's modules that a module imports at run time, lazily or not, with the line of each import."""
    tree = parsed(file)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
                module = ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])
            if module.split(".")[0] == "detcam":
                for alias in node.names:
                    full = f"{module}.{alias.name}"
                    yield (full if full in known else module), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "detcam":
                    yield alias.name, node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and str(node.args[0].value).split(".")[0] == "detcam":
                yield str(node.args[0].value), node.lineno


def room(module: str) -> str:
    """The module or package directly in detcam that a module belongs to; empty for detcam itself."""
    return (module.split(".") + [""])[1]


@pytest.fixture(scope="module")
def graph() -> dict[str, list[tuple[str, int]]]:
    known = modules()
    return {name: list(imports(name, file, known)) for name, file in known.items()}


def test_every_module_has_a_layer() -> None:
    rooms = {room(name) for name in modules()} - {"", "__main__"}
    assert rooms == {name for layer in LAYERS for name in layer}


def test_lower_layers_never_import_higher_ones(graph: dict[str, list[tuple[str, int]]]) -> None:
    level = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{module}:{line} imports {target}"
        for module, found in graph.items()
        for target, line in found
        if room(module) not in ("", "__main__")
        and room(target) != room(module)
        and (room(target) == "" or level[room(target)] >= level[room(module)])
    ]
    assert not wrong, "\n".join(wrong)


def test_names_of_modules_in_strings_keep_the_order() -> None:
    """Registries and lazy attributes import a module by its name when it is first used."""
    level = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{module}:{node.lineno} names {node.value}"
        for module, file in modules().items()
        if room(module) not in ("", "__main__")
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"detcam(\.\w+)+(:\w+)?", node.value)
        and room(module) != room(node.value.partition(":")[0]) in level
        and level[room(node.value.partition(":")[0])] >= level[room(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cyclic_imports(graph: dict[str, list[tuple[str, int]]]) -> None:
    state: dict[str, int] = {}
    circles = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        state[module] = 1
        for target, _ in graph.get(module, ()):
            if state.get(target) == 1:
                circles.append(" -> ".join((*path[path.index(target) :], target)))
            elif target in graph and target not in state:
                visit(target, (*path, target))
        state[module] = 2

    for module in graph:
        if module not in state:
            visit(module, (module,))
    assert not circles, "\n".join(circles)


def test_packages_beside_one_another_do_not_import_in_a_circle(graph: dict[str, list[tuple[str, int]]]) -> None:
    packages = {name for name, file in modules().items() if file.name == "__init__.py"}
    imported: dict[str, set[str]] = {}
    for module, found in graph.items():
        for target, _ in found:
            ours, theirs = module.split("."), target.split(".")
            shared = len(commonprefix([ours, theirs]))
            one, other = ".".join(ours[: shared + 1]), ".".join(theirs[: shared + 1])
            if one != other and {one, other} <= packages:
                imported.setdefault(one, set()).add(other)
    assert "detcam.auditing.verification" in imported["detcam.auditing.report"] | imported["detcam.auditing.grouping"]
    TopologicalSorter(imported).prepare()  # raises a CycleError that names the packages


def test_the_package_has_few_modules_and_packages_at_its_top() -> None:
    top = REPOSITORY / "detcam"
    assert len(list(top.glob("*.py"))) <= MAX_MODULES
    assert len(list(top.glob("*/__init__.py"))) <= MAX_PACKAGES


def test_only_the_command_line_imports_typer() -> None:
    wrong = [
        name
        for name, file in modules().items()
        if room(name) != "cli"
        for node in ast.walk(parsed(file))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("typer", "click"))
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] in ("typer", "click") for a in node.names))
    ]
    assert not wrong


@pytest.mark.parametrize(
    "line",
    [
        "from detcam.auditing import matching",
        "import detcam.auditing.matching",
        "from ..auditing import matching",
        "def f():\n    from detcam.auditing.matching import Match",
        "import importlib\nimportlib.import_module('detcam.auditing.matching')",
        "if not TYPE_CHECKING:\n    from detcam.auditing import matching",
    ],
)
def test_imports_are_recognized_in_all_forms(line: str, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    targets = [target for target, _ in imports("detcam.metrics.module", file, modules())]
    assert targets == ["detcam.auditing.matching"]
    file.write_text("if TYPE_CHECKING:\n    from detcam.auditing import matching")
    assert not list(imports("detcam.metrics.module", file, modules()))


def test_the_architecture_page_lists_the_layers() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = text.split("<!-- layers -->")[1].split("<!-- end -->")[0].strip().splitlines()
    expected = [f"{number}. {', '.join(f'`{name}`' for name in layer)}" for number, layer in enumerate(LAYERS, 1)]
    assert listed == expected


def test_the_architecture_page_lists_every_module_and_package() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in {name for layer in LAYERS for name in layer}:
        paths = (f"`{name}/`", f"`detcam/{name}/`", f"`detcam/{name}.py`")
        assert any(f"| {path} |" in text for path in paths), f"{name} is missing from the table"
