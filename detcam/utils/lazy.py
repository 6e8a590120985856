"""Lazy attributes of packages (PEP 562): a name's module is imported when the name is first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module


def lazy_attributes(
    package: str, modules: Mapping[str, str], submodules: Iterable[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package.

    Args:
        package: The package's `__name__`.
        modules: Each lazy name and the module that defines it.
        submodules: Names of submodules that are attributes of the package without an import of their own.

    Returns:
        The two functions, to be assigned at the top level of the package.
    """
    children = frozenset(submodules)

    def get_attribute(name: str) -> object:
        if name in modules:
            value: object = getattr(import_module(modules[name]), name)
        elif name in children:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def list_attributes() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules, *children})

    return get_attribute, list_attributes
