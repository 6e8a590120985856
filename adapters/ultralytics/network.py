"""The kind of an ultralytics network, determined by class names, without importing the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from detcam.geometry import checked_size

PROMPTED = frozenset({"WorldDetect", "YOLOEDetect"})
"""Heads with the embeddings of the classes as a second input."""


def is_ultralytics(model: object) -> bool:
    """Return whether a model is a network of the package or a `YOLO`-like wrapper of one."""
    return is_wrapper(model) or any(base.__module__ == "ultralytics.nn.tasks" for base in type(model).__mro__)


def is_wrapper(model: object) -> bool:
    """Return whether a model is an object such as `YOLO`, which contains a network."""
    return any(base.__module__ == "ultralytics.engine.model" for base in type(model).__mro__)


def inner_module(model: object) -> Any:
    """Return the network inside a `YOLO` or `RTDETR` object, or the network itself.

    Raises:
        TypeError: an exported model, or a head that the adapters do not support.
    """
    module = getattr(model, "model", None) if is_wrapper(model) else model
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"expected a PyTorch model; got the exported model {module!r}. Load the .pt file it was exported from"
        )
    known = head_names(module)
    if known.isdisjoint({"Detect", "RTDETRDecoder", "Classify", "SemanticSegment", "Depth"}):
        layers: Any = module.model
        raise TypeError(
            "the ultralytics adapters explain heads for detection, instance segmentation, rotated boxes, keypoints, "
            f"classification, semantic segmentation and depth; got a {type(module).__name__} with a "
            f"{type(layers[-1]).__name__} head. Decode its output with detcam.adapters.detector(model, decode=...)"
        )
    return module


def head_names(model: object) -> set[str]:
    """Return the names of the class of a network's head and of its bases; empty for an exported model."""
    layers = getattr(model, "model", None)
    layers = layers if isinstance(layers, nn.Sequential) else getattr(layers, "model", None)
    return base_names(layers[-1]) if isinstance(layers, nn.Sequential) else set()


def base_names(module: object) -> set[str]:
    """Return the names of a module's class and of its bases."""
    return {base.__name__ for base in type(module).__mro__}


def network_input_size(
    model: object, image_size: int | Sequence[int] | None, default: int, stride: int
) -> tuple[int, int]:
    """Return the height and width of the network's input, rounded up to the stride.

    Args:
        model: a `YOLO`-like object or network.
        image_size: one number or height and width; None takes `imgsz` from the overrides of a `YOLO` object or from the
            training arguments of the network.
        default: the size where neither is known.
        stride: the sides are multiples of this.

    Raises:
        ValueError: the size is not one or two positive integers.
    """
    settings: list[Any] = [getattr(model, "overrides", None), getattr(model, "args", None)]
    known = [value.get("imgsz") if isinstance(value, Mapping) else getattr(value, "imgsz", None) for value in settings]
    size = checked_size(next((value for value in (checked_size(image_size), *known) if value), default)) or default
    sides = (size, size) if isinstance(size, int) else size
    height, width = (-(-side // stride) * stride for side in sides)
    return height, width


@contextmanager
def fresh_attributes(head: object) -> Iterator[None]:
    """Remove a head's caches and export flag, so that its class's defaults apply, and restore them afterwards.

    Caches made in inference mode cannot enter autograd, and caches made in this context must not remain in the model.
    """
    names = ("anchors", "valid_mask", "shapes", "export")
    kept = {name: head.__dict__.pop(name) for name in names if name in head.__dict__}
    try:
        yield
    finally:
        for name in names:
            head.__dict__.pop(name, None)
        head.__dict__.update(kept)
