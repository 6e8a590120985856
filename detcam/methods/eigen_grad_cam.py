"""Eigen-Grad-CAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM
from detcam.utils.pca import first_principal_component


class EigenGradCAM(BaseCAM):
    r"""First principal component of the product of gradient and activation.

    .. math:: L = \mathrm{ReLU}(\bar M v_1), \quad M = \frac{\partial y}{\partial A} \odot A

    with A the activation of the target layer, y the target's score, :math:`\bar M` the (hw x C) products centered over
    positions, and :math:`v_1` the first right singular vector. Its sign is arbitrary; `detcam.utils.pca` fixes it.

    Named in Gildenblat et al., *PyTorch library for CAM methods*, 2021, after Muhammad and Yeasin,
    *Eigen-CAM*, IJCNN 2020, https://arxiv.org/abs/2008.00299.

    Use it for classification if other maps are cluttered: it keeps the main component.
    """

    name = "eigengradcam"
    paper = "after Muhammad and Yeasin, Eigen-CAM, IJCNN 2020, https://arxiv.org/abs/2008.00299"
    cost = "1 forward, 1 backward per target"
    use = "classification with cluttered maps: keeps the main component"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients * activations

    def saliency(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return first_principal_component(self.contributions(activations, gradients))
