"""Guided backpropagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detcam.adapters.base import Batch, ModelLike, Target
from detcam.cam import LayerlessCAM
from detcam.data.images import ImageLike
from detcam.geometry import Geometry, normalize, to_pixels
from detcam.results import ImageHeatmaps, Measured, Pass, Reach, values_of
from detcam.targets import ClassifierOutputTarget
from detcam.trace import gradients_of
from detcam.utils.guided_relu import enable_guided_relu, guided_backward
from detcam.utils.precision import work_dtype
from detcam.utils.warnings import warn

SATURATED_FRACTION = 0.01
"""Fraction of a map's positive pixels, the brightest ones, that are clipped to 1."""


class GuidedBackprop(LayerlessCAM):
    r"""Gradient at the input, with negative gradients set to zero at every rectifier of the backward pass.

    .. math:: R^l = [f^l > 0] \, [R^{l+1} > 0] \, R^{l+1}, \qquad L_{ij} = \max_c |R^0_{cij}|

    with :math:`R^l` the backward signal at rectifier l, :math:`f^l` the input of the rectifier, and c the color
    channels. This is the paper's rule for ReLU and ReLU6. For smooth rectifiers (GELU, SiLU, Hardswish, Mish, ELU,
    LeakyReLU, ...) the signal is rectified likewise and their derivative replaces :math:`[f^l > 0]`. Gates (sigmoid,
    tanh) are unchanged. The raw levels are the signed gradients of each color channel; in heatmaps, the brightest 1 %
    of the positive pixels are clipped to 1, because single pixels would leave the rest dark.

    Springenberg et al., *Striving for Simplicity: The All Convolutional Net*, ICLR 2015 workshop,
    https://arxiv.org/abs/1412.6806.

    Use it for fine edges, not as evidence of a cause: Adebayo et al. (NeurIPS 2018, https://arxiv.org/abs/1810.03292)
    show that such maps change little if the network's weights are randomized. `GuidedGradCAM` adds the position.
    """

    name = "guidedbackprop"
    paper = "Springenberg et al., Striving for Simplicity, ICLR 2015, https://arxiv.org/abs/1412.6806"
    cost = "1 forward, 1 full backward per target"
    use = "fine edges; nearly independent of the learned weights, so no evidence of causes"
    covers_receptive_field = True

    def prepare_input(self, batch: Batch) -> Batch:
        return differentiable(batch)

    def measure(self, run: Pass) -> Measured:
        if run.eigen_smooth:
            raise ValueError("guided backpropagation has colors instead of channels; leave out eigen_smooth")
        return guided_gradients(run)

    @staticmethod
    def combine(levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Heatmaps of one image: the maximum over color channels, in original image pixels."""
        return saturate(max_magnitude(levels, geometry))

    def colors(self, result: ImageHeatmaps) -> Tensor:
        """Convert one result of `explain` to color images.

        Returns:
            (N, H, W, C) float32 signed gradients, original image pixels; `deprocess_image` renders one.
        """
        return torch.stack([to_pixels(level, result.geometry) for level in result.saliency], -1).float()


def differentiable(batch: Batch) -> Batch:
    """Return the batch with an input that requires gradients. It is not a leaf, so in-place operations are allowed."""
    return replace(batch, inputs=batch.inputs.detach().requires_grad_(True).clone())


def guided_gradients(run: Pass) -> Measured:
    """Compute the guided gradient of every target at the network's input, one level per color channel.

    The graph is retained for other methods.

    Args:
        run: a pass with a `differentiable` input.

    Raises:
        RuntimeError: a score does not depend on the input, or a gradient is NaN or infinite.
    """
    inputs = run.batch.inputs
    shapes = [(len(row), *inputs.shape[1:]) for row in run.targets]
    gradients = [torch.zeros(shape, dtype=work_dtype(inputs), device=inputs.device) for shape in shapes]
    reach: list[list[Reach]] = [[] for _ in run.targets]
    with enable_guided_relu() as guided_any:
        scalars = run.score()
        for k in range(max(len(row) for row in scalars)):
            images = [image for image, row in enumerate(scalars) if len(row) > k]
            gradient = _at_input(torch.stack([scalars[image][k].reshape(()) for image in images]).sum(), inputs)
            for image in images:
                gradients[image][k] = gradient[image]
                reach[image].append(Reach.measure([(gradient[image] != 0).any(0)], run.batch.geometries[image]))
    if any(run.targets) and not any(guided_any):
        warn(
            "no ReLU or similar rectifier was found between the score and the image, so the gradient is the plain one: "
            "does the model rectify in another way, or is it compiled?",
            UserWarning,
        )
    levels = [[gradient[:, channel] for gradient in gradients] for channel in range(inputs.shape[1])]
    return Measured(levels, values_of(scalars), reach)


def _at_input(total: Tensor, inputs: Tensor) -> Tensor:
    """The guided gradient of a scalar at the network's input (B, C, H, W)."""
    gradient = None
    if total.requires_grad:
        with guided_backward(total):
            (gradient,) = gradients_of(total, [inputs], retain_graph=True)
    if gradient is None:
        raise RuntimeError("the target's score does not depend on the image: the model detaches it from the graph")
    if not bool(torch.isfinite(gradient).all()):
        raise RuntimeError("the gradient at the input is NaN or infinite; use float32")
    return gradient


def max_magnitude(levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """Maximum magnitude over color channels (N, H, W), original image pixels."""
    return to_pixels(torch.stack(list(levels)).abs().amax(0), geometry)


def saturate(maps: Tensor) -> Tensor:
    """Scale non-negative maps (N, H, W) to [0, 1] and clip the brightest 1 % of their positive pixels to 1."""
    saturated = torch.zeros_like(maps)
    for source, out in zip(maps, saturated, strict=True):
        positive = source[source > 0]
        if len(positive):
            # At least one pixel is clipped, so the map's maximum is 1.
            limit = positive.topk(max(1, int(len(positive) * SATURATED_FRACTION))).values[-1]
            out[:] = normalize((source / limit).clamp(max=1)[None])[0]
    return saturated


def guided_backprop(model: ModelLike, image: ImageLike, target: Target | None = None) -> NDArray[np.float32]:
    """Compute the guided gradient of one target as a color image; `deprocess_image` renders it.

    Args:
        model: any supported model, or its adapter.
        image: an image (see `detcam.data.images.ImageLike`), or a normalized (1, C, H, W) tensor.
        target: the target; None takes the top class, or the best detection.

    Returns:
        (H, W, C) float32, signed, original image pixels; zeros if there is no detection.

    Raises:
        ValueError: more than one image.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from detcam import guided_backprop
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> guided_backprop(model.eval(), torch.rand(1, 3, 8, 8)).shape
        (8, 8, 3)
    """
    cam = GuidedBackprop(model)
    results = cam.explain(image, None if target is None else [[target]])
    if len(results) != 1:
        raise ValueError(f"expected one image; got {len(results)}: GuidedBackprop(model).explain takes many")
    colors = cam.colors(results[0])
    return (colors[0] if len(colors) else colors.new_zeros(colors.shape[1:])).numpy()


class GuidedBackpropReLUModel:
    """Guided backpropagation with the interface of ``pytorch_grad_cam``; `guided_backprop` takes any target.

    Args:
        model: a classifier.
        device: device to which the model is moved; None keeps the model's device.
    """

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        self.model = model if device is None else model.to(device)
        self.device = torch.device(device) if device is not None else next(model.parameters()).device

    def __call__(self, input_img: Tensor, target_category: int | None = None) -> NDArray[np.float32]:
        """Compute the guided gradient of a class's logit at the first image of a batch.

        Args:
            input_img: (B, C, H, W) normalized.
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
