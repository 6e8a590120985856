"""Target layers and token grids, found by looking at what layers put out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F

from detcam.trace import flatten_tensors, guarded

LayersLike: TypeAlias = Sequence[nn.Module | str] | nn.Module | str | None
"""Target layers: modules or dotted names, one or several; None takes the default."""

MAX_PREFIX_TOKENS = 8
"""How many tokens may stand before the patches where the model does not say (a class token, registers)."""

GRADIENT_SCALE = 256.0
"""Keeps the probe's gradients from vanishing in half precision."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """One map that the probe met: its module, the map, the map's autograd node, and what the module read."""

    module: nn.Module
    output: Tensor
    node: Any
    read: Any


def first_tensor(output: object) -> Tensor:
    """The scores in whatever a model returns: ``.logits`` if it has them, else the first tensor.

    Raises:
        RuntimeError: there is no tensor.
    """
    tensors = flatten_tensors(getattr(output, "logits", output))
    if not tensors:
        raise RuntimeError(f"the model returned {type(output).__name__}, no tensor; pass target_layers=")
    return tensors[0]


def find_target_layers(
    model: nn.Module,
    input_size_hw: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    read: Callable[[Any], Tensor] = first_tensor,
) -> list[nn.Module]:
    """The last layer whose map everything passes through that the output depends on, found by a probe.

    A seeded noise image runs through the model with a hook on every layer. A layer qualifies if

    * what it puts out is a map or a grid of tokens with the input's proportions, at least 2 x 2,
    * it lies on every path from the input to the output (so no branch, no part of an attention layer),
    * at least half of its places have a gradient (not so behind the last attention of a transformer that
      reads its class token alone), and
    * it ran once and is no pooling layer (whose map is a coarser copy).

    A layer behind which the network forks for longer than it took to get there is refused.

    Where a normalisation layer reads the chosen tokens directly, as at the start of a transformer block, its
    output is taken: the same places, with the channels on one scale.

    Args:
        model: a classifier or feature extractor.
        input_size_hw: height and width of the input.
        device: where the model is.
        dtype: of the model's parameters.
        read: from what the model returns to the (1, ...) tensor that is explained.

    Raises:
        RuntimeError: no layer qualifies, or the model cannot run on the probe.
    """
    noise = probe_image(model, input_size_hw, device, dtype)
    with guarded(model, gradients=True):
        layer, alive = _probe(model, noise, read, {})
        if layer is None and not alive:  # an untrained head may be all zeros, which lets no gradient pass
            layer, _ = _probe(model, noise, read, _without_zeros(model))
    if layer is None:
        raise RuntimeError(
            f"{type(model).__name__} has no single layer with a map through which all passes that the output "
            "depends on; pass target_layers=, e.g. the last block of each branch"
        )
    return [layer]


def probe_image(model: nn.Module, input_size_hw: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Seeded noise in [0, 1], (1, C, H, W), asking for a gradient.

    It has three channels where some convolution reads three, else as many as the first one to be defined reads.
    """
    counts = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    channels = 3 if 3 in counts or not counts else counts[0]
    noise = torch.rand((1, channels, *input_size_hw), generator=torch.Generator().manual_seed(0))
    return noise.to(device, dtype).requires_grad_(True)


def _probe(
    model: nn.Module, noise: Tensor, read: Callable[[Any], Tensor], parameters: dict[str, Tensor]
) -> tuple[nn.Module | None, bool]:
    """The best layer, if any, and whether a gradient arrived; `parameters` stand in for the model's own."""
    reshape = infer_reshape(model, (noise.shape[-2], noise.shape[-1]))
    output, seen, runs = _look(model, noise, parameters, reshape)
    scores = read(output).float().flatten()
    if not scores.requires_grad:
        raise RuntimeError(
            f"the output of {type(model).__name__} has no gradient towards its input (is a part of it run "
            "without autograd?); pass target_layers="
        )
    mixture = torch.randn(len(scores), generator=torch.Generator().manual_seed(1)).to(scores)
    total = GRADIENT_SCALE * (scores * mixture).sum()
    pooled = {item.node for item in seen if _is_pooling(item.module)}
    once = [item for item in seen if runs[item.module] == 1 and item.node not in pooled]
    for index in reversed(range(len(once))):
        if not all_paths_pass(total.grad_fn, once[index].node):
            continue
        chosen, *behind = once[index:]
        (share, *shares) = _shares_of_places([item.output for item in (chosen, *behind)], total, reshape)
        if share is None:
            return None, False
        if share < 0.5:
            continue
        alive = [item for item, part in zip(behind, shares, strict=True) if part is not None and part >= 0.5]
        if len(alive) > index + 1:
            return None, True
        norms = [item for item in alive if item.read is chosen.output and _is_norm(item.module)]
        return (norms[0] if len(norms) == 1 else chosen).module, True
    return None, True


