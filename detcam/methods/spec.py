"""Methods with settings as text, for commands and configuration files: ``drise:passes=1000,grid=12``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from detcam.cam import BaseCAM
from detcam.methods import get_method
from detcam.utils.console import did_you_mean
from detcam.utils.text import parse_value

COMMON_PARAMETERS = ("self", "model", "target_layers", "reshape_transform")
"""Constructor parameters that every method has; they are no settings."""


def method_settings(method: type[BaseCAM]) -> dict[str, Any]:
    """Return a method's settings and their defaults, by name."""
    parameters = inspect.signature(method).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in COMMON_PARAMETERS}


def parse_settings(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``name:setting=value,setting=value`` into the name and the settings.

    Values are numbers, ``none``, ``true``, ``false`` or words.

    Raises:
        ValueError: a setting has no name or no value.

    Example:
        >>> from detcam.methods.spec import parse_settings
        >>> parse_settings("drise:passes=1000,grid=12")
        ('drise', {'passes': 1000, 'grid': 12})
    """
    name, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"expected settings as name=value after the colon; got {part!r} in {text!r}")
        settings[key] = parse_value(value)
    return name.strip(), settings


def configure_method(name: str, settings: Mapping[str, Any]) -> Callable[..., BaseCAM]:
    """Return the constructor of a method with settings; call it with a model.

    Raises:
        ValueError: no such method, or it has no such setting.
    """
    method = get_method(name)
    known = method_settings(method)
    unknown = [key for key in settings if key not in known]
    if unknown:
        hint = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{method.name} has no setting {unknown[0]!r}; {hint}{did_you_mean(unknown[0], known)}")
    return partial(method, **settings) if settings else method


def parse_method(text: str) -> Callable[..., BaseCAM]:
    """Return the constructor of a method with settings from text such as ``drise:passes=1000``.

    Raises:
        ValueError: no such method, no such setting, or a setting without a value.
    """
    return configure_method(*parse_settings(text))


def add_setting(text: str, name: str, value: str | None) -> str:
    """Append a setting to a method's text; None leaves the text unchanged."""
    if value is None:
        return text
    return f"{text}{',' if ':' in text else ':'}{name}={value}"
