"""The code blocks of the documentation run, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")] + sorted(
    (REPOSITORY / "docs").glob("*.md")
)


def blocks(page: str) -> list[str]:
    """The Python code blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("registries_as_they_were")
def test_the_extension_snippets_run_and_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import detcam
    from detcam.adapters import ADAPTERS
    from detcam.metrics import METRICS
    from detcam.targets.registry import TARGETS

    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("scene.png")
    registries = (detcam.METHODS, ADAPTERS, METRICS, TARGETS)
    before = [set(registry) for registry in registries]
    names: dict[str, object] = {"__name__": "snippets"}
    found = blocks("docs/extending.md")
    for block in found:
        exec(compile(block, "docs/extending.md", "exec"), names)
    added = [set(registry) - known for registry, known in zip(registries, before, strict=True)]
    assert added == [{"positivecam"}, {"grid_detector"}, {"mean_heat"}, {"score_margin"}]
    assert names["explanations"][0].targets[0].quantity == "score_margin"  # type: ignore[index]
    for block, start, limit in (
        (found[0], "class ", 5),
        (found[2], "def ", 6),
        (found[4], "class ", 6),
        (found[6], "def ", 3),
    ):
        body = (
            block[block.index(start) :] if start == "class " else block[block.index("@register_") :].split("\n", 1)[1]
        )
        assert len([line for line in body.splitlines() if line.strip()]) <= limit


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_are_valid(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_modules_named_in_pages_exist(page: Path) -> None:
    """A dotted name in the documentation is a module, or an attribute of one."""
    import importlib

    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(detcam(?:\.\w+)+)`", text)):
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            try:
                found: object = importlib.import_module(".".join(parts[:end]))
            except ModuleNotFoundError:
                continue
            for part in parts[end:]:
                found = getattr(found, part)
            break
