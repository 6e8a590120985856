"""Configuration of the documentation site. Build it with ``make docs``."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from docutils import nodes
from math_core import LatexToMathML

import detcam

project = "detcam"
author = copyright = "The detcam contributors"
version = release = detcam.__version__
html_title = f"detcam {version}"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
templates_path = ["templates"]
exclude_patterns = ["_build", "templates"]

extensions = [
    "myst_nb",  # pages in Markdown, and notebooks, which the build executes
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # drawn by the browser itself: the site loads nothing from other hosts
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True

highlight_language = "none"  # blocks without a language are commands and messages

default_role = "py:obj"  # `name` in a docstring links to the name, if it is documented
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

API = {
    "detcam": "Front doors and shared types",
    "detcam.adapters": "Adapters",
    "detcam.targets": "Targets",
    "detcam.methods": "Methods",
    "detcam.metrics": "Metrics",
    "detcam.auditing": "Audits",
    "detcam.auditing.monitoring": "Audits during training",
    "detcam.benchmarking": "Benchmarks",
    "detcam.benchmarking.planted": "Planted causes",
    "detcam.testing": "Contract checks",
    "detcam.data": "Images and annotations",
    "detcam.models": "Loading models",
    "detcam.visualize": "Drawing",
    "detcam.perturbation": "Changed images and activations",
    "detcam.runs": "Runs over many images",
}
"""Public packages and the titles of their pages."""


def setup(app: Any) -> None:
    """Write the pages of the API reference before the sources are read."""
    app.connect("builder-inited", lambda app: write_api_pages(Path(app.srcdir) / "api"), priority=100)
    app.connect("missing-reference", resolve_public_name)
    app.connect("html-page-context", add_accessibility, priority=900)  # after the theme's own
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))


def add_accessibility(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give the headings of the navigation a level, and let the keyboard scroll blocks of code and wide tables."""
    for name, old, new in (
        ("furo_navigation_tree", 'role="heading"', 'role="heading" aria-level="2"'),
        ("body", "<pre>", '<pre tabindex="0">'),
        ("body", '<div class="table-wrapper', '<div tabindex="0" class="table-wrapper'),
    ):
        if name in context:
            context[name] = context[name].replace(old, new)


def visit_math(translator: Any, node: Any) -> None:
    """Write a formula in LaTeX as MathML. A command that the converter does not know ends the build."""
    block = isinstance(node, nodes.math_block)
    opening, closing = ('<div class="math" tabindex="0">', "</div>") if block else ('<span class="math">', "</span>")
    formula = LatexToMathML(fancy_error=False).convert_with_local_state(node.astext(), displaystyle=block)
    translator.body.append(opening + formula + closing)
    raise nodes.SkipNode


def resolve_public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Link a name without its package, or with the module that defines it, to the page that documents it."""
    if node.get("refdomain") != "py":
        return None
    name, *members = node["reftarget"].removeprefix("detcam.").split(".")
    documented = env.get_domain("py").objects
    for path in [".".join([name, *members]), *members[-1:], ".".join(members[-2:])]:
        for package in API:
            if f"{package}.{path}" in documented:
                arguments = (env, node["refdoc"], app.builder, "obj", f"{package}.{path}", node, contnode)
                return env.get_domain("py").resolve_xref(*arguments)
    return None


def write_api_pages(folder: Path) -> None:
    """Write one page per public package, with every name of its ``__all__``."""
    folder.mkdir(exist_ok=True)
    for package, title in API.items():
        text = api_page(package, title)
        path = folder / f"{package}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def api_page(package: str, title: str) -> str:
    """The page of a package in reStructuredText. Names of other packages' pages are left to these."""
    module = importlib.import_module(package)
    others = set()
    if package == "detcam":
        others = {name for other in API if other != package for name in importlib.import_module(other).__all__}
    heading = title
    lines = [heading, "=" * len(heading), "", f".. py:module:: {package}", "", inspect.getdoc(module) or "", ""]
    for name in sorted(set(module.__all__) - others - {"__version__"}, key=str.lower):
        lines += [name, "-" * len(name), "", f".. {_directive(getattr(module, name))}:: {package}.{name}"]
        if inspect.isclass(getattr(module, name)):
            lines += ["   :members:", "   :show-inheritance:"]
        lines.append("")
    return "\n".join(lines)


def _directive(value: object) -> str:
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, BaseException) else "autoclass"
    return "autofunction" if inspect.isroutine(value) else "autodata"
