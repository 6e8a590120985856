"""Checks the distributions in dist/: version, changelog, and the files of the wheel and of the source archive."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"detcam": ROOT / "detcam", "detcam/adapters": ROOT / "adapters", "detcam/targets": ROOT / "targets"}
DATA = {".css", ".html", ".js", ".json", ".pt", ".typed", ".py"}


def main(version: str, tag: str) -> None:
    if tag and tag != f"v{version}":
        sys.exit(f"the tag is {tag}, the version {version}")
    if f"## [{version}]" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        sys.exit(f"CHANGELOG.md has no section [{version}]")
    (wheel,) = (ROOT / "dist").glob(f"detcam-{version}-*.whl")
    (archive,) = (ROOT / "dist").glob(f"detcam-{version}.tar.gz")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    expected = set()
    for package, folder in SOURCES.items():
        for name in listed.stdout.splitlines():
            path = ROOT / name
            if path.is_relative_to(folder) and path.suffix in DATA:
                expected.add(f"{package}/{path.relative_to(folder).as_posix()}")
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
    if found != expected:
        sys.exit(f"wheel: missing {sorted(expected - found)[:5]}, not of the package {sorted(found - expected)[:5]}")
    with tarfile.open(archive) as file:
        members = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    sources = {f"{folder.relative_to(ROOT)}/{path}" for folder in SOURCES.values() for path in ("__init__.py",)}
    missing = (sources | {"README.md", "LICENSE", "setup.cfg", "pyproject.toml"}) - members
    if missing:
        sys.exit(f"source archive: missing {sorted(missing)}")
    print(f"detcam {version}: {len(found)} files, {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
