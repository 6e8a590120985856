"""LayerCAM."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM


class LayerCAM(BaseCAM):
    r"""Weights each activation by its own positive gradient.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \mathrm{ReLU}\Big(\frac{\partial y}{\partial A^k}\Big) \odot A^k\Big)

    with :math:`A^k` channel k of the target layer's activation and y the target's score.

    Jiang et al., *LayerCAM: Exploring Hierarchical Class Activation Maps for Localization*, IEEE Transactions on
    Image Processing 2021, https://mmcheng.net/mftp/Papers/21TIP_LayerCAM.pdf.

    Use it for boxes, and for fine maps at early layers.
    """

    name = "layercam"
    paper = "Jiang et al., LayerCAM, IEEE TIP 2021, https://mmcheng.net/mftp/Papers/21TIP_LayerCAM.pdf"
    cost = "1 forward, 1 backward per target"
    use = "boxes, and fine maps at early layers"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.clamp(min=0) * activations
