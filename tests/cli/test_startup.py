"""Help and version are printed without PyTorch or another heavy library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import detcam

HEAVY = ("torch", "torchvision", "numpy", "PIL", "matplotlib", "scipy", "sklearn", "cv2", "tqdm")
COMMANDS = ("explain", "methods", "metrics", "layers", "demo", "benchmark", "audit")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_and_version_import_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from detcam.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "detcam" in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"


def test_typer_is_imported_in_cli_only() -> None:
    root = Path(detcam.__file__).parent
    for path in root.rglob("*.py"):
        if path.is_relative_to(root / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.partition(".")[0] for module in modules} & {"typer", "click"}, path
