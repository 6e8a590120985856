"""Eigen-CAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM
from detcam.utils.pca import first_principal_component


class EigenCAM(BaseCAM):
    r"""First principal component of the activations; independent of the target.

    .. math:: L = \mathrm{ReLU}(\bar A v_1), \quad \bar A^T \bar A\, v_1 = \lambda_1 v_1

    with :math:`\bar A` the (hw x C) activations of the target layer, centered over positions as in ``pytorch_grad_cam``
    (the paper does not center them), and :math:`v_1` the first right singular vector. Its sign is arbitrary;
    `detcam.utils.pca` fixes it.

    Muhammad and Yeasin, *Eigen-CAM: Class Activation Map using Principal Components*, IJCNN 2020,
    https://arxiv.org/abs/2008.00299.

    Use it to inspect features; it ignores the target and needs no gradient.
    """

    name = "eigencam"
    paper = "Muhammad and Yeasin, Eigen-CAM, IJCNN 2020, https://arxiv.org/abs/2008.00299"
    cost = "1 forward"
    use = "inspecting features; ignores the target"
    uses_gradients = False
    class_discriminative = False

    def saliency(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return first_principal_component(activations)
