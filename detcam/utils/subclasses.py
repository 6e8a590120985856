"""Checks of what a subclass must define, made when the class is created."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any


def missing_members(cls: type) -> list[str]:
    """Return the declarations of the abstract methods and properties that a class does not override."""
    members = {name: getattr(cls, name, None) for name in dir(cls)}
    return [
        _declaration(name, member) for name, member in members.items() if getattr(member, "__isabstractmethod__", False)
    ]


def check_complete(kind: str, cls: type, missing: Sequence[str]) -> None:
    """Raise an error if a class lacks something.

    Args:
        kind: what the class is, such as "adapter".
        cls: the class.
        missing: the lines of code to add.

    Raises:
        TypeError: `missing` is not empty; the message shows the lines.
    """
    if missing:
        raise TypeError(
            f"the {kind} class {cls.__name__} is incomplete; add to it:\n    "
            + "\n    ".join(missing)
            + f"\nA base class of further {kind}s is declared with class {cls.__name__}(..., abstract=True)"
        )


def _declaration(name: str, member: Any) -> str:
    """Return the line of code that overrides an abstract method or property, with its purpose."""
    purpose = (inspect.getdoc(member) or "").split("\n")[0]
    if isinstance(member, property):
        return f"@property def {name}(self): ...  # {purpose}"
    decorator, first = ("@classmethod ", "cls") if inspect.ismethod(member) else ("", "self")
    parameters = [parameter for parameter in inspect.signature(member).parameters.values() if parameter.name != "self"]
    names = ["*" + p.name if p.kind is p.VAR_POSITIONAL else p.name for p in parameters]
    return f"{decorator}def {name}({', '.join([first, *names])}): ...  # {purpose}"
