"""Prints the oldest versions that setup.cfg allows, as constraints for pip: ``numpy>=1.26`` becomes ``numpy==1.26``."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.cfg"
EXTRAS = ("all", "heic")
"""Extras whose packages are taken at their floors, with those that they contain; those of the tests stay free."""

OVERRULED = {"huggingface-hub", "safetensors"}
"""Packages whose floor the floor of another extra excludes: transformers asks for newer ones."""


def requirements(config: configparser.ConfigParser) -> Iterator[str]:
    yield from config["options"]["install_requires"].splitlines()
    extras = config["options.extras_require"]
    names = [name for extra in EXTRAS for name in re.findall(r"detcam\[([\w,]+)\]", extras[extra]) or [extra]]
    for name in dict.fromkeys(",".join(names).split(",")):
        yield from extras[name].splitlines()


def floors(config: configparser.ConfigParser) -> list[str]:
    found = {}
    for line in requirements(config):
        match = re.match(r"\s*([\w.-]+)\s*>=\s*([\w.]+)", line)
        if match and match[1] not in OVERRULED:
            found[match[1]] = match[2]
    return [f"{name}=={version}" for name, version in found.items()]


if __name__ == "__main__":
    parsed = configparser.ConfigParser()
    parsed.read(SETUP, encoding="utf-8")
    print("\n".join(floors(parsed)))
