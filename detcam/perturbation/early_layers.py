"""Early layers on windows: a perturbed image passes through a network's first layers only around what has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detcam.adapters.base import Adapter, Batch
from detcam.perturbation.replay_recorder import ReplayRecorder
from detcam.utils.batching import group_by
from detcam.utils.hooks import active_hooks

MAX_WINDOW_FRACTION = 0.5
"""Maximum fraction of the image that a window covers; larger ones are the whole image."""
TYPICAL_SIDE_FRACTION = 0.125
"""Side of a perturbed region relative to the image's, for which the layer that saves most is chosen."""
MIN_SAVED_FRACTION = 0.05
"""Minimum fraction of a pass that windows save; below it, whole images are faster."""
MAX_TRIED_LAYERS = 12
"""Maximum number of layers for which windows are compared with whole images."""
MAX_STRIDE = 32
"""Maximum stride of the layer, and side in pixels of the square whose reach is measured."""
MAX_ROUNDING = 100.0
"""Maximum deviation of windows from whole images, in units of the precision of the numbers."""
MAX_DEVIATION = 0.02
"""The same, relative to the numbers, which are in half precision where this is less."""
MAX_GROWTH = 0.5
"""Maximum area, relative to the image's, by which windows grow altogether so that they run together."""
VALUE_WORK = 64
"""Number of multiplications of a convolution that take as long as reading and writing a value."""
DEFORMABLE_NAMES = ("deform", "dcn")
"""Parts of the names of modules that sample at positions that are computed, possibly by code unknown to PyTorch."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Types of integers by their size in bytes, whose bits are those of a number."""

Read: TypeAlias = Callable[[Any, Batch], Tensor]
"""From a model's raw output for K images, and their batch, to (K, N)."""
CellWindow: TypeAlias = tuple[int, int, int, int]
"""Top, bottom, left and right, in cells."""


class _Reached(Exception):
    """Ends a pass at a layer; carries the layer's output."""


