"""The state of a model and of the process that a call must leave unchanged."""

from __future__ import annotations

import torch
from torch import nn


def require(condition: bool, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


class ModelState:
    """A record of a model's weights, flags, gradients and hooks, and of torch's random state and autograd mode.

    Args:
        model: the model that a call must leave as it is.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> state = ModelState(model)
        >>> _ = model(torch.zeros(1, 2))
        >>> state.check()
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.gradients = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in model.named_parameters()
        }
        self.flags = _flags(model)
        self.hooks = _hooks(model)
        self.random_state = torch.get_rng_state()
        self.grad_enabled = torch.is_grad_enabled()

    def check(self) -> None:
        """Compare with the model as it is now.

        Raises:
            AssertionError: something differs; the message names it.
        """
        weights = self.model.state_dict()
        require(weights.keys() == self.weights.keys(), "the model's state dict has other entries than before the call")
        for name, tensor in weights.items():
            require(torch.equal(tensor, self.weights[name]), f"{name} has another value than before the call")
        for name, parameter in self.model.named_parameters():
            before = self.gradients.get(name)
            same = parameter.grad is None if before is None else _equal(parameter.grad, before)
            require(same, f"{name}.grad has another value than before the call")
        for kind, old, new in zip(_FLAG_NAMES, self.flags, _flags(self.model), strict=True):
            changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            require(not changed, f"the {kind} of {', '.join(changed[:3])} differs from before the call")
        left = [name for name, count in _hooks(self.model).items() if count != self.hooks.get(name, 0)]
        require(not left, f"the hooks of {', '.join(left[:3])} differ from before the call")
        require(torch.equal(torch.get_rng_state(), self.random_state), "torch's global random state was advanced")
        require(torch.is_grad_enabled() == self.grad_enabled, "autograd's mode differs from before the call")
        require(not torch.is_inference_mode_enabled(), "inference mode is still on after the call")


_FLAG_NAMES = ("parameter object", "requires_grad flag", "dtype", "training flag")


def _flags(model: nn.Module) -> tuple[dict[str, object], ...]:
    parameters = dict(model.named_parameters())
    return (
        {name: id(parameter) for name, parameter in parameters.items()},
        {name: parameter.requires_grad for name, parameter in parameters.items()},
        {name: parameter.dtype for name, parameter in parameters.items()},
        {name: module.training for name, module in model.named_modules()},
    )


def _hooks(model: nn.Module) -> dict[str, int]:
    return {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for name, module in model.named_modules()
    }


def _equal(gradient: torch.Tensor | None, before: torch.Tensor) -> bool:
    return gradient is not None and torch.equal(gradient, before)
