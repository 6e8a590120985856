"""FullGrad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detcam.adapters.base import Batch, ModelLike
from detcam.cam import BaseCAM
from detcam.geometry import Geometry, normalize
from detcam.layers import LayersLike
from detcam.results import Measured, Pass, Reach, values_of
from detcam.trace import ReshapeTransform
from detcam.utils.hooks import active_hooks
from detcam.utils.precision import work_dtype
from detcam.utils.warnings import warn


class FullGrad(BaseCAM):
    r"""Gradient times input, plus every bias times the gradient at its own layer.

    .. math:: L = \psi\Big(\frac{\partial y}{\partial x} \odot x\Big)
        + \sum_l \sum_{c} \psi\Big(\frac{\partial y}{\partial z^l_c}\, b^l_c\Big),\quad
        \psi(m) = \mathrm{up}\Big(\frac{|m| - \min |m|}{\max |m| - \min |m|}\Big)

    with x the input, y the target's score, :math:`z^l_c` and :math:`b^l_c` the output and the bias of channel c of
    layer l, over all convolutions and batch normalizations with a bias (for fixed statistics, b = beta - mean gamma /
    sigma), and up the resize to the image. Layers that run on regions instead of the image are left out.

    Srinivas and Fleuret, *Full-Gradient Representation for Neural Network Visualization*, NeurIPS 2019,
    https://arxiv.org/abs/1905.00780.

    Use it for classification with networks of ReLU layers, for which the decomposition of the score is complete.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted for interchangeability and not used; all layers with a bias contribute.
        reshape_transform: as in `BaseCAM`.
    """

    name = "fullgrad"
    paper = "Srinivas and Fleuret, Full-Gradient Representation, NeurIPS 2019, https://arxiv.org/abs/1905.00780"
    cost = "1 forward, 1 backward per target"
    use = "classification: complete for ReLU networks, biases included"
    explains_volumes = False

    def __init__(
        self, model: ModelLike, target_layers: LayersLike = None, reshape_transform: ReshapeTransform | None = None
    ) -> None:
        super().__init__(model, target_layers or None, reshape_transform)
        if target_layers:
            warn("FullGrad takes all layers with a bias; target_layers is not used", UserWarning)

    def prepare_input(self, batch: Batch) -> Batch:
        return replace(batch, inputs=batch.inputs.detach().clone().requires_grad_(True))

    def recording(self, batch: Batch) -> AbstractContextManager[_LayerRuns]:
        return self._recorded_runs(len(batch.inputs))

    def measure(self, run: Pass) -> Measured:
        if run.eigen_smooth:
            raise ValueError("FullGrad adds up layers of different channels, which have no common principal component")
        batch, outputs, runs = run.batch, run.outputs, run.recorded
        if not isinstance(runs, _LayerRuns):  # the pass was made for another method
            batch = self.prepare_input(batch)
            with self.recording(batch) as runs:
                outputs = run.adapter.outputs(run.adapter.forward(batch), batch)
        scalars = run.adapter.score(outputs, run.targets)
        values = values_of(scalars)
        sizes = sorted({tuple(tensor.shape[-2:]) for tensor in (batch.inputs, *(output for _, output in runs))})
        dtype = work_dtype(batch.inputs)
        maps = {size: [batch.inputs.new_zeros((len(row), *size), dtype=dtype) for row in run.targets] for size in sizes}
        reach: list[list[Reach]] = [[] for _ in run.targets]
        for k in range(max((len(row) for row in scalars), default=0)):
            images = [image for image, row in enumerate(scalars) if len(row) > k]
            total = torch.stack([scalars[image][k].reshape(()) for image in images]).sum()
            gradients = self._gradients(total, [batch.inputs, *(output for _, output in runs)])
            parts = [gradients[0] * batch.inputs.detach()]
            parts += [g * bias.to(g)[:, None, None] for (bias, _), g in zip(runs, gradients[1:], strict=True)]
            for image in images:
                geometry = run.batch.geometries[image]
                reach[image].append(Reach.measure([(gradients[0][image] != 0).any(0)], geometry))
                for part in parts:
                    maps[tuple(part.shape[-2:])][image][k] += _rescaled(part[image].to(dtype), geometry).sum(0)
        return Measured(list(maps.values()), values, reach)

    @staticmethod
    def combine(levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Heatmaps of one image: the sum of the maps of all layers, resized to the image."""
        total = geometry.to_image(levels[0])
        for level in levels[1:]:
            total += geometry.to_image(level)
        return normalize(total) if len(total) else total

    @contextmanager
    def _recorded_runs(self, images: int) -> Iterator[_LayerRuns]:
        """Record every run of a layer with a bias, inside the context."""
        runs = _LayerRuns()
        biases = dict(layer_biases(self.model))

        def record(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != images:
                return output
            if not output.requires_grad:  # it does not depend on the image, or the score not on it
                return output
            runs.append((biases[module], output))
            return output.clone()  # later layers may modify it in place

        with active_hooks((module, record) for module in biases):
            yield runs

    def _gradients(self, total: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        """The score's gradient at each tensor; 0 for tensors that do not contribute."""
        if not total.requires_grad:
            raise RuntimeError("the target's score does not depend on the image: the model detaches it from the graph")
        gradients = torch.autograd.grad(total, tensors, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, gradients, strict=True)]
        if not all(bool(torch.isfinite(g).all()) for g in filled):
            raise RuntimeError("a gradient is NaN or infinite; use float32")
        return filled


class _LayerRuns(list[tuple[Tensor, Tensor]]):
    """The bias (C,) and the output (B, C, h, w) of each run of a layer with a bias."""


def layer_biases(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield every convolution and normalization of maps with its bias (C,)."""
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)) and module.running_mean is not None:
            mean, variance = module.get_buffer("running_mean"), module.get_buffer("running_var")
            scale = 1.0 if module.weight is None else module.weight
            yield module, ((0.0 if bias is None else bias) - mean * scale / (variance + module.eps).sqrt()).detach()
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and bias is not None:
            yield module, bias.detach()


def _rescaled(part: Tensor, geometry: Geometry) -> Tensor:
    """Magnitudes (C, h, w), each channel scaled to [0, 1] over the image; 0 for a constant channel."""
    magnitude = part.abs()
    rows, columns = geometry.valid_cells((part.shape[-2], part.shape[-1]))
    inside = magnitude[:, rows, columns]
    low, high = inside.amin((1, 2), keepdim=True), inside.amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, (magnitude - low) / span.clamp(min=torch.finfo(part.dtype).tiny), 0)
