"""Guided backpropagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Batch, Target
from detcam.cam import LayerlessCAM, value_of
from detcam.geometry import Geometry, normalize, to_pixels
from detcam.guided_relu import guided, guiding
from detcam.outputs import work_dtype
from detcam.results import ImageHeatmaps, Measured, Pass, Reach
from detcam.targets import ClassifierOutputTarget
from detcam.utils.warnings import warn

BRIGHTEST = 0.01


class GuidedBackprop(LayerlessCAM):
    r"""The gradient at the image itself, with what lowers the score cut off at every rectifier on the way back.

    .. math:: R^l = [f^l > 0] \, [R^{l+1} > 0] \, R^{l+1}, \qquad L_{ij} = \max_c |R^0_{cij}|

    R is what comes back from the score, f what went into the rectifier. For ReLU and ReLU6 this is the paper's rule.
    For its smooth relatives (GELU, SiLU, Hardswish, Mish, ELU, LeakyReLU, ...) what comes back is cut at 0 likewise,
    and their own derivative stands for [f > 0]. Gates (sigmoid, tanh) are left alone. The map's raw levels are the
    signed gradients of each colour channel; the brightest 1 % of a map's pixels that are not 0 all count as 1, since
    single pixels would leave the rest dark.

    Sharp, but not a test of the cause: Adebayo et al. (NeurIPS 2018, https://arxiv.org/abs/1810.03292) show that such
    maps change little when the network's weights are randomised. Read it as "which edges", with another method's
    "where" (`GuidedGradCAM`).

    Springenberg et al., *Striving for Simplicity: The All Convolutional Net*, ICLR 2015 workshop,
    https://arxiv.org/abs/1412.6806.
    """

    name = "guidedbackprop"
    paper = "Springenberg et al., Striving for Simplicity, ICLR 2015, https://arxiv.org/abs/1412.6806"
    cost = "1 forward, 1 full backward per target"
    use = "single pixels and edges; hardly depends on what was learnt, so not for causes"
    reaches_all = True

    def entering(self, batch: Batch) -> Batch:
        return differentiable(batch)

    def measure(self, run: Pass) -> Measured:
        if run.eigen_smooth:
            raise ValueError("guided backpropagation has colours instead of channels; leave out eigen_smooth")
        return guided_gradients(run)

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """One image's heatmaps: the strongest colour channel of each pixel, in the image's pixels."""
        return brightened(strength(levels, geometry))

    def colors(self, result: ImageHeatmaps) -> Tensor:
        """The gradients of one result of `explain` as colour images.

        Returns:
            (N, H, W, C) float32, signed, pixels of the original image; `deprocess_image` makes one visible.
        """
        return torch.stack([to_pixels(level, result.geometry) for level in result.saliency], -1).float()


def differentiable(batch: Batch) -> Batch:
    """A batch whose input enters autograd. It is no leaf, so a network may work on it in place."""
    return replace(batch, inputs=batch.inputs.detach().requires_grad_(True).clone())


def guided_gradients(run: Pass) -> Measured:
    """The guided gradient of every target at the network's input, one level for each colour channel.

    The graph is kept, for other methods to follow.

    Args:
        run: a pass whose input is `differentiable`.

    Raises:
        RuntimeError: a score does not depend on the input, or a gradient is NaN or infinite.
    """
    inputs = run.batch.inputs
    shapes = [(len(row), *inputs.shape[1:]) for row in run.targets]
    found = [torch.zeros(shape, dtype=work_dtype(inputs), device=inputs.device) for shape in shapes]
    reach: list[list[Reach]] = [[] for _ in run.targets]
    with guiding() as met:
        scalars = run.adapter.score(run.outputs, run.targets) if any(run.targets) else [[] for _ in run.targets]
        for k in range(max(len(row) for row in scalars)):
            images = [image for image, row in enumerate(scalars) if len(row) > k]
            gradient = _at_input(torch.stack([scalars[image][k].reshape(()) for image in images]).sum(), inputs)
            for image in images:
                found[image][k] = gradient[image]
                reach[image].append(Reach.measure([(gradient[image] != 0).any(0)], run.batch.geometries[image]))
    if any(run.targets) and not any(met):
        warn(
            "no ReLU or its like was met on the way from the score to the image, so the gradient is the plain one: "
            "does the model rectify in another way, or is it compiled?",
            UserWarning,
        )
    levels = [[gradient[:, channel] for gradient in found] for channel in range(inputs.shape[1])]
    return Measured(levels, [[value_of(scalar) for scalar in row] for row in scalars], reach)


def _at_input(total: Tensor, inputs: Tensor) -> Tensor:
    """The guided gradient of a scalar at the network's input (B, C, H, W)."""
    gradient = None
    if total.requires_grad:
        with guided(total):
            (gradient,) = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise RuntimeError("the target's score does not depend on the image: the model cuts gradients on the way")
    if not bool(torch.isfinite(gradient).all()):
        raise RuntimeError("the gradient at the input is NaN or infinite; use float32")
    return gradient


def strength(levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """The greatest magnitude over colour channels, (N, H, W) in the pixels of the image."""
    return to_pixels(torch.stack(list(levels)).abs().amax(0), geometry)


def brightened(maps: Tensor) -> Tensor:
    """Maps (N, H, W) of 0 and more in [0, 1], such that the brightest 1 % of the pixels above 0 are 1."""
    found = torch.zeros_like(maps)
    for one, out in zip(maps, found, strict=True):
        above = one[one > 0]
        if len(above):
            # The smallest of the brightest ones: at least one, so that the map's peak is 1.
            limit = above.topk(max(1, int(len(above) * BRIGHTEST))).values[-1]
            out[:] = normalize((one / limit).clamp(max=1)[None])[0]
    return found


def guided_backprop(model: Adapter | nn.Module, image: Any, target: Target | None = None) -> NDArray[np.float32]:
    """The guided gradient of one target as a colour image; `deprocess_image` makes it visible.

    Args:
        model: any supported model, or its adapter.
        image: an image (see `detcam.data.images.ImageLike`), or a normalised (1, C, H, W) tensor.
        target: what is explained; None takes the top class, or the best detection.

    Returns:
        (H, W, C) float32, signed, pixels of the original image; zero where nothing was found.

    Raises:
        ValueError: more than one image.
    """
    cam = GuidedBackprop(model)
    results = cam.explain(image, None if target is None else [[target]])
    if len(results) != 1:
        raise ValueError(f"expected one image; got {len(results)}: GuidedBackprop(model).explain takes many")
    colors = cam.colors(results[0])
    found: NDArray[np.float32] = (colors[0] if len(colors) else colors.new_zeros(colors.shape[1:])).numpy()
    return found


class GuidedBackpropReLUModel:
    """Guided backpropagation in the form that `pytorch_grad_cam` has it; `guided_backprop` takes any target.

    Args:
        model: a classifier.
        device: where to run; the model is moved there. None takes the device that it is on.
    """

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        self.model = model if device is None else model.to(device)
        self.device = torch.device(device) if device is not None else next(model.parameters()).device

    def __call__(self, input_img: Tensor, target_category: int | None = None) -> NDArray[np.float32]:
        """The guided gradient of a class's logit at the first image of a batch.

        Args:
            input_img: (B, C, H, W) normalised.
            target_category: class index; None takes the top class.

        Returns:
            (H, W, C) float32, signed.
        """
        if not isinstance(input_img, Tensor) or input_img.ndim != 4:
            got = tuple(input_img.shape) if isinstance(input_img, Tensor) else type(input_img).__name__
            raise TypeError(f"expected input_img as a (B, C, H, W) tensor; got {got}")
        target = ClassifierOutputTarget(int(target_category)) if target_category is not None else _top_logit
        return guided_backprop(self.model, input_img[:1].to(self.device), target)


def _top_logit(logits: Tensor) -> Tensor:
    return logits.max()
