"""Target layers and reshape transforms: the default layer of a network, and token grids as feature maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F

from detcam.trace import flatten_tensors, guarded
from detcam.utils.hooks import active_hooks
from detcam.utils.modules import all_modules

LayersLike: TypeAlias = Sequence[nn.Module | str] | nn.Module | str | None
"""Target layers: modules or dotted names, one or several; None takes the default."""

MAX_PREFIX_TOKENS = 8
"""Maximum number of prefix tokens (class token, registers) of a model that does not declare it."""

MAX_INPUT_CHANNELS = 16
"""Number of input channels above which a network's first registered convolution may read features."""

SMALL_PROBE_SIDE = 64
"""Side in pixels of a noise image that tells what the network's output is, where the network takes any size."""

GRADIENT_SCALE = 256.0
"""Factor on the probe's gradients, which would vanish in half precision."""

MIN_GRADIENT_COVERAGE = 0.5
"""Minimum fraction of a target layer's cells with a gradient."""


@dataclass(frozen=True, eq=False)
class _ProbedMap:
    """A map that a module returned during the probe.

    Attributes:
        module: the module.
        output: the map.
        node: the map's autograd node.
        input: the module's first input.
    """

    module: nn.Module
    output: Tensor
    node: Any
    input: Any


def first_tensor(output: object) -> Tensor:
    """Return ``.logits`` of a model's output if it has them, else its first tensor.

    Raises:
        RuntimeError: the output contains no tensor.
    """
    tensors = flatten_tensors(getattr(output, "logits", output))
    if not tensors:
        raise RuntimeError(f"the model returned {type(output).__name__}, no tensor; pass target_layers=")
    return tensors[0]


VOLUME_PROBE_DEPTH = 16
"""Depth of the noise that networks of volumes are probed with."""


def find_target_layers(
    model: nn.Module,
    input_size_hw: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    select_output: Callable[[Any], Tensor] = first_tensor,
) -> list[nn.Module]:
    """Return the last layer on every path from the input to the output, determined by a probe.

    A seeded noise image runs through the model with a hook on every layer. A layer qualifies if

    * its output is a map or a grid of tokens with the input's aspect ratio, at least 2 x 2,
    * it lies on every path from the input to the output (not on a branch or inside an attention layer),
    * at least half of its cells have a gradient (not so after the last attention layer of a transformer whose head
      uses the class token alone), and
    * it runs once and is not a pooling layer.

    The search fails if more maps follow the layer, on parallel branches, than precede it.

    If a normalization layer takes the layer's tokens as its input, as at the start of a transformer block, the
    normalization layer is returned: it has the same cells, with all channels on one scale.

    Args:
        model: a classifier or feature extractor.
        input_size_hw: height and width of the input.
        device: the model's device.
        dtype: the dtype of the model's parameters.
        select_output: function from the model's output to the explained tensor (1, ...).

    Raises:
        RuntimeError: no layer qualifies, or the model cannot run on the probe.
    """
    sizes = probe_sizes(input_size_hw) if takes_volumes(model) else [input_size_hw]
    for size in sizes:
        noise = probe_image(model, size, device, dtype)
        try:
            with guarded(model, gradients=True):
                layer, has_gradient = _probe(model, noise, select_output, {})
                if layer is None and not has_gradient:  # an untrained head of zeros passes no gradient
                    layer, _ = _probe(model, noise, select_output, _noise_for_zeros(model))
            break
        except RuntimeError:
            if size == sizes[-1]:
                raise
    if layer is None:
        raise RuntimeError(
            f"{type(model).__name__} has no single layer that lies on all paths from the input to the output; pass "
            "target_layers=, e.g. the last block of each branch"
        )
    return [layer]


