"""Networks of several inputs: which of them is explained, and which maps of the target layers are its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from detcam.adapters.black_box import gradient_obstacle
from detcam.trace import guarded

if TYPE_CHECKING:
    from detcam.adapters.base import Adapter, Batch
    from detcam.results import Measured

InputKey: TypeAlias = int | str
"""The position of an input among the positional arguments of the network, or the name of a keyword argument."""


def arguments(batch: Batch, key: InputKey | None) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and keyword arguments of the network on its device, the explained input in its place.

    Tensors are copies, because a network may change its input in place, and the batch serves several passes.
    """
    device = batch.inputs.device
    positional = [_copied(value, device) for value in batch.extra_inputs]
    keywords = {name: _copied(value, device) for name, value in batch.model_kwargs.items()}
    if isinstance(key, str):
        keywords[key] = batch.inputs.clone()
    else:
        positional.insert(key or 0, batch.inputs.clone())
    return positional, keywords


def _copied(value: Any, device: torch.device) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def take_input(
    adapter: Adapter, images: Any, model_kwargs: Mapping[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Split the inputs of a call into the explained one, the other positional ones, and keyword arguments.

    Images among the others, such as paths, are prepared as the adapter prepares images.

    Args:
        adapter: the adapter, whose `input_key` names the input.
        images: a tuple of inputs; for a key that is a name, also a single input, or none (an empty tuple).
        model_kwargs: keyword arguments of the network.

    Raises:
        ValueError: there is no such input.
    """
    key = adapter.input_key
    others = list(images) if isinstance(images, tuple) else [images]
    keywords = dict(model_kwargs)
    if isinstance(key, str):
        if key not in keywords:
            raise ValueError(f"input_key={key!r}: expected this input among model_kwargs; got {sorted(keywords)}")
        explained = keywords.pop(key)
    else:
        _check_key(key, len(others))
        explained = others.pop(key or 0)
    return explained, tuple(_prepared(adapter, item) for item in others), keywords


def _check_key(key: int | None, count: int) -> None:
    if not 0 <= (key or 0) < count:
        raise ValueError(
            f"input_key={key}: expected a tuple of the network's inputs, (first, second), with more than {key}; got "
            f"{count}"
        )


def _prepared(adapter: Adapter, item: Any) -> Any:
    if isinstance(item, Tensor) and item.ndim != 3 or item is None or isinstance(item, (bool, int, float, dict)):
        return item
    return adapter.prepare(adapter.reader.read_all(item)).inputs


def maps_of_input(adapter: Adapter, batch: Batch, measured: Measured, method: str) -> Measured:
    """Return the raw maps of the explained input alone, where several inputs share target layers.

    Args:
        adapter: the adapter, whose `input_key` names the input.
        batch: the network's input.
        measured: the maps of all inputs.
        method: name of the method's class.

    Raises:
        ValueError: the method has not one map for each input.
        RuntimeError: no target layer depends on the input.
    """
    own, count = _levels_of_input(adapter, batch)
    if len(own) == count:
        return measured
    if len(measured.maps) != count:
        raise ValueError(
            f"{method} does not tell the inputs apart that share target layer {', '.join(adapter.layer_names)}; use a "
            "method such as GradCAM or HiResCAM"
        )
    return measured.of_levels(own)


def _levels_of_input(adapter: Adapter, batch: Batch) -> tuple[list[int], int]:
    """Return the maps of the target layers that depend on the explained input, and the number of all maps.

    A layer that several inputs share runs once for each, or once for all of them in one batch. One pass tells which
    maps have a gradient with respect to the explained input.

    Raises:
        RuntimeError: no map depends on it.
    """
    if gradient_obstacle(adapter.model) is not None:
        return [], 0
    with guarded(adapter.model, gradients=True, quiet=True):
        inputs = batch.inputs.detach().clone().requires_grad_(True)
        probe = replace(batch, inputs=inputs)
        with adapter.trace(probe, gradients=False) as trace:
            adapter.forward(probe)
        levels = [level for layer in trace.live_activations() for level in layer]
        own = [index for index, level in enumerate(levels) if _depends(level, inputs)]
    if not own:
        raise RuntimeError(
            f"target layer {', '.join(adapter.layer_names)} does not depend on input {adapter.input_key!r}; choose a "
            "layer that reads it, with target_layers="
        )
    return own, len(levels)


def _depends(level: Tensor, inputs: Tensor) -> bool:
    if not level.requires_grad:
        return False
    noise = torch.randn(level.shape, generator=torch.Generator().manual_seed(0)).to(level)
    # A weighted sum: the plain one does not depend on the input after a normalization.
    (gradient,) = torch.autograd.grad((level * noise).sum(), inputs, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient.any())
