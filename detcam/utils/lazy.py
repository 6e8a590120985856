"""Lazy attributes of packages (PEP 562): a name's module is imported when the name is first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec


def lazy_attributes(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package, whose submodules are attributes without an import.

    Args:
        package: the package's `__name__`.
        modules: each lazy name and the module that defines it.

    Returns:
        The two functions, to be assigned at the top level of the package.
    """

    def get_attribute(name: str) -> object:
        child = f"{package}.{name}"
        if name in modules:
            value: object = getattr(import_module(modules[name]), name)
        elif not name.startswith("_") and find_spec(child) is not None:
            value = import_module(child)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def list_attributes() -> list[str]:
        from pkgutil import iter_modules  # slow to import, and rarely needed

        parent = sys.modules[package]
        return sorted({*vars(parent), *modules, *(module.name for module in iter_modules(parent.__path__))})

    return get_attribute, list_attributes
