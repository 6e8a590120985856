"""EigenGradCAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM
from detcam.utils.pca import first_principal_component


class EigenGradCAM(BaseCAM):
    r"""First principal component of gradient times activation: EigenCAM made class-discriminative.

    .. math:: L = \mathrm{ReLU}(\bar M v_1), \quad M = \frac{\partial y}{\partial A} \odot A

    with M the (hw x C) products centred over places. The sign is fixed by the rule in `detcam.utils.pca`.

    Named in Gildenblat et al., *PyTorch library for CAM methods*, 2021, after Muhammad and Yeasin,
    *Eigen-CAM*, IJCNN 2020, https://arxiv.org/abs/2008.00299.
    """

    name = "eigengradcam"
    paper = "after Muhammad and Yeasin, Eigen-CAM, IJCNN 2020, https://arxiv.org/abs/2008.00299"
    cost = "1 forward, 1 backward a target"
    use = "classification with a cluttered map: keeps its main component"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients * activations

    def saliency(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return first_principal_component(self.contributions(activations, gradients))
