"""Seg-Grad-CAM."""

from __future__ import annotations

from detcam.methods.grad_cam import GradCAM


class SegGradCAM(GradCAM):
    r"""GradCAM of a class's logits over a region of the image.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big),\quad
        \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial \sum_{p \in M} y_p}{\partial A^k_{ij}}

    The formula is GradCAM's; the target, a `MaskTarget` over the pixels M, is what makes it a segmentation's map.

    Vinogradova, Dibrov and Myers, *Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation
    Mapping*, AAAI 2020, https://arxiv.org/abs/2002.11434.
    """

    name = "seggradcam"
    paper = "Vinogradova et al., Seg-Grad-CAM, AAAI 2020, https://arxiv.org/abs/2002.11434"
    cost = "1 forward, 1 backward a target"
    use = "a class over a region, as its paper does it"