class _WithoutNanPositions(TorchDispatchMode):
    """Ends a pass before NaN becomes a position.

    Operators outside PyTorch, such as deformable convolutions and region pooling, read in memory at positions that they
    compute from NaN, and end the process. So do indices from NaN on a GPU. `grid_sample` reads at positions that
    another image may move.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_safe = func.namespace == "aten" and "grid_sampler" not in func.name()
        result = func(*args, **kwargs or {}) if is_safe else None
        if result is None or _is_rounded(func, args, result):
            raise _Reached(func)
        return result


def _is_rounded(func: Any, args: Any, result: object) -> bool:
    """Whether an operator converts floats to integers."""
    copied = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}.get(func)
    if copied is None or not isinstance(result, Tensor):
        return False
    is_integer = not result.is_floating_point() and not result.is_complex() and result.dtype != torch.bool
    return is_integer and args[copied].is_floating_point()


@dataclass(frozen=True)
class LocalLayer:
    """An early layer whose output at a cell depends on a window of the input.

    Attributes:
        module: the layer.
        stride: side of a cell, input pixels.
        halo: number of cells around a cell that its input pixels reach, and whose pixels reach it.
        saved_fraction: estimated fraction of a pass that windows save, in [0, 1].
    """

    module: nn.Module
    stride: int
    halo: int
    saved_fraction: float


@dataclass
class OriginalPass:
    """The early layers' pass of an unperturbed image.

    Attributes:
        inputs: (1, C, H, W), the network's input.
        features: (1, D, h, w), the layer's output.
        recorder: replays the modules behind the layer.
    """

    inputs: Tensor
    features: Tensor
    recorder: ReplayRecorder = field(repr=False)


class EarlyLayers:
    """Runs perturbed images through the layers up to a local one on windows, and through the others whole.

    The early layers run on a window around the changed pixels, with a halo that is cut off where the window's edge is
    not the image's; the result replaces that part of the unperturbed image's features. Scores are equal to those of
    whole passes up to rounding, which `find_early_layers` has tested.

    Args:
        adapter: the model.
        layer: the layer; the scores depend on its output, and on no output of modules before it.
        size_hw: height and width, in pixels, of the input for which that holds, and of others that the layer's cells
            divide with the same remainder: padding may depend on it.
    """

    def __init__(self, adapter: Adapter, layer: LocalLayer, size_hw: Sequence[int]) -> None:
        self.adapter = adapter
        self.layer = layer
        self._remainders = self._remainders_of(size_hw)

    def original(self, batch: Batch) -> OriginalPass | None:
        """Pass an unperturbed image, a batch of one, through the early layers; None if its size does not suit them."""
        size_hw = batch.inputs.shape[-2:]
        if self._remainders_of(size_hw) != self._remainders:
            return None
        recorder = ReplayRecorder(self.adapter.model, self.layer.module)
        with recorder.record():
            features = self.until_layer(batch)
        if features.shape[-2:] != _grid(size_hw, self.layer.stride) or not recorder.forget_outputs():
            return None
        return OriginalPass(batch.inputs, features, recorder)

    def _remainders_of(self, size_hw: Sequence[int]) -> list[int]:
        return [side % self.layer.stride for side in size_hw]

    def until_layer(self, batch: Batch) -> Tensor:
        """The layer's output (K, D, h, w); later modules do not run."""

        def stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
            raise _Reached(output)

        try:
            with active_hooks([(self.layer.module, stop)]):
                self.adapter.forward(batch)
        except _Reached as reached:
            output: Tensor = reached.args[0]
            return output
        raise RuntimeError("a pass did not reach the early layer that an earlier pass reached")

    def features(self, batch: Batch, originals: Sequence[OriginalPass]) -> Tensor:
        """The layer's output (K, D, h, w) for perturbed images, computed where it changes.

        Args:
            batch: the K images.
            originals: for each, the unperturbed image, of the same size.
        """
        return self._features(batch, originals, self._windows(batch, originals))

    def _windows(self, batch: Batch, originals: Sequence[OriginalPass]) -> dict[int, CellWindow]:
        """The windows that images need, by row; images without changes have none."""
        height, width = originals[0].features.shape[-2:]
        pairs = zip(batch.inputs, originals, strict=True)
        found = {
            row: self._needed(image, original.inputs[0], height, width) for row, (image, original) in enumerate(pairs)
        }
        return {row: window for row, window in found.items() if window is not None}

    def _features(self, batch: Batch, originals: Sequence[OriginalPass], needed: Mapping[int, CellWindow]) -> Tensor:
        memory_format = _memory_format(originals[0].features)
        found = torch.cat([original.features for original in originals]).contiguous(memory_format=memory_format)
        height, width = found.shape[-2:]
        for rows, size in _of_like_size(needed, height, width):
            windows = {row: _moved(needed[row], size, height, width) for row in rows}
            crops = {row: _crop(batch.inputs[row], window, self.layer.stride) for row, window in windows.items()}
            # The last cells of an image whose sides are no multiples of the stride have fewer pixels.
            shapes = {row: crop.shape for row, crop in crops.items()}
            for equal in group_by(rows, shapes.__getitem__).values():
                inputs = torch.stack([crops[row] for row in equal])
                part = select_rows(batch, equal, inputs.contiguous(memory_format=_memory_format(batch.inputs)))
                for row, output in zip(equal, self.until_layer(part), strict=True):
                    self._paste(found[row], output, windows[row])
        return found

    @contextmanager
    def replaying(self, batch: Batch, originals: Sequence[OriginalPass]) -> Iterator[None]:
        """Passes of perturbed images inside the context start behind the layer; arguments as in `features`.

        They are whole passes if all images change so much that the early layers run on whole images.
        """
        needed = self._windows(batch, originals)
        cells = originals[0].features[0, 0].numel()
        if len(needed) == len(batch.inputs) and all(_is_large(window, cells) for window in needed.values()):
            yield
            return
        features = self._features(batch, originals, needed)
        with originals[0].recorder.replay(features, len(features)):
            yield

    def _needed(self, image: Tensor, original: Tensor, height: int, width: int) -> CellWindow | None:
        """The window that an image (C, H, W) needs: its changed pixels and twice the halo; None without changes."""
        changed = _differences(image, original)
        lines = changed.reshape(len(changed), -1)
        rows = np.flatnonzero(lines.any(1))
        if not len(rows):
            return None
        columns = np.flatnonzero(lines.any(0)) // changed.shape[-1]
        stride, margin = self.layer.stride, 2 * self.layer.halo
        top, left = (max(int(each[0]) // stride - margin, 0) for each in (rows, columns))
        bottom, right = (int(each[-1]) // stride + 1 + margin for each in (rows, columns))
        return top, min(bottom, height), left, min(right, width)

    def _paste(self, features: Tensor, output: Tensor, window: CellWindow) -> None:
        """Replace a part of features (D, h, w) by a window's output, without the halo at edges inside the image."""
        top, bottom, left, right = window
        rows, inner_rows = self._inner(top, bottom, features.shape[-2])
        columns, inner_columns = self._inner(left, right, features.shape[-1])
        features[:, rows, columns] = output[:, inner_rows, inner_columns]

    def _inner(self, start: int, stop: int, cells: int) -> tuple[slice, slice]:
        """What is valid of a window along an axis of `cells` cells, there and in the window."""
        first = start + self.layer.halo if start else 0
        last = stop - self.layer.halo if stop < cells else cells
        return slice(first, last), slice(first - start, last - start)


def find_early_layers(adapter: Adapter, batch: Batch, read: Read) -> EarlyLayers | None:
    """Find the early layers that save most, and compare windows with whole images.

    Locality is measured: a square of NaN in the input reaches the cells that depend on it, whatever the weights are.
    Squeeze-excitation, attention and normalization over the image reach all cells, so that layers after them do not
    qualify. For the layer that saves most, perturbed images must score the same on windows and whole, where the modules
    before the layer return NaN: a score that reads them, as by a skip connection, is NaN, and the next layer is tried.

    Args:
        adapter: the model, inside `guarded`, without gradients.
        batch: an image, a batch of one.
        read: the scores that must be the same.

    Returns:
        The early layers; None if no layer qualifies, or windows would save little.
    """
    has_convolution = any(isinstance(module, nn.Conv2d) for module in adapter.model.modules())
    if not has_convolution or batch.extra_inputs or batch.model_kwargs:  # further inputs may have the image's size
        return None
    variants = [select_rows(batch, [0], inputs[None]) for inputs in _with_noise(batch.inputs)]
    expected: list[Tensor] = []
    for layer in local_layers(adapter, batch)[:MAX_TRIED_LAYERS]:
        expected = expected or [read(adapter.forward(variant), variant) for variant in variants]
        early = EarlyLayers(adapter, layer, batch.inputs.shape[-2:])
        if _is_exact(early, batch, read, variants, expected):
            return early
    return None


def local_layers(adapter: Adapter, batch: Batch) -> list[LocalLayer]:
    """The local layers of a model, the one that saves most first."""
    size_hw = batch.inputs.shape[-2:]
    top, left = (side // 2 // MAX_STRIDE * MAX_STRIDE for side in size_hw)
    inputs = batch.inputs.clone()
    inputs[..., top : top + MAX_STRIDE, left : left + MAX_STRIDE] = torch.nan
    found: list[tuple[nn.Module, int, int, int, int]] = []
    runs: dict[nn.Module, int] = {}
    total = 0

    def measure(module: nn.Module, arguments: Any, output: object) -> None:
        nonlocal total
        total += _work(module, output)
        runs[module] = runs.get(module, 0) + 1
        stride = _stride_of(output, size_hw)
        if stride and isinstance(output, Tensor):
            reached = torch.isnan(output[0]).any(0).cpu().numpy()
            rows = _halo(np.asarray(reached.any(1)), top // stride, MAX_STRIDE // stride)
            columns = _halo(np.asarray(reached.any(0)), left // stride, MAX_STRIDE // stride)
            if rows is not None and columns is not None:
                found.append((module, stride, max(rows, columns), total, output.numel()))

    def stop(module: nn.Module, arguments: Any) -> None:
        raise _Reached(module)

    modules = list(adapter.model.modules())
    deformable = [each for each in modules if any(name in type(each).__name__.lower() for name in DEFORMABLE_NAMES)]
    hooks = active_hooks([(module, measure) for module in modules], before=[(module, stop) for module in deformable])
    # A head may refuse NaN in any way of its own; the early layers have run then.
    with suppress(Exception), hooks, _WithoutNanPositions():
        adapter.forward(select_rows(batch, [0], inputs))
    layers = []
    for module, stride, halo, before, values in found:
        sides = [min(TYPICAL_SIDE_FRACTION * side + 4 * halo * stride, side) / side for side in size_hw]
        fraction = sides[0] * sides[1]
        copied = values * VALUE_WORK  # the unperturbed image's features, in which the window is pasted
        saved = 0.0 if fraction > MAX_WINDOW_FRACTION else (before * (1 - fraction) - copied) / max(total, 1)
        if runs[module] == 1 and saved >= MIN_SAVED_FRACTION:
            layers.append(LocalLayer(module, stride, halo, saved))
    return sorted(layers, key=lambda layer: layer.saved_fraction)[::-1]  # of equal ones, the last comes first


def select_rows(batch: Batch, rows: Sequence[int], inputs: Tensor) -> Batch:
    """Other inputs (K, C, H, W) for K images of a batch without further inputs."""
    return Batch(inputs, tuple(batch.geometries[row] for row in rows), is_ready=batch.is_ready)


def _work(module: nn.Module, output: object) -> int:
    """The multiplications of a convolution; its normalization and activation take as long as `VALUE_WORK` a value."""
    if not isinstance(module, nn.Conv2d) or not isinstance(output, Tensor):
        return 0
    return output.numel() * (module.weight[0].numel() + VALUE_WORK)


def _stride_of(output: object, size_hw: Sequence[int]) -> int | None:
    """The stride of a feature map (1, D, h, w) whose first cell starts at the first pixel; None for other outputs."""
    if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != 1 or not output.is_floating_point():
        return None
    stride = 1
    while stride <= MAX_STRIDE:
        if _grid(size_hw, stride) == tuple(output.shape[-2:]):
            return stride
        stride *= 2
    return None


def _grid(size_hw: Sequence[int], stride: int) -> tuple[int, int]:
    """Rows and columns of cells that cover an image."""
    return -(-size_hw[0] // stride), -(-size_hw[1] // stride)


def _halo(reached: np.ndarray, start: int, length: int) -> int | None:
    """Number of cells that NaN in the `length` cells from `start` on reach beyond them; None if it reaches an edge."""
    cells = np.flatnonzero(reached)
    if not len(cells) or cells[0] == 0 or cells[-1] == len(reached) - 1:
        return None
    return max(start - int(cells[0]), int(cells[-1]) + 1 - start - length, 0)


def _is_exact(
    early: EarlyLayers, batch: Batch, read: Read, variants: Sequence[Batch], expected: Sequence[Tensor]
) -> bool:
    """Whether variants of an image score the same on windows and whole."""
    tolerance = min(MAX_ROUNDING * torch.finfo(batch.inputs.dtype).eps, MAX_DEVIATION)
    try:
        original = early.original(batch)
        if original is None:
            return False
        for variant, scores in zip(variants, expected, strict=True):
            with early.replaying(variant, [original]):
                raw = early.adapter.forward(variant)
            if not bool(((read(raw, variant) - scores).abs() <= tolerance * (1 + scores.abs())).all()):
                return False
            whole, windowed = early.until_layer(variant), early.features(variant, [original])
            if (whole - windowed).abs().amax() > tolerance * whole.abs().amax():
                return False
    except Exception:  # noqa: BLE001 - windows only save time: where they fail in any way, whole images do not
        return False
    return True


def _with_noise(inputs: Tensor) -> Tensor:
    """Three copies of an image (1, C, H, W) with noise in the middle, and in two opposite corners."""
    height, width = (max(1, round(TYPICAL_SIDE_FRACTION * side)) for side in inputs.shape[-2:])
    variants = inputs.repeat(3, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, inputs.shape[1], height, width, generator=generator).to(inputs) * inputs.std()
    top, left = (inputs.shape[-2] - height) // 2, (inputs.shape[-1] - width) // 2
    variants[0, :, top : top + height, left : left + width] += noise[0]
    variants[1, :, :height, :width] += noise[1]
    variants[2, :, -height:, -width:] += noise[2]
    return variants


def _differences(image: Tensor, original: Tensor) -> np.ndarray:
    """The values (H, W, C) bool in which two images (C, H, W) differ."""
    first, second = (each.view(INTEGERS[each.element_size()]).permute(1, 2, 0) for each in (image, original))
    if image.device.type == "cpu":
        return np.asarray(first.numpy() != second.numpy())  # NumPy compares five times as fast as PyTorch
    return (first != second).cpu().numpy()


def _of_like_size(needed: Mapping[int, CellWindow], height: int, width: int) -> list[tuple[list[int], tuple[int, int]]]:
    """The keys of windows that run together, and the rows and columns of cells that hold each of them."""
    groups: list[tuple[list[int], tuple[int, int], int]] = []
    for row, (top, bottom, left, right) in sorted(needed.items(), key=lambda item: _area(item[1])):
        area = _area(needed[row])
        size = bottom - top, right - left
        if _is_large(needed[row], height * width):
            area, size = height * width, (height, width)
        if groups:
            rows, others, total = groups[-1]
            joint = max(size[0], others[0]), max(size[1], others[1])
            if joint[0] * joint[1] * (len(rows) + 1) - total - area <= MAX_GROWTH * height * width:
                groups[-1] = [*rows, row], joint, total + area
                continue
        groups.append(([row], size, area))
    return [(rows, size) for rows, size, _ in groups]


def _is_large(window: CellWindow, cells: int) -> bool:
    """Whether a window is the whole image instead, of so many cells."""
    return _area(window) > MAX_WINDOW_FRACTION * cells


def _area(window: CellWindow) -> int:
    return (window[1] - window[0]) * (window[3] - window[2])


def _moved(window: CellWindow, size: tuple[int, int], height: int, width: int) -> CellWindow:
    """A window of another size that holds a window and lies in the image."""
    top, left = min(window[0], height - size[0]), min(window[2], width - size[1])
    return top, top + size[0], left, left + size[1]


def _crop(image: Tensor, window: CellWindow, stride: int) -> Tensor:
    """The window of an image (C, H, W)."""
    top, bottom, left, right = (stride * edge for edge in window)
    return image[:, top:bottom, left:right]


def _memory_format(tensor: Tensor) -> torch.memory_format:
    is_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
