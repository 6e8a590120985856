"""Imports every module of an installed detcam, from outside the repository."""

import argparse
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = {"detcam": "detcam", "detcam.adapters": "adapters", "detcam.targets": "targets"}
NEVER_INSTALLED = ("adapters", "targets", "examples", "tests")


def source_modules() -> dict[str, Path]:
    """Every module's name as it is installed, and its file in the repository."""
    modules = {}
    for package, folder in FOLDERS.items():
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = file.relative_to(REPOSITORY / folder).with_suffix("").parts
            modules[".".join((package, *(part for part in parts if part != "__init__")))] = file
    return modules


def problems(kind: str) -> list[str]:
    """What is wrong with the installation that this interpreter sees; empty where nothing is."""
    found = []
    modules = source_modules()
    for name, source in modules.items():
        if name.endswith("__main__"):
            continue
        file = Path(importlib.import_module(name).__file__ or "")
        if (file.resolve() == source) != (kind == "editable"):
            found.append(f"{name} was imported from {file}, which is wrong for a {kind} install")
    installed = Path(sys.modules["detcam"].__file__ or "").parent
    for data in (REPOSITORY / "detcam").rglob("*"):
        if data.suffix in {".pt", ".css", ".html", ".js", ".typed"}:
            copy = installed / data.relative_to(REPOSITORY / "detcam")
            if not copy.is_file():
                found.append(f"{data.name} is not installed: {copy} is missing")
    for name in NEVER_INSTALLED:
        if (spec := importlib.util.find_spec(name)) is not None:
            found.append(f"a top-level {name} can be imported, from {spec.origin or spec.submodule_search_locations}")
    version = importlib.metadata.version("detcam")
    if sys.modules["detcam"].__version__ != version:
        found.append(f"detcam.__version__ is {sys.modules['detcam'].__version__}, the metadata says {version}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("wheel", "editable"))
    kind = parser.parse_args().kind
    sys.path.remove(str(Path(__file__).resolve().parent))
    if Path.cwd() == REPOSITORY or REPOSITORY in map(Path, sys.path):
        sys.exit("Run this from outside the repository: there its folders can be imported without an installation.")
    if found := problems(kind):
        sys.exit("\n".join(found))
    print(f"{kind}: all {len(source_modules())} modules of detcam import")


if __name__ == "__main__":
    main()