def _look(
    model: nn.Module, noise: Tensor, parameters: dict[str, Tensor], reshape: InferredReshape
) -> tuple[Any, list[_Seen], dict[nn.Module, int]]:
    """Run the model once: its output, every map met on the way, and how often each module ran."""
    seen: list[_Seen] = []
    runs: dict[nn.Module, int] = {}

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        runs[module] = runs.get(module, 0) + 1
        if isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd, nn.Linear)):
            return  # says nothing that the layer before it does not say
        if isinstance(output, Tensor) and output.requires_grad and len(output) == 1 and reshape.fits(output):
            seen.append(_Seen(module, output, output.grad_fn, inputs[0] if inputs else None))

    handles = [module.register_forward_hook(hook) for module in model.modules() if module is not model]
    try:
        output = torch.func.functional_call(model, parameters, (noise,)) if parameters else model(noise)
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError) as error:
        raise RuntimeError(
            f"cannot probe {type(model).__name__} with one {tuple(noise.shape)} image ({error}); pass "
            "target_layers=, or image_size= if the size is wrong"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return output, seen, runs


def all_paths_pass(output: Node | None, node: Node | None) -> bool:
    """Whether every path of the autograd graph from the output to a leaf (the input) leads through a node."""
    visited, waiting = {output}, [output] if output is not None else []
    while waiting:
        current = waiting.pop()
        if current is node:
            continue
        following = [parent for parent, _ in current.next_functions if parent is not None]
        if not following and hasattr(current, "variable"):
            return False
        fresh = [parent for parent in following if parent not in visited]
        visited.update(fresh)
        waiting.extend(fresh)
    return True


def _shares_of_places(activations: Sequence[Tensor], total: Tensor, reshape: InferredReshape) -> list[float | None]:
    """Share of each map's places, in [0, 1], with a gradient in any channel; None where none arrives at all."""
    gradients = torch.autograd.grad(total, activations, retain_graph=True, allow_unused=True)
    return [None if g is None or not g.any() else float((reshape.one(g) != 0).any(1).float().mean()) for g in gradients]


def _without_zeros(model: nn.Module) -> dict[str, Tensor]:
    """Seeded noise for every weight that is zero throughout."""
    generator = torch.Generator().manual_seed(2)
    return {
        name: (0.02 * torch.randn(weight.shape, generator=generator)).to(weight)
        for name, weight in model.named_parameters()
        if weight.ndim > 1 and not weight.any()
    }


def _is_pooling(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower() and next(module.parameters(), None) is None


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def infer_reshape(model: nn.Module, input_size_hw: tuple[int, int]) -> InferredReshape:
    """A reshape transform that looks at each activation, for a model and the size of its input."""
    return InferredReshape(input_size_hw, declared_prefix_tokens(model), last_axis_channels(model))


class InferredReshape:
    """Brings whatever a layer put out to (B, C, h, w).

    Feature maps (B, C, h, w) pass; channels-last maps (B, h, w, C) are permuted; tokens (B, N, C) lose their
    prefix tokens (class token, registers) and are laid out row by row on the patch grid. What is what
    follows from the input: a grid has one stride on both axes. Where both orders would do,
    `last_axis_channels` decides.

    Args:
        input_size_hw: height and width of the network's input.
        prefix_tokens: how many tokens stand before the patches; None looks for the number that leaves a grid.
        last_axis_channels: channel counts that the model keeps on the last axis of its maps.
    """

    def __init__(
        self,
        input_size_hw: tuple[int, int],
        prefix_tokens: int | None = None,
        last_axis_channels: frozenset[int] = frozenset(),
    ) -> None:
        self.input_size_hw = input_size_hw
        self.prefix_tokens = prefix_tokens
        self.last_axis_channels = last_axis_channels

    def __call__(self, output: object) -> list[Tensor]:
        return [self.one(tensor) for tensor in flatten_tensors(output)]

    def one(self, tensor: Tensor) -> Tensor:
        """One activation to (B, C, h, w).

        Raises:
            ValueError: tokens that make no grid.
        """
        if tensor.ndim == 4:
            return tensor.permute(0, 3, 1, 2) if self._channels_last(tensor) else tensor
        if tensor.ndim == 3:
            height, width, prefix = self._grid(tensor.shape[1])
            return tensor[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        return tensor

    def fits(self, tensor: Tensor) -> bool:
        """Whether an activation is a map of the input, at least 2 x 2."""
        if tensor.ndim not in (3, 4):
            return False
        try:
            height, width = self.one(tensor).shape[-2:]
        except ValueError:
            return False
        return min(height, width) >= 2 and self._one_stride(height, width)

    def _channels_last(self, tensor: Tensor) -> bool:
        _, first, second, third = tensor.shape
        if not self._one_stride(first, second):
            return False
        return not self._one_stride(second, third) or third in self.last_axis_channels

    def _one_stride(self, height: int, width: int) -> bool:
        """Whether a grid may have one stride on both axes, each size being off by one at most (padding)."""
        (low_y, high_y), (low_x, high_x) = (
            (size / (cells + 1), size / max(cells - 1, 1e-9))
            for size, cells in zip(self.input_size_hw, (height, width), strict=True)
        )
        return max(low_y, low_x) <= min(high_y, high_x)

    def _grid(self, tokens: int) -> tuple[int, int, int]:
        """Height and width of the patch grid, and how many tokens stand before it."""
        known = self.prefix_tokens
        for whole in (True, False):  # grids of whole patches first: others fit far too many numbers
            prefixes = range((MAX_PREFIX_TOKENS if whole else 1) + 1) if known is None else (known, 0)
            for prefix in prefixes:
                for height, width in self._grids(whole):
                    if height * width + prefix == tokens:
                        return height, width, prefix
        raise ValueError(
            f"cannot lay {tokens} tokens out on a grid for an input of {self.input_size_hw[0]} x "
            f"{self.input_size_hw[1]}; pass reshape_transform="
        )

    def _grids(self, whole: bool) -> Iterator[tuple[int, int]]:
        """Every grid of square patches on the input, finest first; if not of whole ones, cut off or padded."""
        height, width = self.input_size_hw
        for stride in range(1, max(height, width) + 1):
            if not whole:
                yield height // stride, width // stride
                yield -(-height // stride), -(-width // stride)
            elif height % stride == 0 and width % stride == 0:
                yield height // stride, width // stride


def declared_prefix_tokens(model: nn.Module) -> int | None:
    """How many tokens a transformer says stand before its patches; None where it is silent."""
    for module in model.modules():
        declared = getattr(module, "num_prefix_tokens", None)
        if isinstance(declared, int):
            return declared
        if isinstance(getattr(module, "class_token", None), Tensor):
            return 1
    return None


def last_axis_channels(model: nn.Module) -> frozenset[int]:
    """Channel counts that a model keeps on the last axis: normalised there, and read by no convolution."""
    modules = list(model.modules())
    normalised = {m.normalized_shape[-1] for m in modules if isinstance(m, nn.LayerNorm)}
    return frozenset(normalised - {m.in_channels for m in modules if isinstance(m, nn.Conv2d)})


def vit_reshape_transform(tensor: Tensor, height: int = 14, width: int = 14) -> Tensor:
    """Tokens (B, 1 + height * width, C) of a ViT with a class token to (B, C, height, width)."""
    return tensor[:, 1:].transpose(1, 2).unflatten(2, (height, width))


def swinT_reshape_transform(tensor: Tensor, height: int = 7, width: int = 7) -> Tensor:
    """Tokens (B, height * width, C), or maps (B, height, width, C), of a Swin to (B, C, height, width)."""
    return tensor.reshape(len(tensor), height, width, tensor.shape[-1]).permute(0, 3, 1, 2)


def fasterrcnn_reshape_transform(x: Mapping[str, Tensor]) -> Tensor:
    """A feature pyramid as one map: each level's magnitude resized to the level ``pool``, channels joined."""
    size = x["pool"].shape[-2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in x.values()], 1)
