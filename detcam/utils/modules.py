"""The modules and parameters of a network in one quick traversal: every pass of a small network needs them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def all_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model, each once, in the order of `torch.nn.Module.modules`."""
    found: dict[int, nn.Module] = {}
    stack = [model]
    while stack:
        module = stack.pop()
        if id(module) not in found:
            found[id(module)] = module
            stack.extend(child for child in reversed(module._modules.values()) if child is not None)
    return list(found.values())


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the modules' own parameters, each once."""
    parameters = (parameter for module in modules for parameter in module._parameters.values())
    return list({id(parameter): parameter for parameter in parameters if parameter is not None}.values())
