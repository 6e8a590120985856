"""Tokens of transformers' models as maps: the grids of the pyramid levels that the tokens belong to."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from torch import Tensor

from detcam.layers import InferredReshape
from detcam.trace import flatten_tensors

STRIDES = (4, 7, 8, 14, 16, 28, 32, 64, 128)
"""Strides of feature maps and sizes of patches."""


@functools.lru_cache(maxsize=256)
def token_grids(tokens: int, input_size_hw: tuple[int, int], levels: int) -> tuple[tuple[int, int], ...] | None:
    """Return height and width of each level, finest first, or None if no strides give this number of tokens.

    Args:
        tokens: number of tokens of all levels.
        input_size_hw: height and width of the network's input.
        levels: number of levels.
    """
    doublings = [tuple(first * 2**level for level in range(levels)) for first in STRIDES]
    others = [strides for strides in itertools.combinations(STRIDES, levels) if strides not in doublings]
    for strides in [*doublings, *others]:
        for rounded_up in (True, False):
            grids = tuple(
                (-(-input_size_hw[0] // step), -(-input_size_hw[1] // step))
                if rounded_up
                else (input_size_hw[0] // step, input_size_hw[1] // step)
                for step in strides
            )
            if sum(height * width for height, width in grids) == tokens:
                return grids
    return None


class TokenReshape(InferredReshape):
    """Reshapes tokens of one or several levels to maps; other outputs are treated as in `InferredReshape`.

    Of a tuple, the first entry is taken.

    Args:
        input_size_hw: height and width of the network's input.
        levels: number of levels of the encoder.
        prefix: number of tokens before the grid, such as a class token.
        suffix: number of tokens after the grid, such as detection tokens.
        coarse_first: whether the coarsest level comes first.
        last_axis_channels: as in `InferredReshape`.
    """

    def __init__(
        self,
        input_size_hw: tuple[int, int],
        levels: int = 1,
        prefix: int = 0,
        suffix: int = 0,
        coarse_first: bool = False,
        last_axis_channels: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(input_size_hw, prefix or None, last_axis_channels)
        self.levels, self.prefix, self.suffix, self.coarse_first = levels, prefix, suffix, coarse_first

    def __call__(self, output: object) -> list[Tensor]:
        maps: list[Tensor] = []
        if isinstance(output, tuple) and output:  # attention weights or the text follow
            output = output[0]
        for tensor in flatten_tensors(output):
            found = self._levels(tensor) if tensor.ndim == 3 else None
            maps += [self.to_map(tensor)] if found is None else found
        return maps

    def _levels(self, tensor: Tensor) -> list[Tensor] | None:
        count = tensor.shape[1] - self.prefix - self.suffix
        for levels in dict.fromkeys((self.levels, 1)):
            grids = token_grids(count, self.input_size_hw, levels)
            if grids is not None:
                grids = grids[::-1] if self.coarse_first else grids
                patches = tensor[:, self.prefix : self.prefix + count].transpose(1, 2)
                return [part.unflatten(2, grid) for part, grid in zip(_split(patches, grids), grids, strict=True)]
        return None


def _split(tokens: Tensor, grids: Sequence[tuple[int, int]]) -> Sequence[Tensor]:
    return tokens.split([height * width for height, width in grids], 2)
