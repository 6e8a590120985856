"""Checks of adapter classes, their options and their models."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn

from detcam.utils.subclasses import check_complete, missing_members

TOO_SMALL = ("Output size is too small", "can't be greater than actual input size")
"""Parts of torch's messages where a pooling or a convolution gets fewer pixels than it needs."""

TASKS = ("detection", "segmentation", "classification", "embedding")


def check_class(cls: type) -> None:
    """Check that an adapter class provides everything that the engine reads.

    Raises:
        TypeError: `family`, `task` or an abstract method is missing; the message says what to add.
    """
    missing = []
    if not isinstance(getattr(cls, "family", None), str):
        missing.append('family = "..."  # the name of the model family')
    if getattr(cls, "task", None) not in TASKS:
        missing.append(f"task = ...  # one of {', '.join(map(repr, TASKS))}")
    check_complete("adapter", cls, missing + missing_members(cls))


def check_options(cls: type, options: Iterable[str]) -> None:
    """Check the names of the keyword arguments for an adapter class.

    Raises:
        TypeError: the class has no such argument; the message lists its arguments and suggests the closest one.
    """
    known = option_names(cls)
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1, cutoff=0.6)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(
                f"the {cls.family} adapter ({cls.__name__}) has no option {option!r}.{hint} "  # type: ignore[attr-defined]
                f"Its options: {', '.join(known)}"
            )


def option_names(cls: type) -> list[str]:
    """The keyword-only arguments of a class, including those that its constructors pass on to their base classes."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in names]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in names if name not in cls.fixed_options]  # type: ignore[attr-defined]


def unwrap(model: object) -> Any:
    """Return the plain module inside DataParallel or torch.compile; other objects are returned as they are.

    Raises:
        TypeError: a scripted module, whose layers take no hooks.
        ValueError: the module is on the meta device.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrap(model.module)
    if hasattr(model, "_orig_mod"):  # torch.compile: hooks would force a recompilation at every call
        return unwrap(model._orig_mod)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("a scripted model has no hooks on its layers; pass the torch.nn.Module it was scripted from")
    if isinstance(model, nn.Module):
        _check_has_values(model)
    return model


def _check_has_values(model: nn.Module) -> None:
    """Raise ValueError if a parameter or buffer is on the meta device, which has shapes and no values."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name} of {type(model).__name__} is on the meta device and has no values: move the model with "
                "model.to_empty(device='cpu') and load its weights, or build it outside of torch.device('meta')"
            )


def plain_module(model: object) -> nn.Module:
    """Return the plain module of a model, as `unwrap`.

    Raises:
        TypeError: not a module, or a scripted one.
    """
    module = unwrap(model)
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module; got {type(module).__name__}")
    return module


def check_fractions(**values: float) -> None:
    """Raise ValueError if a threshold is not in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"expected {name} in [0, 1]; got {value}")


def too_small(model: nn.Module, inputs: torch.Tensor, reason: str, *, takes_size: bool) -> str:
    """Return the message for an input that is too small for a model's poolings or convolutions.

    Args:
        model: the model.
        inputs: (B, C, H, W).
        reason: torch's message, one of `TOO_SMALL`.
        takes_size: whether `image_size=` of the adapter changes the size.
    """
    height, width = inputs.shape[-2:]
    larger = f"({max(2 * height, 128)}, {max(2 * width, 128)})"
    option = f", or pass image_size= (--image-size), such as {larger}" if takes_size else f", such as to {larger}"
    return (
        f"an input of {height}x{width} pixels is too small for {type(model).__name__} ({reason}); enlarge the image"
        f"{option}"
    )