def probe_sizes(size_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes at which a network is tried that need not run at its own size: a small one, then its own.

    The memory of a network with a token for each pixel grows with the square of the pixels.
    """
    small = (min(size_hw[0], SMALL_PROBE_SIDE), min(size_hw[1], SMALL_PROBE_SIDE))
    return list(dict.fromkeys([small, size_hw]))


def probe_image(
    model: nn.Module, input_size_hw: tuple[int, int], device: torch.device, dtype: torch.dtype, *, count: int = 1
) -> Tensor:
    """Return seeded noise (count, C, H, W) in [0, 1] that requires a gradient, with the network's channels.

    For a network of volumes, whose first convolution is a `Conv3d`, it has the depth `VOLUME_PROBE_DEPTH`.
    """
    size = (VOLUME_PROBE_DEPTH, *input_size_hw) if takes_volumes(model) else input_size_hw
    noise = torch.rand((count, input_channels(model), *size), generator=torch.Generator().manual_seed(0))
    return noise.to(device, dtype).requires_grad_(True)


def takes_volumes(model: nn.Module) -> bool:
    """Return whether a network takes volumes (B, C, D, H, W): whether its first convolution is a `Conv3d`."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd))
    return isinstance(next(convolutions, None), nn.Conv3d)


def takes_sequences(model: nn.Module) -> bool:
    """Return whether a network takes sequences (B, C, length): whether all of its convolutions are `Conv1d`."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    return bool(convolutions) and all(isinstance(module, nn.Conv1d) for module in convolutions)


class VolumeMaps:
    """The maps (B, C, d, h, w) of a network of volumes, in a probe."""

    def fits(self, tensor: Tensor) -> bool:
        """Return whether an activation is a map, at least 2 x 2 x 2."""
        return tensor.ndim == 5 and min(tensor.shape[2:]) >= 2

    def to_map(self, tensor: Tensor) -> Tensor:
        """Return the map with depth and height as one axis, (B, C, d * h, w)."""
        return tensor.flatten(2, 3)


def input_channels(model: object) -> int:
    """Return the number of channels of a network's input.

    This is the number of input channels of its first convolution, as registered; 3 if there is none, or if that one
    reads features (more than `MAX_INPUT_CHANNELS`, or as many as a layer returns while none returns 3) and another one
    reads 3.
    """
    if not isinstance(model, nn.Module):
        return 3
    found = [getattr(module, "in_channels", None) for module in model.modules()]
    counts = [count for count in found if isinstance(count, int)]
    outputs = [getattr(module, "out_channels", None) for module in model.modules()]
    returned = {count for count in outputs if isinstance(count, int)}
    if not counts or (
        3 in counts and (counts[0] > MAX_INPUT_CHANNELS or (counts[0] in returned and 3 not in returned))
    ):
        return 3
    return counts[0]


def _probe(
    model: nn.Module, noise: Tensor, select_output: Callable[[Any], Tensor], parameters: dict[str, Tensor]
) -> tuple[nn.Module | None, bool]:
    """Return the layer or None, and whether it has a gradient; `parameters` replace those of the model."""
    reshape = VolumeMaps() if noise.ndim == 5 else infer_reshape(model, (noise.shape[-2], noise.shape[-1]))
    output, maps, runs = _record_maps(model, noise, parameters, reshape)
    scores = select_output(output).float().flatten()
    if not scores.requires_grad:
        raise RuntimeError(
            f"the output of {type(model).__name__} has no gradient with respect to its input (does a part of it run "
            "without autograd?); pass target_layers="
        )
    mixture = torch.randn(len(scores), generator=torch.Generator().manual_seed(1)).to(scores)
    total = GRADIENT_SCALE * (scores * mixture).sum()
    pooled = {item.node for item in maps if _is_pooling(item.module)}
    candidates = [item for item in maps if runs[item.module] == 1 and item.node not in pooled]
    for index in reversed(range(len(candidates))):
        if not all_paths_pass(total.grad_fn, candidates[index].node):
            continue
        chosen, *later = candidates[index:]
        (coverage, *coverages) = _gradient_coverage([item.output for item in (chosen, *later)], total, reshape)
        if coverage is None:
            return None, False
        if coverage < MIN_GRADIENT_COVERAGE:
            continue
        covered = [item for item, part in zip(later, coverages, strict=True) if (part or 0) >= MIN_GRADIENT_COVERAGE]
        if len(covered) > index + 1:
            return None, True
        norms = [item for item in covered if item.input is chosen.output and _is_norm(item.module)]
        return (norms[0] if len(norms) == 1 else chosen).module, True
    return None, True


def _record_maps(
    model: nn.Module, noise: Tensor, parameters: dict[str, Tensor], reshape: InferredReshape | VolumeMaps
) -> tuple[Any, list[_ProbedMap], dict[nn.Module, int]]:
    """Run the model; return its output, every map of its modules, and the number of runs of each module."""
    maps: list[_ProbedMap] = []
    runs: dict[nn.Module, int] = {}

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        runs[module] = runs.get(module, 0) + 1
        if isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd, nn.Linear)):
            return  # its map adds nothing to the one before
        if type(output) is tuple and output and all(item is None for item in output[1:]):  # of some transformers
            output = output[0]
        if isinstance(output, Tensor) and output.requires_grad and len(output) == 1 and reshape.fits(output):
            maps.append(_ProbedMap(module, output, output.grad_fn, inputs[0] if inputs else None))

    try:
        with active_hooks((module, hook) for module in model.modules() if module is not model):
            output = torch.func.functional_call(model, parameters, (noise,)) if parameters else model(noise)
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError) as error:
        raise RuntimeError(
            f"cannot probe {type(model).__name__} with one {tuple(noise.shape)} image ({error}); pass "
            "target_layers=, image_size= if the size is wrong, or input_key= as well if it takes several inputs"
        ) from error
    return output, maps, runs


def all_paths_pass(output: Node | None, node: Node | None) -> bool:
    """Return whether every path of the autograd graph from the output to a leaf (the input) contains a node."""
    visited, stack = {output}, [output] if output is not None else []
    while stack:
        current = stack.pop()
        if current is node:
            continue
        parents = [parent for parent, _ in current.next_functions if parent is not None]
        if not parents and hasattr(current, "variable"):
            return False
        unvisited = [parent for parent in parents if parent not in visited]
        visited.update(unvisited)
        stack.extend(unvisited)
    return True


def _gradient_coverage(
    activations: Sequence[Tensor], total: Tensor, reshape: InferredReshape | VolumeMaps
) -> list[float | None]:
    """Return the fraction of each map's cells with a gradient in any channel, in [0, 1]; None without any."""
    gradients = torch.autograd.grad(total, activations, retain_graph=True, allow_unused=True)
    return [
        None if g is None or not g.any() else float((reshape.to_map(g) != 0).any(1).float().mean()) for g in gradients
    ]


def _noise_for_zeros(model: nn.Module) -> dict[str, Tensor]:
    """Return seeded noise for every weight that is zero throughout."""
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
    """Return the reshape transform of a model whose input has a given size."""
    return InferredReshape(input_size_hw, declared_prefix_tokens(model), last_axis_channels(model))


class InferredReshape:
    """Reshape a layer's output to (B, C, h, w).

    Feature maps (B, C, h, w) are unchanged; channels-last maps (B, h, w, C) are permuted; of tokens (B, N, C) the
    prefix tokens (class token, registers) are dropped and the rest is arranged row by row on the patch grid. The
    layout follows from the input's size: a grid has one stride on both axes. If both orders fit,
    `last_axis_channels` decides.

    Args:
        input_size_hw: height and width of the network's input.
        prefix_tokens: number of tokens before the patches; None infers it from the grid.
        last_axis_channels: channel counts of the model's channels-last maps.
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
        return [self.to_map(tensor) for tensor in flatten_tensors(output)]

    def to_map(self, tensor: Tensor) -> Tensor:
        """Reshape one activation to (B, C, h, w).

        Raises:
            ValueError: the tokens do not form a grid.
        """
        if tensor.ndim == 4:
            return tensor.permute(0, 3, 1, 2) if self.is_channels_last(tensor) else tensor
        if tensor.ndim == 3:
            height, width, prefix = self._grid(tensor.shape[1])
            return tensor[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        return tensor

    def fits(self, tensor: Tensor) -> bool:
        """Return whether an activation is a map of the input, at least 2 x 2."""
        if tensor.ndim not in (3, 4):
            return False
        try:
            height, width = self.to_map(tensor).shape[-2:]
        except ValueError:
            return False
        return min(height, width) >= 2 and self._one_stride(height, width)

    def is_channels_last(self, tensor: Tensor) -> bool:
        """Return whether an activation (B, x, y, z) is (B, h, w, C) rather than (B, C, h, w)."""
        _, first, second, third = tensor.shape
        if not self._one_stride(first, second):
            return False
        return not self._one_stride(second, third) or third in self.last_axis_channels

    def _one_stride(self, height: int, width: int) -> bool:
        """Return whether a grid can have one stride on both axes, with a tolerance of one cell for padding."""
        (low_y, high_y), (low_x, high_x) = (
            (size / (cells + 1), size / max(cells - 1, 1e-9))
            for size, cells in zip(self.input_size_hw, (height, width), strict=True)
        )
        return max(low_y, low_x) <= min(high_y, high_x)

    def _grid(self, tokens: int) -> tuple[int, int, int]:
        """Return height and width of the patch grid, and the number of prefix tokens."""
        known = self.prefix_tokens
        for whole in (True, False):  # grids of whole patches first: the others fit too many numbers
            prefixes = range((MAX_PREFIX_TOKENS if whole else 1) + 1) if known is None else (known, 0)
            for prefix in prefixes:
                for height, width in self._grids(whole):
                    if height * width + prefix == tokens:
                        return height, width, prefix
        raise ValueError(
            f"cannot arrange {tokens} tokens on a grid for an input of {self.input_size_hw[0]} x "
            f"{self.input_size_hw[1]}; pass reshape_transform="
        )

    def _grids(self, whole: bool) -> Iterator[tuple[int, int]]:
        """Iterate over the grids of square patches, finest first: of whole patches, or cropped and padded ones."""
        height, width = self.input_size_hw
        for stride in range(1, max(height, width) + 1):
            if not whole:
                yield height // stride, width // stride
                yield -(-height // stride), -(-width // stride)
            elif height % stride == 0 and width % stride == 0:
                yield height // stride, width // stride


def declared_prefix_tokens(model: nn.Module) -> int | None:
    """Return the number of prefix tokens that a transformer declares, or None."""
    for module in all_modules(model):
        declared = getattr(module, "num_prefix_tokens", None)
        if isinstance(declared, int):
            return declared
        if isinstance(getattr(module, "class_token", None), Tensor):
            return 1
    return None


def last_axis_channels(model: nn.Module) -> frozenset[int]:
    """Return the channel counts of a model's channels-last maps: normalized there, no input of a convolution."""
    modules = all_modules(model)
    normalized = {m.normalized_shape[-1] for m in modules if isinstance(m, nn.LayerNorm)}
    return frozenset(normalized - {m.in_channels for m in modules if isinstance(m, nn.Conv2d)})


def vit_reshape_transform(tensor: Tensor, height: int = 14, width: int = 14) -> Tensor:
    """Reshape tokens (B, 1 + height * width, C) of a ViT with a class token to (B, C, height, width)."""
    return tensor[:, 1:].transpose(1, 2).unflatten(2, (height, width))


def swinT_reshape_transform(tensor: Tensor, height: int = 7, width: int = 7) -> Tensor:
    """Reshape tokens (B, height * width, C) or maps (B, height, width, C) of a Swin to (B, C, height, width)."""
    return tensor.reshape(len(tensor), height, width, tensor.shape[-1]).permute(0, 3, 1, 2)


def fasterrcnn_reshape_transform(x: Mapping[str, Tensor]) -> Tensor:
    """Concatenate the magnitudes of a feature pyramid's levels over channels, resized to the level ``pool``."""
    size = x["pool"].shape[-2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in x.values()], 1)
