"""Checks of ultralytics architectures (YAML files), which the package evaluates as code.

The package is not imported: `detcam.adapters.ultralytics.detector` passes the module that is needed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

from detcam.utils.console import short_repr

NAMESPACES = {"nn.": nn, "torchvision.ops.": torchvision.ops}
"""Modules that a layer's name may refer to, apart from those of ultralytics."""


def check_architecture(name: str, architecture: Mapping[str, Any], tasks: object) -> None:
    """Reject an architecture that runs code: ultralytics evaluates its activation and calls the names in its rows.

    Args:
        name: name of the file, for messages.
        architecture: content of the file.
        tasks: the module ``ultralytics.nn.tasks``, which defines the names in the rows.

    Raises:
        ValueError: the activation is not a module of `torch.nn`, or a row names something other than a layer.
    """
    activation = architecture.get("activation")
    if activation and not is_plain_module(activation):
        raise ValueError(
            f"{name}: expected an activation such as nn.SiLU() or torch.nn.LeakyReLU(0.1), a module of torch.nn with "
            f"plain numbers; got {short_repr(activation)}, which ultralytics would run as code. Change it in the file"
        )
    for part in ("backbone", "head"):
        rows = architecture.get(part)
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
            raise ValueError(
                f"{name}: expected {part} as a list of rows [from, number, module, arguments]; got {short_repr(rows)}. "
                "Change it in the file"
            )
        for row in rows:
            if not is_layer(row[2], tasks):
                raise ValueError(
                    f"{name}: expected the name of a layer of ultralytics, torch.nn (nn.Conv2d) or torchvision.ops; "
                    f"got {short_repr(row[2])} in {part}, which ultralytics would call. Change it in the file"
                )


def is_plain_module(text: object) -> bool:
    """Return whether a text is a call of a module of `torch.nn` with literals; the text is parsed, not executed."""
    if not isinstance(text, str):
        return False
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
            return False
        for value in (*call.args, *(keyword.value for keyword in call.keywords)):
            ast.literal_eval(value)
        prefix, _, name = ast.unparse(call.func).rpartition(".")
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        return False
    return prefix in ("nn", "torch.nn") and _is_module(getattr(nn, name, None))


def is_layer(name: object, tasks: object) -> bool:
    """Return whether a row's module is a layer; ultralytics would also call its loaders, installers and models."""
    if not isinstance(name, str):
        return False
    for prefix, namespace in NAMESPACES.items():
        if name.startswith(prefix):
            return _is_module(getattr(namespace, name.removeprefix(prefix), None))
    layer = getattr(tasks, name, None)
    return _is_module(layer) and layer.__module__.startswith("ultralytics.nn.modules")


def _is_module(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)
