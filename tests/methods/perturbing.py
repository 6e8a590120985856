"""What the tests of perturbation methods share: scores of a network with a layer's output changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from detcam.targets import ClassifierOutputTarget

IMAGES = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))
TargetLike = Callable[[Tensor], Tensor]
TARGETS = [[ClassifierOutputTarget(0), ClassifierOutputTarget(2)], [ClassifierOutputTarget(1)]]


def changed_scores(
    model: nn.Module, layer: nn.Module, image: Tensor, target: TargetLike, change: Callable[[Tensor], Tensor]
) -> float:
    """The target's score in a plain pass through the whole network, with the layer's output changed."""
    handle = layer.register_forward_hook(lambda module, inputs, output: change(output.clone()))
    try:
        with torch.no_grad():
            return float(target(model(image[None])[0]))
    finally:
        handle.remove()


def activation(model: nn.Module, layer: nn.Module, image: Tensor) -> Tensor:
    """What a layer puts out for one image, (C, h, w)."""
    kept: list[Tensor] = []
    changed_scores(
        model, layer, image, lambda output: output.sum(), lambda output: kept.append(output.clone()) or output
    )
    return kept[0][0]


class Tokens(nn.Module):
    """Patches, a class token, a block that mixes them, and a head that reads the class token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 6))
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6 * 36, 6 * 36)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1))
        return self.head(torch.tanh(self.mix(tokens.flatten(1)).unflatten(1, (36, 6)))[:, 0])


def count_runs(model: nn.Module) -> dict[str, int]:
    """From now on, how many items went through the forward method of each child."""
    runs = {name: 0 for name, _ in model.named_children()}
    for name, module in model.named_children():
        plain = module.forward

        def counted(*inputs: Tensor, name: str = name, plain: Callable[..., Tensor] = plain) -> Tensor:
            runs[name] += len(inputs[0])
            return plain(*inputs)

        module.forward = counted  # type: ignore[method-assign]
    return runs
