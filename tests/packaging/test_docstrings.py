"""Docstrings: every example runs, and what users call first documents its arguments, result and errors."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import detcam
import detcam.metrics
from detcam import adapters, targets, testing
from tests.packaging.tree import modules

OPTIONAL = {
    "detcam.adapters.smp": "segmentation_models_pytorch",
    "detcam.adapters.ultralytics.detector": "ultralytics",
    "detcam.models.timm": "timm",
}

WITH_EXAMPLES = [
    name
    for name, file in modules().items()
    if ">>> " in file.read_text(encoding="utf-8") and not name.endswith("__main__")
]

FRONT_DOOR = [
    *(
        detcam.explain,
        detcam.audit,
        detcam.compare_audits,
        detcam.repair,
        detcam.plot_methods,
        detcam.benchmark,
        detcam.adapt,
        detcam.get_method,
        detcam.drise,
    ),
    *(detcam.show_cam_on_image, detcam.guided_backprop, detcam.sobel_cam),
    *(detcam.register_method, detcam.register_adapter, detcam.register_metric, detcam.register_target),
    *(adapters.detector, adapters.segmenter, adapters.embedder, adapters.embed, adapters.Adapter.predict),
    *(testing.check_method, testing.check_adapter, testing.check_metric, testing.check_target),
    *(detcam.BaseCAM.__call__, detcam.BaseCAM.explain, detcam.metrics.Metric.measure),
]

PUBLIC = [
    function
    for package in (detcam, adapters, targets, testing)
    for name in package.__all__
    if inspect.isfunction(function := getattr(package, name)) and function not in FRONT_DOOR
]
"""Further public functions; not all of them have errors to document."""


def examples(module: ModuleType) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [found for found in finder.find(module, module.__name__) if found.examples]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("registries_as_they_were")
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    for example in examples(module):
        report: list[str] = []
        runner.run(example, out=report.append)
        assert not runner.failures, "".join(report)


@pytest.mark.parametrize("function", [*FRONT_DOOR, *PUBLIC], ids=lambda function: function.__qualname__)
def test_public_entry_points_are_documented(function: object) -> None:
    text = inspect.getdoc(function) or ""
    parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]  # type: ignore[arg-type]
    returns = inspect.signature(function).return_annotation not in (None, "None")  # type: ignore[arg-type]
    sections = ["Args:"] * bool(parameters) + ["Returns:"] * returns + ["Raises:"] * (function in FRONT_DOOR)
    sections.append("Example")
    missing = [section for section in sections if section not in text]
    assert not missing, f"the docstring has no {', '.join(missing)}"
    undocumented = [name for name in parameters if f"{name}:" not in text]
    assert not undocumented, f"the docstring does not describe {', '.join(undocumented)}"


def section_entries(text: str) -> Iterator[tuple[str, str]]:
    """Kind of section and text of each entry of the Google-style sections in a module's source."""
    kind = indent = ""
    for line in text.splitlines():
        header = re.fullmatch(r"( +)(Args|Attributes|Raises|Returns|Yields):", line)
        if header:
            indent, kind = header.groups()
        elif kind and line.strip() and not line.startswith(indent + "    "):
            kind = ""
        elif kind and re.match(indent + r"    \S", line):
            yield kind, line.strip()
            kind = "" if kind in ("Returns", "Yields") else kind


def test_descriptions_begin_in_one_form() -> None:
    """The text after ``name:`` begins in lower case, unless it is a name; that of a result is a sentence or a shape."""
    wrong = []
    for name, file in modules().items():
        for kind, entry in section_entries(file.read_text(encoding="utf-8")):
            if kind in ("Returns", "Yields"):
                valid = not re.match(r"[a-z]+(-[a-z]+)*[ ,;.:]", entry)
            else:
                first = re.match(r"[*\w.`, ]+?: +([A-Z][a-z]+|A(?= [a-z]))(?![\w-])", entry)
                valid = not first or first[1] in ("None", "True", "False", "Ray")
            wrong += [] if valid else [f"{name}: {entry}"]
    assert not wrong, wrong
