"""Seg-Grad-CAM."""

from __future__ import annotations

from detcam.methods.grad_cam import GradCAM


class SegGradCAM(GradCAM):
    r"""Grad-CAM of a class's logits summed over a region of the image.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big),\quad
        \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial \sum_{p \in M} y_p}{\partial A^k_{ij}}

    with :math:`A^k` channel k of the target layer's activation, of height h and width w, and :math:`y_p` the class's
    logit at pixel p. The formula is that of `GradCAM`; the target, a `MaskTarget` over the pixels M, makes it a map for
    segmentation.

    Vinogradova, Dibrov and Myers, *Toward Interpretable Semantic Segmentation via Gradient-weighted Class Activation
    Mapping*, AAAI 2020, https://arxiv.org/abs/2002.11434.

    Use it to compare with the paper; `SegHiResCAM` preserves the position of the evidence.
    """

    name = "seggradcam"
    paper = "Vinogradova et al., Seg-Grad-CAM, AAAI 2020, https://arxiv.org/abs/2002.11434"
    cost = "1 forward, 1 backward per target"
    use = "a class over a region, as in its paper"
