"""RandomCAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter
from detcam.cam import BaseCAM
from detcam.trace import ReshapeTransform


class RandomCAM(BaseCAM):
    r"""Random channel weights: what a map looks like that knows nothing of the score. A control, not an explanation.

    .. math:: L = \sum_k w_k A^k, \quad w_k \sim U(-1, 1)

    The map is not cut at 0, so that there is always one. The weights are drawn from a seed, and are the same for every
    image and target, so that results do not depend on the order of the images.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        seed: of the weights.
    """

    name = "randomcam"
    paper = "a control; after Gildenblat et al., PyTorch library for CAM methods, 2021"
    cost = "1 forward"
    use = "a control that every method must beat"
    uses_gradients = False
    class_discriminative = False
    rectified = False

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.seed = seed

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        drawn = torch.rand(activations.shape[1], generator=torch.Generator().manual_seed(self.seed))
        return (2 * drawn - 1).to(activations).expand(len(activations), -1)
