"""Small networks with known answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class TinyCNN(nn.Module):
    """Two convolutions, mean over positions, a linear head: small enough for loops in float64."""

    def __init__(self, classes: int = 3, *, inplace: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.relu2 = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(5, classes)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.conv2(x))
        return self.head((x * x).mean((2, 3)))


class Snapshot:
    """Everything about a model and the process that a call must leave as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.identity = {name: id(parameter) for name, parameter in model.named_parameters()}
        self.flags = {name: module.training for name, module in model.named_modules()}
        self.requires = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self.grads = {name: copy.deepcopy(parameter.grad) for name, parameter in model.named_parameters()}
        self.dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        self.rng = torch.get_rng_state()
        self.grad_mode = torch.is_grad_enabled()

    def check(self) -> None:
        """Assert that nothing differs."""
        model = self.model
        state = model.state_dict()
        assert state.keys() == self.state.keys()
        for name, tensor in state.items():
            assert torch.equal(tensor, self.state[name]), f"{name} changed"
        assert {name: id(parameter) for name, parameter in model.named_parameters()} == self.identity
        assert {name: module.training for name, module in model.named_modules()} == self.flags
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == self.requires
        assert {name: parameter.dtype for name, parameter in model.named_parameters()} == self.dtypes
        for name, parameter in model.named_parameters():
            before = self.grads[name]
            same = parameter.grad is None if before is None else torch.equal(parameter.grad, before)
            assert same, f"{name}.grad changed"
        for name, module in model.named_modules():
            hooks: list[Any] = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks]
            assert not any(hooks), f"{name} kept a hook"
        assert torch.equal(torch.get_rng_state(), self.rng), "the random state moved"
        assert torch.is_grad_enabled() == self.grad_mode
        assert not torch.is_inference_mode_enabled()


def tensors(heatmaps: Any) -> Any:
    """The result of calling a method as tensors: an array, or a list of arrays."""
    if isinstance(heatmaps, list):
        return [torch.from_numpy(each) for each in heatmaps]
    return torch.from_numpy(heatmaps)


def broken_rule(check: Callable[[], None]) -> str | None:
    """The rule that a contract check finds broken: the message of its AssertionError; None if it finds none."""
    try:
        check()
    except AssertionError as error:
        return str(error)
    return None
