"""ShapleyCAM."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from detcam.methods.grad_cam import GradCAM
from detcam.results import Measured, Pass
from detcam.trace import Trace


class ShapleyCAM(GradCAM):
    r"""Grad-CAM with the score's second derivative: each channel's Shapley value to second order.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big),\quad
        \alpha_k = \frac{1}{hw} \sum_{ij} \Big(\frac{\partial y}{\partial A} - \frac{1}{2} H A\Big)^k_{ij}

    with :math:`A^k` channel k of the target layer's activation, of height h and width w, y the target's score, and H
    its Hessian with respect to the activation. H is 0 if the network is piecewise linear after the layer, which gives
    `GradCAM`; the paper recommends a target with curvature, `ClassifierOutputReST`. The forward pass runs a second
    time with operations that are twice differentiable. Networks with operations that PyTorch cannot differentiate twice
    raise RuntimeError: for PyTorch 2.6 those with deformable attention.

    Cai, *CAMs as Shapley Value-based Explainers*, The Visual Computer 2025, https://arxiv.org/abs/2501.06261.

    Use it for classification with a nonlinear head or target.
    """

    name = "shapleycam"
    paper = "Cai, CAMs as Shapley Value-based Explainers, 2025, https://arxiv.org/abs/2501.06261"
    cost = "2 forwards, 2 backwards per target"
    use = "classification: second-order weights"

    def measure(self, run: Pass) -> Measured:
        adapter = run.adapter
        with sdpa_kernel(SDPBackend.MATH), _TwiceDifferentiable():
            with adapter.trace(run.batch, gradients=True) as trace:
                trace.reshape_transform = run.trace.reshape_transform  # knows the sizes of volumes' maps
                raw = trace.output = adapter.forward(run.batch)
            return super().measure(replace(run, trace=trace, outputs=adapter.outputs(raw, run.batch)))

    def differentiate(self, trace: Trace, score: Tensor, *, retain_graph: bool) -> list[Tensor]:
        try:
            gradients, products = trace.second_order(score)
        except RuntimeError as error:
            missing = re.search(r"derivative for (\S+) is not implemented", str(error))
            if missing is None:
                raise
            raise RuntimeError(
                f"PyTorch {torch.__version__} has no second derivative of {missing[1]}, which ShapleyCAM needs for "
                "this network; install a newer PyTorch, or use GradCAM, which needs first derivatives alone"
            ) from error
        return [
            gradient - product / 2
            for layer in zip(gradients, products, strict=True)
            for gradient, product in zip(*layer, strict=True)
        ]


class _TwiceDifferentiable(TorchFunctionMode):
    """Replaces operations whose second derivative PyTorch does not implement by equivalent ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))
