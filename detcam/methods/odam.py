"""ODAM."""

from __future__ import annotations

from detcam.methods.hires_cam import HiResCAM


class ODAM(HiResCAM):
    r"""One map per detected instance: gradients times activations at the levels that produce the box.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \frac{\partial y_{box}}{\partial A^k} \odot A^k\Big)

    with :math:`A^k` channel k of a pyramid level that the box's score :math:`y_{box}` depends on. The formula is that
    of `HiResCAM`; the target, one box pinned to its source instead of a class, makes the map specific to an instance.
    The authors' released code computes the same.

    Zhao and Chan, *ODAM: Gradient-based Instance-specific Visual Explanations for Object Detection*, ICLR 2023,
    https://arxiv.org/abs/2304.06354.

    Use it for boxes; it is the default for detectors.
    """

    name = "odam"
    paper = "Zhao and Chan, ODAM, ICLR 2023, https://arxiv.org/abs/2304.06354"
    cost = "1 forward, 1 backward per target"
    use = "boxes: the default; one map per box, local and smooth"
