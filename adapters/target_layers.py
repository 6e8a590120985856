"""Target layers by module or dotted name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from torch import nn

from detcam.adapters.wrappers import without_wrappers
from detcam.layers import LayersLike


def resolve_layers(model: nn.Module, layers: Sequence[nn.Module | str] | nn.Module | str) -> list[nn.Module]:
    """Return the modules of target layers.

    Args:
        model: the network.
        layers: modules of the network or their dotted names.

    Raises:
        ValueError: there are no layers, or a name or module is not in the model.
        TypeError: an entry is neither a module nor a name.
    """
    if not isinstance(layers, Iterable) and not isinstance(layers, nn.Module):
        raise TypeError(f"expected target layers as modules or dotted names; got {type(layers).__name__}")
    single = isinstance(layers, (str, nn.Module)) and not isinstance(layers, nn.ModuleList)
    items = [layers] if single else list(layers)  # type: ignore[arg-type]
    if not items:
        raise ValueError("expected at least one target layer; got an empty list")
    by_name = dict(model.named_modules())
    plain_names = {without_wrappers(name): name for name in reversed(by_name)}
    known = {id(module) for module in by_name.values()}
    modules: list[nn.Module] = []
    for item in items:
        if isinstance(item, str):
            item = item if item in by_name else plain_names.get(without_wrappers(item), item)
            if item not in by_name:
                close = [name for name in by_name if name and name.split(".")[-1] == item.split(".")[-1]]
                close = close or difflib.get_close_matches(item, by_name, n=3, cutoff=0.7)
                close = close or [name for name, _ in model.named_children()]
                if "," in item:
                    close = [str([part.strip() for part in item.split(",")])]
                raise ValueError(
                    f"the model has no layer named {item!r}; did you mean {' or '.join(close[:8])}? "
                    "'detcam layers' lists all layers"
                )
            modules.append(by_name[item])
        elif isinstance(item, nn.Module):
            if id(item) not in known:
                raise ValueError(
                    f"target layer {type(item).__name__} is not part of this model; pass one of its modules"
                )
            modules.append(item)
        else:
            raise TypeError(f"expected target layers as modules or dotted names; got {type(item).__name__}")
    return modules


def without_prefix(layers: LayersLike, prefix: str) -> LayersLike:
    """Return target layers of a wrapper as layers of the network inside it, whose name in the wrapper is `prefix`."""
    if isinstance(layers, str):
        return without_wrappers(layers, prefix) if prefix else layers
    if layers is None or isinstance(layers, nn.Module) or not prefix:
        return layers
    return [without_wrappers(layer, prefix) if isinstance(layer, str) else layer for layer in layers]


def layer_name(model: nn.Module, layer: nn.Module) -> str:
    """Return the dotted name of a module in a model."""
    for name, module in model.named_modules():
        if module is layer:
            return name or type(model).__name__
    return type(layer).__name__
