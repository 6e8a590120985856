"""Seg-HiRes-Grad CAM."""

from __future__ import annotations

from detcam.methods.hires_cam import HiResCAM


class SegHiResCAM(HiResCAM):
    r"""HiResCAM of a class's logits over a region of the image.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \frac{\partial \sum_{p \in M} y_p}{\partial A^k} \odot A^k\Big)

    The formula is HiResCAM's; the target, a `MaskTarget` over the pixels M, is what makes it a segmentation's map.

    Rheude et al., *Leveraging CAM Algorithms for Explaining Medical Semantic Segmentation*, MELBA 2024,
    https://arxiv.org/abs/2409.20287.
    """

    name = "seghirescam"
    paper = "Rheude et al., Seg-HiRes-Grad CAM, MELBA 2024, https://arxiv.org/abs/2409.20287"
    cost = "1 forward, 1 backward a target"
    use = "a class over a region: keeps the place"
