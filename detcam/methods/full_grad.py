"""FullGrad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detcam.adapters.base import Adapter, Batch
from detcam.cam import BaseCAM, value_of
from detcam.geometry import Geometry, normalize
from detcam.outputs import work_dtype
from detcam.results import Measured, Pass, Reach
from detcam.trace import ReshapeTransform
from detcam.utils.warnings import warn


class FullGrad(BaseCAM):
    r"""Gradient times input, plus every bias times the gradient at its own layer.

    .. math:: L = \psi\Big(\frac{\partial y}{\partial x} \odot x\Big)
        + \sum_l \sum_{c} \psi\Big(\frac{\partial y}{\partial z^l_c}\, b^l_c\Big),\quad
        \psi(m) = \mathrm{up}\Big(\frac{|m| - \min |m|}{\max |m| - \min |m|}\Big)

    over the channels of the input and of every convolution and batch normalisation with a bias b and output z; of a
    normalisation with fixed statistics, b = beta - mean gamma / sigma. Layers that run on regions rather than on the
    image have no place on the map and are left out.

    Srinivas and Fleuret, *Full-Gradient Representation for Neural Network Visualization*, NeurIPS 2019,
    https://arxiv.org/abs/1905.00780.

    Args:
        model: as in `BaseCAM`.
        target_layers: not used, as all layers with a bias are; accepted because other methods take it.
        reshape_transform: as in `BaseCAM`, for the layers by which the adapter finds its targets.
    """

    name = "fullgrad"
    paper = "Srinivas and Fleuret, Full-Gradient Representation, NeurIPS 2019, https://arxiv.org/abs/1905.00780"
    cost = "1 forward, 1 backward per target"
    use = "classification: complete for networks of ReLU, biases counted"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        super().__init__(model, target_layers or None, reshape_transform)
        if target_layers:
            warn("FullGrad takes all layers with a bias; target_layers is not used", UserWarning)

    def entering(self, batch: Batch) -> Batch:
        return replace(batch, inputs=batch.inputs.detach().clone().requires_grad_(True))

    def watching(self, batch: Batch) -> AbstractContextManager[_Ran]:
        return self._watched(len(batch.inputs))

    def measure(self, run: Pass) -> Measured:
        if run.eigen_smooth:
            raise ValueError("FullGrad adds up layers of different channels, which have no common principal component")
        batch, outputs, ran = run.batch, run.outputs, run.watched
        if not isinstance(ran, _Ran):  # the pass is another method's
            batch = self.entering(batch)
            with self.watching(batch) as ran:
                outputs = run.adapter.outputs(run.adapter.forward(batch), batch)
        scalars = run.adapter.score(outputs, run.targets)
        values = [[value_of(scalar) for scalar in row] for row in scalars]
        sizes = sorted({tuple(tensor.shape[-2:]) for tensor in (batch.inputs, *(output for _, output in ran))})
        dtype = work_dtype(batch.inputs)
        maps = {size: [batch.inputs.new_zeros((len(row), *size), dtype=dtype) for row in run.targets] for size in sizes}
        reach: list[list[Reach]] = [[] for _ in run.targets]
        for k in range(max((len(row) for row in scalars), default=0)):
            images = [image for image, row in enumerate(scalars) if len(row) > k]
            total = torch.stack([scalars[image][k].reshape(()) for image in images]).sum()
            gradients = self._gradients(total, [batch.inputs, *(output for _, output in ran)])
            parts = [gradients[0] * batch.inputs.detach()]
            parts += [g * bias.to(g)[:, None, None] for (bias, _), g in zip(ran, gradients[1:], strict=True)]
            for image in images:
                geometry = run.batch.geometries[image]
                reach[image].append(Reach.measure([(gradients[0][image] != 0).any(0)], geometry))
                for part in parts:
                    maps[tuple(part.shape[-2:])][image][k] += _rescaled(part[image].to(dtype), geometry).sum(0)
        return Measured(list(maps.values()), values, reach)

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """One image's heatmaps: the sum of all layers' maps, resized to the image."""
        total = torch.stack([geometry.to_image(level) for level in levels]).sum(0)
        return normalize(total) if len(total) else total

    @contextmanager
    def _watched(self, images: int) -> Iterator[_Ran]:
        """Inside, each run of a layer with a bias leaves a record."""
        ran = _Ran()
        biases = dict(_biases(self.model))

        def watch(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != images:
                return output
            ran.append((biases[module], output))
            return output.clone()  # what follows may work in place

        handles = [module.register_forward_hook(watch) for module in biases]
        try:
            yield ran
        finally:
            for handle in handles:
                handle.remove()

    def _gradients(self, total: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        """The score's gradient at each tensor, 0 where it has no part."""
        if not total.requires_grad:
            raise RuntimeError("the target's score does not depend on the image: the model cuts gradients on the way")
        found = torch.autograd.grad(total, tensors, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, found, strict=True)]
        if not all(bool(torch.isfinite(g).all()) for g in filled):
            raise RuntimeError("a gradient is NaN or infinite; use float32")
        return filled


class _Ran(list[tuple[Tensor, Tensor]]):
    """The bias (C,) and the output (B, C, h, w) of each run of a layer with a bias."""


def _biases(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Every convolution and normalisation over maps with what it adds to each channel (C,)."""
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)) and module.running_mean is not None:
            mean, variance = module.get_buffer("running_mean"), module.get_buffer("running_var")
            scale = 1.0 if module.weight is None else module.weight
            yield module, ((0.0 if bias is None else bias) - mean * scale / (variance + module.eps).sqrt()).detach()
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and bias is not None:
            yield module, bias.detach()


def _rescaled(part: Tensor, geometry: Geometry) -> Tensor:
    """Magnitudes (C, h, w) with each channel's range over the image brought to [0, 1]; 0 for a constant channel."""
    magnitude = part.abs()
    rows, columns = geometry.valid_cells((part.shape[-2], part.shape[-1]))
    inside = magnitude[:, rows, columns]
    low, high = inside.amin((1, 2), keepdim=True), inside.amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, (magnitude - low) / span.clamp(min=torch.finfo(part.dtype).tiny), 0)
