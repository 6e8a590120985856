"""Help and version are printed without PyTorch or another heavy library."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer

from detcam.cli.main import app

HEAVY = ("torch", "torchvision", "numpy", "PIL", "matplotlib", "scipy", "sklearn", "cv2", "tqdm")
GROUP: Any = typer.main.get_command(app)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in GROUP.commands)])
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
