"""Architectures of ultralytics networks: YAML files, checked before the package turns their text into code.

The package is not imported here: `detcam.adapters.ultralytics` hands over what is needed of it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

FOLDERS = {"nn.": nn, "torchvision.ops.": torchvision.ops}
"""Where a layer's name may point to beside ultralytics' own modules."""


def check_architecture(name: str, architecture: Mapping[str, Any], tasks: Any) -> None:
    """Refuse an architecture that would run code: ultralytics evaluates its activation, and calls what its rows name.

    Args:
        name: of its file, for messages.
        architecture: what the file holds.
        tasks: the module ``ultralytics.nn.tasks``, among whose names those of the rows are looked up.

    Raises:
        ValueError: the activation is more than a module of `torch.nn`, or a row names something that is no layer.
    """
    activation = architecture.get("activation")
    if activation and not is_plain_module(activation):
        raise ValueError(
            f"{name}: expected an activation such as nn.SiLU() or torch.nn.LeakyReLU(0.1), a module of torch.nn with "
            f"plain numbers; got {_short(activation)}, which ultralytics would run as code. Change it in the file"
        )
    for part in ("backbone", "head"):
        rows = architecture.get(part)
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
            raise ValueError(
                f"{name}: expected {part} as a list of rows [from, number, module, arguments]; got {_short(rows)}. "
                "Change it in the file"
            )
        for row in rows:
            if not is_layer(row[2], tasks):
                raise ValueError(
                    f"{name}: expected the name of a layer of ultralytics, torch.nn (nn.Conv2d) or torchvision.ops; "
                    f"got {_short(row[2])} in {part}, which ultralytics would call. Change it in the file"
                )


def is_plain_module(text: Any) -> bool:
    """Whether a text makes a module of `torch.nn` from literals, and nothing else; it is read, not run."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
            return False
        for value in (*call.args, *(keyword.value for keyword in call.keywords)):
            ast.literal_eval(value)
        prefix, _, name = ast.unparse(call.func).rpartition(".")
    except (AttributeError, SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        return False
    return prefix in ("nn", "torch.nn") and _is_module(getattr(nn, name, None))


def is_layer(name: Any, tasks: Any) -> bool:
    """Whether a row's module is a layer; ultralytics would also call its loaders, installers and whole models."""
    if not isinstance(name, str):
        return False
    for prefix, folder in FOLDERS.items():
        if name.startswith(prefix):
            return _is_module(getattr(folder, name.removeprefix(prefix), None))
    found = getattr(tasks, name, None)
    return _is_module(found) and found.__module__.startswith("ultralytics.nn.modules")


def _is_module(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def _short(value: Any) -> str:
    """A value in one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
