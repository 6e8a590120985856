"""Help, version, tables and errors about paths are printed without PyTorch or another heavy library."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from detcam.cli.app import app

HEAVY = ("torch", "torchvision", "numpy", "PIL", "matplotlib", "scipy", "sklearn", "cv2", "tqdm")
GROUP: Any = typer.main.get_command(app)


HELP = [["--help"], ["--version"], *([command, "--help"] for command in GROUP.commands)]


RUN = """
import sys
from importlib.metadata import entry_points

(script,) = entry_points(group="console_scripts", name="detcam")

def run(arguments):  # as the console script does, which exits with what the function returns
    sys.argv = ["detcam", *arguments]
    try:
        sys.exit(script.load()())
    except SystemExit as end:
        return end.code or 0
"""
"""A function that runs the installed command in this process, and returns its exit code."""


def test_help_and_version_import_no_heavy_library() -> None:
    code = RUN + (
        f"for arguments in {HELP}:\n"
        "    code = run(arguments)\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "    print('command', *arguments, code, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = re.split(r"^command (.*) (\[.*\])\n", done.stdout, flags=re.MULTILINE)
    assert found[1::3] == [" ".join([*arguments, "0"]) for arguments in HELP] and set(found[2::3]) == {"[]"}
    assert all("detcam" in text for text in found[:-1:3])


HOME = Path.home()
MODEL = ("--model", "resnet18")
QUICK: list[tuple[tuple[str, ...], str]] = [
    (("methods",), "gradcam"),
    (("metrics",), "insertion"),
    (("explain", "nosuch.jpg", *MODEL), "no file or folder at nosuch.jpg"),
    (("explain", __file__, "--model", "best.pt"), "no model file at best.pt"),
    (("explain", __file__, *MODEL, "--weights", "w.pth"), "no checkpoint file at w.pth"),
    (("explain", __file__, *MODEL, "--names", "n.txt"), "no file of class names at n.txt"),
    (("audit", *MODEL, "--images", "nosuch"), "no folder of images at nosuch"),
    (("audit", *MODEL, "--images", ".", "--annotations", "a.json"), "no annotation file at a.json"),
    (("benchmark", *MODEL, "--images", "nosuch"), "no file or folder at nosuch"),
    (("benchmark", *MODEL, "--images", "a?.png", "--weights", "w.pth"), "no checkpoint file at w.pth"),
    (("compare", "old", "new"), "old has no file audit.json"),
    (("repair", "nosuch"), "nosuch has no file audit.json"),
    (("audit", *MODEL, "--images", "~/nosuch"), f"no folder of images at {HOME / 'nosuch'}"),
    (("audit", *MODEL, "--images", ".", "--annotations", "~/a.json"), f"no annotation file at {HOME / 'a.json'}"),
    (("compare", "~/old", "new"), f"{HOME / 'old'} has no file audit.json"),
    (("repair", "~/nosuch"), f"{HOME / 'nosuch'} has no file audit.json"),
]


def test_tables_and_errors_about_paths_import_no_pytorch(tmp_path: Path) -> None:
    code = RUN + (
        "sys.stderr = sys.stdout\n"
        f"for arguments in {[arguments for arguments, _ in QUICK]}:\n"
        "    print('command', *arguments)\n"
        "    print('exit code', run(arguments))\n"
        "print('command imported', [name for name in ('torch', 'torchvision') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    *printed, imported = done.stdout.split("command ")[1:]
    assert len(printed) == len(QUICK)
    for text, (arguments, expected) in zip(printed, QUICK, strict=True):
        assert text.startswith(" ".join(arguments)) and expected in text, text
        assert text.endswith(f"exit code {0 if len(arguments) == 1 else 2}\n"), text
    assert imported.split() == ["imported", "[]"]


@pytest.mark.parametrize("module", ["typer", "detcam.cli.audit", "numpy", "torch"])
def test_an_interruption_of_an_import_takes_one_line(module: str) -> None:
    code = (
        "import sys\n"
        "from detcam.cli.main import main\n"
        "class Interrupted:\n"
        "    def find_spec(name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted)\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "explain", __file__, *MODEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "detcam: interrupted\n")


def test_little_is_imported_before_interruptions_are_caught() -> None:
    """Until `detcam.cli.main` is there, Ctrl-C ends in a traceback of the interpreter."""
    code = "import sys, detcam.cli.main; print(*{'difflib', 'inspect', 'pkgutil', 'typer'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_arrow_reserves_no_memory_that_a_limit_would_count() -> None:
    code = """
import sys
from detcam.cli.main import main
sys.argv = ["detcam", "--version"]
try:
    main()
except SystemExit:
    import pyarrow
    print(pyarrow.default_memory_pool().backend_name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "system"
