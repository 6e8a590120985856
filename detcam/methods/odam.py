"""ODAM."""

from __future__ import annotations

from detcam.methods.hires_cam import HiResCAM


class ODAM(HiResCAM):
    r"""A map for each detected instance: gradients times activations where the box was made, no spatial mean.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \frac{\partial y_{box}}{\partial A^k} \odot A^k\Big)

    at the pyramid levels that the box's score depends on. The formula is HiResCAM's; the target, one pinned box
    rather than a class, is what makes it an instance's map. The authors' released code computes the same.

    Zhao and Chan, *ODAM: Gradient-based Instance-specific Visual Explanations for Object Detection*, ICLR 2023,
    https://arxiv.org/abs/2304.06354.
    """

    name = "odam"
    paper = "Zhao and Chan, ODAM, ICLR 2023, https://arxiv.org/abs/2304.06354"
    cost = "1 forward, 1 backward a target"
    use = "boxes: the default; one map per box, local and smooth"
