"""ShapleyCAM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from detcam.cam import BaseCAM
from detcam.results import Measured, Pass
from detcam.trace import Trace


class ShapleyCAM(BaseCAM):
    r"""GradCAM with the score's second derivative: each channel's Shapley value to second order.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big),\quad
        \alpha_k = \frac{1}{hw} \sum_{ij} \Big(\frac{\partial y}{\partial A} - \frac{1}{2} H A\Big)^k_{ij}

    with H the Hessian of the score in the layer's activation. For a network that is piecewise linear behind the layer
    H is 0 and this is GradCAM; the paper advises a target with curvature, `ClassifierOutputReST`. The pass is made a
    second time, with operations that can be differentiated twice.

    Cai, *CAMs as Shapley Value-based Explainers*, The Visual Computer 2025, https://arxiv.org/abs/2501.06261.
    """

    name = "shapleycam"
    paper = "Cai, CAMs as Shapley Value-based Explainers, 2025, https://arxiv.org/abs/2501.06261"
    cost = "2 forwards, 2 backwards a target"
    use = "classification: weights of second order"

    def measure(self, run: Pass) -> Measured:
        adapter = run.adapter
        trace = Trace(
            adapter.target_layers,
            adapter.layer_names,
            gradients=True,
            reshape_transform=adapter.reshape_for(run.batch),
        )
        with sdpa_kernel(SDPBackend.MATH), _TwiceDifferentiable():
            with trace:
                raw = adapter.forward(run.batch)
            return super().measure(replace(run, trace=trace, outputs=adapter.outputs(raw, run.batch)))

    def differentiate(self, trace: Trace, score: Tensor, *, retain_graph: bool) -> list[Tensor]:
        gradients, products = trace.second_order(score)
        return [
            gradient - product / 2
            for layer in zip(gradients, products, strict=True)
            for gradient, product in zip(*layer, strict=True)
        ]

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.mean((2, 3))


class _TwiceDifferentiable(TorchFunctionMode):
    """Inside, operations whose second derivative PyTorch lacks are put together from others."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))
