"""Target layers and token grids, found by looking at what layers put out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.trace import flatten_tensors, guarded


def infer_reshape(model: nn.Module, input_size_hw: tuple[int, int]) -> InferredReshape:
    """A reshape transform that looks at each activation, for a model and the size of its input."""
    return InferredReshape(input_size_hw, declared_prefix_tokens(model))


def find_target_layers(
    model: nn.Module, input_size_hw: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> list[nn.Module]:
    """The last layer that still has a map and that the output depends on at more than one place, found by a probe.

    A seeded noise picture runs through the model with a hook on every layer. Pooling layers do not count (their maps
    are copies), nor do layers at which the gradient of the output touches a single token (the last block of a ViT
    that reads its class token only).

    Raises:
        RuntimeError: no layer qualifies, or the model cannot run on the probe.
    """
    noise = torch.rand((1, 3, *input_size_hw), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    reshape = infer_reshape(model, input_size_hw)
    seen: list[tuple[nn.Module, Tensor]] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4) and output.requires_grad and not _is_pooling(module):
            seen.append((module, output))

    with guarded(model, gradients=True):
        handles = [module.register_forward_hook(look) for module in model.modules() if module is not model]
        try:
            output = model(noise.requires_grad_(True))
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise RuntimeError(
                f"cannot probe {type(model).__name__} with one {tuple(noise.shape)} picture ({error}); "
                "pass target_layers="
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        tensors = flatten_tensors(getattr(output, "logits", output))
        if not tensors:
            raise RuntimeError(f"{type(model).__name__} put out no tensor; pass target_layers=")
        total = tensors[0].float().square().sum()
        for module, activation in reversed(seen):
            if _has_map(activation, total, reshape):
                return [module]
    raise RuntimeError(f"no layer of {type(model).__name__} has a map that its output depends on; pass target_layers=")


def _has_map(activation: Tensor, total: Tensor, reshape: InferredReshape) -> bool:
    """Whether an activation is a grid of more than one place whose gradient touches more than one place."""
    try:
        grid = reshape.one(activation)
    except ValueError:
        return False
    if grid.ndim != 4 or grid.shape[-1] * grid.shape[-2] < 4 or min(grid.shape[-2:]) < 2:
        return False
    (gradient,) = torch.autograd.grad(total, activation, retain_graph=True, allow_unused=True)
    if gradient is None:
        return False
    touched = (reshape.one(gradient) != 0).any(1).sum()
    return int(touched) > 1


def _is_pooling(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower()


class InferredReshape:
    """Brings whatever a layer put out to (B, C, h, w).

    Feature maps (B, C, h, w) pass; channels-last maps (B, h, w, C) are permuted; tokens (B, N, C) lose their prefix
    tokens (class token, registers) and are laid out on the patch grid, whose proportions follow the input's.

    Args:
        input_size_hw: height and width of the network's input.
        prefix_tokens: how many tokens stand before the patches; None looks for the number that leaves a grid.
    """

    def __init__(self, input_size_hw: tuple[int, int], prefix_tokens: int | None) -> None:
        self.input_size_hw = input_size_hw
        self.prefix_tokens = prefix_tokens

    def __call__(self, output: Any) -> list[Tensor]:
        return [self.one(tensor) for tensor in flatten_tensors(output)]

    def one(self, tensor: Tensor) -> Tensor:
        """One activation to (B, C, h, w)."""
        if tensor.ndim == 4:
            return tensor.permute(0, 3, 1, 2) if self._channels_last(tensor) else tensor
        if tensor.ndim == 3:
            height, width, prefix = self._grid(tensor.shape[1])
            return tensor[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        return tensor

    def _channels_last(self, tensor: Tensor) -> bool:
        _, first, second, third = tensor.shape
        return self._misfit(first, second) < self._misfit(second, third)

    def _misfit(self, height: int, width: int) -> float:
        """How far a grid is from the input's proportions: 0 for a common stride on both axes."""
        stride_y, stride_x = self.input_size_hw[0] / height, self.input_size_hw[1] / width
        return abs(stride_y - stride_x) / max(stride_y, stride_x)

    def _grid(self, tokens: int) -> tuple[int, int, int]:
        prefixes = range(0, min(tokens, 17)) if self.prefix_tokens is None else (self.prefix_tokens, 0)
        best: tuple[float, int, int, int] | None = None
        for prefix in prefixes:
            patches = tokens - prefix
            for height in range(1, patches + 1) if patches > 0 else ():
                if patches % height:
                    continue
                misfit = self._misfit(height, patches // height)
                if best is None or misfit < best[0] - 1e-9:
                    best = (misfit, height, patches // height, prefix)
            if best is not None and best[0] < 0.15:
                break
        if best is None or best[0] > 0.5:
            raise ValueError(
                f"cannot lay {tokens} tokens out on a grid for an input of {self.input_size_hw[0]} x "
                f"{self.input_size_hw[1]}; pass reshape_transform="
            )
        return best[1], best[2], best[3]


def declared_prefix_tokens(model: nn.Module) -> int | None:
    """How many tokens a transformer says stand before its patches (class token, registers); None where it is silent."""
    for module in model.modules():
        declared = getattr(module, "num_prefix_tokens", None)
        if isinstance(declared, int):
            return declared
        if isinstance(getattr(module, "class_token", None), (Tensor, nn.Parameter)):
            return 1
    return None


def vit_reshape_transform(tensor: Tensor, height: int = 14, width: int = 14) -> Tensor:
    """Tokens (B, 1 + height * width, C) of a ViT with a class token to (B, C, height, width)."""
    return tensor[:, 1:].transpose(1, 2).unflatten(2, (height, width))


def swinT_reshape_transform(tensor: Tensor, height: int = 7, width: int = 7) -> Tensor:  # noqa: N802 (known by it)
    """Tokens (B, height * width, C), or maps (B, height, width, C), of a Swin to (B, C, height, width)."""
    return tensor.reshape(len(tensor), height, width, tensor.shape[-1]).permute(0, 3, 1, 2)


def fasterrcnn_reshape_transform(x: Mapping[str, Tensor]) -> Tensor:
    """A feature pyramid as one map: every level's magnitude resized to the last level's size, channels joined."""
    levels = list(OrderedDict(x).values())
    size = (x["pool"] if "pool" in x else levels[-1]).shape[-2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in levels], 1)
