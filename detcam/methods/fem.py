"""FEM."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detcam.adapters.base import Adapter
from detcam.cam import BaseCAM
from detcam.trace import ReshapeTransform


class FEM(BaseCAM):
    r"""Where each channel is unusually strong, weighted by the channel's mean; ignores the target.

    .. math:: L = \sum_k \mu_k \, [A^k \ge \mu_k + K \sigma_k]

    with mean and standard deviation of each channel over places. (``pytorch_grad_cam`` has mask and weight the other
    way round: the share of strong places weighs the activation.)

    Fuad et al., *Features Understanding in 3D CNNs for Actions Recognition in Video*, IPTA 2020,
    https://hal.science/hal-02963298.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        k: how many standard deviations above its mean a channel counts as strong.
    """

    name = "fem"
    paper = "Fuad et al., Features Understanding in 3D CNNs, IPTA 2020, https://hal.science/hal-02963298"
    cost = "1 forward"
    use = "a look at the strongest features; ignores the target"
    uses_gradients = False
    class_discriminative = False

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
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
