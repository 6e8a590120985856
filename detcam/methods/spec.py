"""A method with its settings in one word, for commands and configuration files: ``drise:passes=1000,grid=12``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from detcam.cam import BaseCAM
from detcam.methods import get_method

COMMON = ("self", "model", "target_layers", "reshape_transform")


def settings_of(method: type[BaseCAM]) -> dict[str, Any]:
    """A method's own settings and their defaults, by name."""
    parameters = inspect.signature(method).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in COMMON}


def split_settings(text: str) -> tuple[str, dict[str, Any]]:
    """A name and its settings from ``name:setting=value,setting=value``.

    Values are numbers, ``none``, ``true``, ``false`` or words.

    Raises:
        ValueError: a setting without a name or a value.
    """
    name, _, rest = text.partition(":")
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"expected settings as name=value after the colon; got {part!r} in {text!r}")
        given[key] = _value(value)
    return name.strip(), given


def method_with(name: str, given: Mapping[str, Any]) -> Callable[..., BaseCAM]:
    """What makes a method with settings from a model.

    Raises:
        ValueError: no such method, or it has no such setting.
    """
    method = get_method(name)
    known = settings_of(method)
    wrong = [key for key in given if key not in known]
    if wrong:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{method.name} has no setting {wrong[0]!r}; {has}")
    return partial(method, **given) if given else method


def method_from(text: str) -> Callable[..., BaseCAM]:
    """As `method_with`, from one word as `split_settings` reads it."""
    return method_with(*split_settings(text))


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
