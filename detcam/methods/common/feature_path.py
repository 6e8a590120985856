"""A straight path in feature space, from what a layer would put out without the image's content to what it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detcam.geometry import Geometry
from detcam.trace import ReshapeTransform, Trace, flatten_tensors, map_tensors


class FeaturePath:
    r"""Points between a layer's channel means and its activation.

    .. math:: A(t) = \bar A + t (A - \bar A), \quad \bar A^k = \frac{1}{|P|} \sum_{p \in P} A^k_p

    with P the cells that lie on the image. Cells on padding and tokens without a place (class token, registers)
    stay as they are, so the path changes nothing but the image's cells.

    Args:
        trace: the pass that the image made.
        index: which of its layers.
        geometries: per image, where it lies on the network's input.
        reshape_transform: from the layer's output to (B, C, h, w); it may only pick and rearrange values.

    Attributes:
        differences: per level, (B, C, h, w): activation minus channel mean; 0 on padding.

    Raises:
        ValueError: the reshape transform computes rather than rearranges.
    """

    def __init__(
        self, trace: Trace, index: int, geometries: Sequence[Geometry], reshape_transform: ReshapeTransform
    ) -> None:
        self.differences: list[Tensor] = []
        self._runs: list[tuple[Any, list[Tensor]]] = []
        for output in trace.outputs()[index]:
            moves, differences = _towards_means(output, geometries, reshape_transform, trace.names[index])
            self._runs.append((output, moves))
            self.differences.extend(differences)

    def at(self, run: int, t: float) -> Any:
        """What the layer puts out at t in [0, 1] of the path when it runs for the run-th time in a pass."""
        output, moves = self._runs[run]
        remaining = iter(moves)
        return map_tensors(output, lambda x: x + (1 - t) * next(remaining) if x.is_floating_point() else x)


def _towards_means(
    output: Any, geometries: Sequence[Geometry], reshape_transform: ReshapeTransform, name: str
) -> tuple[list[Tensor], list[Tensor]]:
    """By how much each tensor of an output moves to reach its channel means, and per level the way back.

    The adjoint of a transform that only picks and rearranges puts every value back to where it came from; autograd
    knows it, so no transform has to bring its own inverse.
    """
    with torch.enable_grad():
        tensors = [tensor.detach().requires_grad_(True) for tensor in flatten_tensors(output)]
        remaining = iter(tensors)
        levels = flatten_tensors(
            reshape_transform(map_tensors(output, lambda x: next(remaining) if x.is_floating_point() else x))
        )
        differences = [_minus_means(level.detach(), geometries) for level in levels]
        moves = torch.autograd.grad(levels, tensors, [-difference for difference in differences], allow_unused=True)
    found = [torch.zeros_like(x) if move is None else move for x, move in zip(tensors, moves, strict=True)]
    remaining = iter(found)
    back = flatten_tensors(
        reshape_transform(map_tensors(output, lambda x: x + next(remaining) if x.is_floating_point() else x))
    )
    for level, difference, reached in zip(levels, differences, back, strict=True):
        expected = level.detach() - difference
        if not torch.allclose(reached, expected, rtol=1e-2, atol=1e-3 * float(level.detach().abs().max())):
            raise ValueError(
                f"the reshape transform of target layer {name} computes new values; a path in feature space needs "
                "one that only picks and rearranges. Choose the layers themselves as target_layers"
            )
    return found, differences


def _minus_means(level: Tensor, geometries: Sequence[Geometry]) -> Tensor:
    """A level (B, C, h, w) minus its means over the cells on each image; 0 elsewhere."""
    found = torch.zeros_like(level)
    for image, geometry in enumerate(geometries):
        rows, columns = geometry.valid_cells((level.shape[-2], level.shape[-1]))
        inside = level[image, :, rows, columns]
        found[image, :, rows, columns] = inside - inside.mean((1, 2), keepdim=True)
    return found
