"""SSGrad-CAM++."""

from __future__ import annotations

from torch import Tensor

from detcam.cam import BaseCAM
from detcam.methods.ssgrad_cam import space_map


class SSGradCAMPlusPlus(BaseCAM):
    r"""SSGrad-CAM with GradCAM++'s weights, extended to a score that reads only a part of the map.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k w_k\, S^k \odot A^k\Big),\quad
        w_k = \sum_{ij} \alpha^k_{ij} \mathrm{ReLU}(g^k_{ij}),\quad
        \alpha^k_{ij} = \frac{(g^k_{ij})^2}{2 (g^k_{ij})^2 M^k_{ij} + \sum_{ab} A^k_{ab} M^k_{ab} (g^k_{ij})^3}

    with g the gradient of the score (its exponential's derivatives are taken, as in GradCAM++), S the space map of
    SSGrad-CAM, and M the places of a channel that the detection reads: those at which the gradient is not 0. Both sides
    of the fraction are divided by the square, so that small gradients do not vanish behind a constant.

    Yamauchi, *Spatial Sensitive Grad-CAM++: Improved Visual Explanation for Object Detectors via Weighted Combination
    of Gradient Map*, CVPR Workshops 2024,
    https://openaccess.thecvf.com/content/CVPR2024W/XAI4CV/html/Yamauchi_Spatial_Sensitive_Grad-CAM_Improved_Visual_Explanation_for_Object_Detectors_via_CVPRW_2024_paper.html.
    """

    name = "ssgradcamplusplus"
    paper = "Yamauchi, Spatial Sensitive Grad-CAM++, CVPR Workshops 2024 (XAI4CV)"
    cost = "1 forward, 1 backward a target"
    use = "boxes: Grad-CAM++ weighted by place"

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        read = gradients != 0
        total = (activations * read).sum((2, 3), keepdim=True)
        positive = gradients.clamp(min=0)
        weights = (positive / (2 + total * positive)).sum((2, 3), keepdim=True)
        return weights * space_map(gradients) * activations
