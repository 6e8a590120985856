"""Straight path in feature space from the channel means of a layer's output to its activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detcam.geometry import Geometry
from detcam.trace import ReshapeTransform, Trace, flatten_tensors, map_tensors


class FeaturePath:
    r"""Points on the path between a layer's channel means and its activation.

    .. math:: A(t) = \bar A + t (A - \bar A), \quad \bar A^k = \frac{1}{|P|} \sum_{p \in P} A^k_p

    with :math:`A^k` channel k of the activation, P the cells on the image, and t in [0, 1]. Cells on padding and tokens
    without a position (class token, registers) are constant along the path.

    Args:
        trace: the trace of the forward pass.
        index: index of the layer.
        geometries: per image, the mapping to the network's input.
        reshape_transform: from the layer's output to (B, C, h, w); it may only select and rearrange values.

    Attributes:
        differences: per level, (B, C, h, w), the activation minus the channel mean; 0 on padding.

    Raises:
        ValueError: the reshape transform computes new values.
    """

    def __init__(
        self, trace: Trace, index: int, geometries: Sequence[Geometry], reshape_transform: ReshapeTransform
    ) -> None:
        self.differences: list[Tensor] = []
        self._runs: list[tuple[Any, list[Tensor]]] = []
        for output in trace.outputs()[index]:
            offsets, differences = _offsets_to_means(output, geometries, reshape_transform, trace.names[index])
            self._runs.append((output, offsets))
            self.differences.extend(differences)

    def point(self, run: int, t: float) -> Any:
        """The layer's output at t in [0, 1] of the path, for the run-th run of the layer in a pass."""
        output, offsets = self._runs[run]
        remaining = iter(offsets)
        return map_tensors(output, lambda x: x + (1 - t) * next(remaining) if x.is_floating_point() else x)


def _offsets_to_means(
    output: Any, geometries: Sequence[Geometry], reshape_transform: ReshapeTransform, name: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Offsets of each tensor of an output to its channel means, and per level the differences from the means.

    The adjoint of a transform that only selects and rearranges maps every value back to its position; autograd
    computes it, so a transform needs no inverse.
    """
    with torch.enable_grad():
        tensors = [tensor.detach().requires_grad_(True) for tensor in flatten_tensors(output)]
        remaining = iter(tensors)
        levels = flatten_tensors(
            reshape_transform(map_tensors(output, lambda x: next(remaining) if x.is_floating_point() else x))
        )
        differences = [_minus_means(level.detach(), geometries) for level in levels]
        adjoints = torch.autograd.grad(levels, tensors, [-difference for difference in differences], allow_unused=True)
    offsets = [torch.zeros_like(x) if move is None else move for x, move in zip(tensors, adjoints, strict=True)]
    remaining = iter(offsets)
    means = flatten_tensors(
        reshape_transform(map_tensors(output, lambda x: x + next(remaining) if x.is_floating_point() else x))
    )
    for level, difference, mean in zip(levels, differences, means, strict=True):
        expected = level.detach() - difference
        if not torch.allclose(mean, expected, rtol=1e-2, atol=1e-3 * float(level.detach().abs().max())):
            raise ValueError(
                f"the reshape transform of target layer {name} computes new values; a path in feature space needs "
                "one that only selects and rearranges. Choose the layers themselves as target_layers"
            )
    return offsets, differences


def _minus_means(level: Tensor, geometries: Sequence[Geometry]) -> Tensor:
    """A level (B, C, h, w) minus its means over the cells on each image; 0 elsewhere."""
    differences = torch.zeros_like(level)
    for image, geometry in enumerate(geometries):
        rows, columns = geometry.valid_cells((level.shape[-2], level.shape[-1]))
        inside = level[image, :, rows, columns]
        differences[image, :, rows, columns] = inside - inside.mean((1, 2), keepdim=True)
    return differences
