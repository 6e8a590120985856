"""SSGrad-CAM++."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM
from detcam.methods.ssgrad_cam import space_map


class SSGradCAMPlusPlus(BaseCAM):
    r"""SSGrad-CAM with the weights of Grad-CAM++, for scores that depend on a part of the map.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k w_k\, S^k \odot A^k\Big),\quad
        w_k = \sum_{ij} \alpha^k_{ij} \mathrm{ReLU}(g^k_{ij}),\quad
        \alpha^k_{ij} = \frac{(g^k_{ij})^2}{2 (g^k_{ij})^2 M^k_{ij} + \sum_{ab} A^k_{ab} M^k_{ab} (g^k_{ij})^3}

    with :math:`A^k` channel k of the target layer's activation, :math:`g^k` the score's gradient (of its exponential,
    as in `GradCAMPlusPlus`), :math:`S^k` the space map of `SSGradCAM`, and :math:`M^k` 1 where the gradient is not 0.
    Both sides of the fraction are divided by the square, so small gradients do not vanish next to a constant.

    Yamauchi, *Spatial Sensitive Grad-CAM++: Improved Visual Explanation for Object Detectors via Weighted Combination
    of Gradient Map*, CVPR Workshops 2024,
    https://openaccess.thecvf.com/content/CVPR2024W/XAI4CV/html/Yamauchi_Spatial_Sensitive_Grad-CAM_Improved_Visual_Explanation_for_Object_Detectors_via_CVPRW_2024_paper.html.

    Use it for boxes, to compare with the paper; `ODAM` is the default.
    """

    name = "ssgradcamplusplus"
    paper = "Yamauchi, Spatial Sensitive Grad-CAM++, CVPR Workshops 2024 (XAI4CV)"
    cost = "1 forward, 1 backward per target"
    use = "boxes: Grad-CAM++ with spatial weights"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        read = gradients != 0
        total = (activations * read).sum((2, 3), keepdim=True)
        positive = gradients.clamp(min=0)
        weights = (positive / (2 + total * positive)).sum((2, 3), keepdim=True)
        return weights * space_map(gradients) * activations
