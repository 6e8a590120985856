"""The check of the documentation site finds what is loaded from elsewhere and what leads nowhere."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.packaging.tree import REPOSITORY

HEAD = '<link rel="stylesheet" href="a.css"><script src="a.js"></script><h2 id="part">Part</h2><a href="#part">it</a>'


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="https://pytorch.org">a link to another site</a>', ""),
        ('<script src="https://cdn.example/a.js"></script>', "index.html loads https://cdn.example/a.js"),
        ('<link rel="stylesheet" href="//cdn.example/a.css">', "index.html loads //cdn.example/a.css"),
        ("<style>@import url(https://cdn.example/b.css);</style>", "index.html loads https://cdn.example/b.css"),
        ('<img src="gone.png">', "index.html refers to gone.png, which is not there"),
        ('<a href="#nowhere">link</a>', "index.html refers to #nowhere, an anchor that is not there"),
    ],
)
def test_faults_of_a_site(body: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(HEAD + body, encoding="utf-8")
    (tmp_path / "a.css").write_text("p { background: url(a.png) }", encoding="utf-8")
    (tmp_path / "a.js").touch()
    faults = runpy.run_path(str(REPOSITORY / ".ci/check_site.py"))["faults"]
    assert faults(tmp_path) == [fault] * bool(fault)
