"""Seg-HiRes-Grad CAM."""

from __future__ import annotations

from detcam.methods.hires_cam import HiResCAM


class SegHiResCAM(HiResCAM):
    r"""HiResCAM of a class's logits summed over a region of the image.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \frac{\partial \sum_{p \in M} y_p}{\partial A^k} \odot A^k\Big)

    with :math:`A^k` channel k of the target layer's activation and :math:`y_p` the class's logit at pixel p. The
    formula is that of `HiResCAM`; the target, a `MaskTarget` over the pixels M, makes it a map for segmentation.

    Rheude et al., *Leveraging CAM Algorithms for Explaining Medical Semantic Segmentation*, MELBA 2024,
    https://arxiv.org/abs/2409.20287.

    Use it for a class over a region in semantic segmentation.
    """

    name = "seghirescam"
    paper = "Rheude et al., Seg-HiRes-Grad CAM, MELBA 2024, https://arxiv.org/abs/2409.20287"
    cost = "1 forward, 1 backward per target"
    use = "a class over a region: preserves position"
