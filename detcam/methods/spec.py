"""A method with its settings in one word, for commands and configuration files: ``drise:passes=1000,grid=12``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from detcam.cam import BaseCAM
from detcam.methods import get_method

COMMON = ("self", "model", "target_layers", "reshape_transform")


def settings_of(method: type[BaseCAM]) -> dict[str, Any]:
    """A method's own settings and their defaults, by name."""
    parameters = inspect.signature(method).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in COMMON}


def method_from(text: str) -> Callable[..., BaseCAM]:
    """A method with settings.

    Args:
        text: the method's name, then perhaps a colon and settings, ``name=value`` with commas between them. Values are
            numbers, ``none``, ``true``, ``false`` or words.

    Returns:
        what makes the method from a model.

    Raises:
        ValueError: no such method, or it has no such setting.
    """
    name, _, rest = text.partition(":")
    method = get_method(name.strip())
    given: dict[str, Any] = {}
    for part in rest.split(",") if rest.strip() else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(f"expected settings as name=value after the colon; got {part.strip()!r} in {text!r}")
        known = settings_of(method)
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{method.name} has no setting {key!r}; {has}")
        given[key] = _value(value)
    return partial(method, **given) if given else method


def with_setting(text: str, name: str, value: str | None) -> str:
    """A method in one word with one setting more; the same where the value is None."""
    if value is None:
        return text
    return f"{text}{',' if ':' in text else ':'}{name}={value}"


def _value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
