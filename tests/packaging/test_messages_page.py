"""The page of messages quotes messages that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.packaging.tree import parsed

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "messages.md").read_text(encoding="utf-8")
QUOTED = [fragment for fragment in re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.M) if " " in fragment]
WARNINGS = re.findall(r"^\| `(\w+Warning)` \|", PAGE, flags=re.M)


@pytest.fixture(scope="module")
def texts() -> str:
    """All constant texts of the package, those of f-strings without their values."""
    parts: list[str] = []
    for folder in ("detcam", "adapters", "targets"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts.append(node.value)
    return "\n".join(parts)


@pytest.mark.parametrize("fragment", QUOTED)
def test_message_exists(fragment: str, texts: str) -> None:
    assert fragment in texts


def test_all_warnings_are_explained() -> None:
    from detcam import diagnostics

    assert set(WARNINGS) == {name for name in vars(diagnostics) if name.endswith("Warning")}
