"""What kind of ultralytics network a model is, told by names, without importing the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

PROMPTED = frozenset({"WorldDetect", "YOLOEDetect"})
"""Heads that take a text as well as an image."""


def is_ultralytics(model: Any) -> bool:
    """Whether a model is one of the package's own, or a `YOLO`-like object around one."""
    modules = {base.__module__ for base in type(model).__mro__}
    return not modules.isdisjoint({"ultralytics.nn.tasks", "ultralytics.engine.model"})


def inner_module(model: Any) -> Any:
    """The network inside a `YOLO` or `RTDETR` object, or the network itself.

    Raises:
        TypeError: an exported model, or a head that this adapter cannot explain.
    """
    wrapped = any(base.__module__ == "ultralytics.engine.model" for base in type(model).__mro__)
    module = model.model if wrapped else model
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a PyTorch model; got the exported model {module!r}. Load the .pt it was made from")
    known = head_names(module)
    if known.isdisjoint({"Detect", "RTDETRDecoder", "Classify"}) or not known.isdisjoint(PROMPTED):
        layers: Any = module.model
        raise TypeError(
            "the ultralytics adapter explains heads that detect, segment instances, rotate boxes, find keypoints or "
            f"classify, without a text prompt; got a {type(module).__name__} with a {type(layers[-1]).__name__} "
            "head. Say what it puts out with detcam.adapters.detector(model, decode=...)"
        )
    return module


def head_names(model: Any) -> set[str]:
    """Class names of a network's head and of everything it derives from; empty for an exported model."""
    layers = getattr(model, "model", None)
    layers = layers if isinstance(layers, nn.Sequential) else getattr(layers, "model", None)
    return class_names(layers[-1]) if isinstance(layers, nn.Sequential) else set()


def class_names(module: Any) -> set[str]:
    """The names of a module's class and of everything it derives from."""
    return {base.__name__ for base in type(module).__mro__}


def input_size(model: Any, wanted: Any, usual: int, stride: int) -> tuple[int, int]:
    """Height and width of the network's input, rounded up to the stride.

    What is wanted; else `imgsz` among the overrides of a `YOLO` object or the arguments that the network was trained
    with; else what is usual.
    """
    settings: list[Any] = [getattr(model, "overrides", None), getattr(model, "args", None)]
    known = [value.get("imgsz") if isinstance(value, Mapping) else getattr(value, "imgsz", None) for value in settings]
    size = next((value for value in (wanted, *known) if value), usual)
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"expected image_size as one or two positive whole numbers (height, width); got {size!r}")
    height, width = (-(-side // stride) * stride for side in sides)
    return height, width


@contextmanager
def fresh_attributes(head: Any) -> Iterator[None]:
    """Lay a head's caches and export switch aside, so that its class's defaults stand in for them, and put them back.

    Caches made under inference mode cannot enter autograd, and those made here must not stay with the user.
    """
    names = ("anchors", "valid_mask", "shapes", "export")
    kept = {name: head.__dict__.pop(name) for name in names if name in head.__dict__}
    try:
        yield
    finally:
        for name in names:
            head.__dict__.pop(name, None)
        head.__dict__.update(kept)
