"""RandomCAM."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.cam import BaseCAM
from detcam.layers import LayersLike
from detcam.trace import ReshapeTransform


class RandomCAM(BaseCAM):
    r"""Control: random channel weights, independent of the score.

    .. math:: L = \sum_k w_k A^k, \quad w_k \sim U(-1, 1)

    with :math:`A^k` channel k of the target layer's activation. The map is not rectified, so it is never empty. The
    weights depend on the seed alone and are the same for all images and targets, so results do not depend on the order
    of the images.

    A control, as in Gildenblat et al., *PyTorch library for CAM methods*, 2021,
    https://github.com/jacobgil/pytorch-grad-cam.

    Use it as a control: a method must beat it.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        seed: seed of the weights.
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
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.seed = seed

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        uniform = torch.rand(activations.shape[1], generator=torch.Generator().manual_seed(self.seed))
        return (2 * uniform - 1).to(activations).expand(len(activations), -1)
