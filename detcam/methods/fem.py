"""FEM."""

from __future__ import annotations

from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.cam import BaseCAM
from detcam.layers import LayersLike
from detcam.trace import ReshapeTransform


class FEM(BaseCAM):
    r"""Mask of each channel's unusually large activations, weighted by the channel's mean; independent of the target.

    .. math:: L = \sum_k \mu_k \, [A^k \ge \mu_k + K \sigma_k]

    with :math:`A^k` channel k of the target layer's activation, and :math:`\mu_k`, :math:`\sigma_k` its mean and
    standard deviation over positions. (``pytorch_grad_cam`` exchanges mask and weight: it weights the activation by the
    fraction of large values.)

    Fuad et al., *Features Understanding in 3D CNNs for Actions Recognition in Video*, IPTA 2020,
    https://hal.science/hal-02963298.

    Use it to inspect the strongest features; it ignores the target and needs no gradient.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        k: threshold K, in standard deviations above the mean.
    """

    name = "fem"
    paper = "Fuad et al., Features Understanding in 3D CNNs, IPTA 2020, https://hal.science/hal-02963298"
    cost = "1 forward"
    use = "inspecting the strongest features; ignores the target"
    uses_gradients = False
    class_discriminative = False

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        k: float = 2.0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.k = k

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        mean = activations.mean((2, 3), keepdim=True)
        deviation = activations.std((2, 3), correction=0, keepdim=True)
        strong = (activations >= mean + self.k * deviation) & (deviation > 0)
        return mean * strong
