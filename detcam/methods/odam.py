"""ODAM."""

from __future__ import annotations

from detcam.methods.hires_cam import HiResCAM


class ODAM(HiResCAM):
    r"""A map for each detected instance: gradients times activations where the box was made, no spatial mean.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \frac{\partial y_{box}}{\partial A^k} \odot A^k\Big)

    at the pyramid level that emitted the box, whose levels the other boxes' gradients do not touch. The formula is
    HiResCAM's; the target, one pinned box rather than a class, is what makes it an instance's map. The paper smooths
    the gradient locally as an option; its main results, and this class, do not.

    Zhao and Chan, *ODAM: Gradient-based Instance-specific Visual Explanations for Object Detection*, ICLR 2023,
    https://openreview.net/forum?id=kJWcI39kXY.
    """

    name = "odam"
    paper = "Zhao and Chan, ODAM, ICLR 2023, https://openreview.net/forum?id=kJWcI39kXY"
