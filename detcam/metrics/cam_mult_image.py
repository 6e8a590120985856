"""Metrics on the product of image and heatmap: the score that remains where only salient pixels stay."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.metrics.perturbation_confidence import PerturbationConfidenceMetric
from detcam.metrics.scoring import Protocol

GRADCAMPP_PAPER = "Chattopadhay et al., Grad-CAM++, WACV 2018, https://arxiv.org/abs/1710.11063"


def multiply_tensor_with_cam(input_tensor: Tensor, cam: Tensor) -> Tensor:
    """The product of a network input (C, h, w) and a heatmap (h, w)."""
    return input_tensor * cam


class CamMultImageConfidenceChange(PerturbationConfidenceMetric):
    r"""Change of the score when the image is multiplied by the heatmap: :math:`y(X \odot H) - y(X)`.

    X is the image at the network's input, H the heatmap. In [-1, 1] for scores in [0, 1], higher is better. A heatmap
    of ones changes nothing and has the value 0, so report it together with a measure of the heatmap's size
    (`Complexity`). After Chattopadhay et al., *Grad-CAM++*, WACV 2018, https://arxiv.org/abs/1710.11063.

    Args:
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.
    """

    name = "confidence_change"
    paper = GRADCAMPP_PAPER
    higher_is_better = True

    def __init__(self, *, protocol: Protocol = "pinned", batch_size: int | None = None) -> None:
        super().__init__(multiply_tensor_with_cam, protocol=protocol, batch_size=batch_size)


class DropInConfidence(CamMultImageConfidenceChange):
    r"""Drop of the score when the image is multiplied by the heatmap: :math:`\max(0,\; y(X) - y(X \odot H))`.

    In [0, 1] for scores in [0, 1], lower is better. Chattopadhay et al., *Grad-CAM++*, WACV 2018,
    https://arxiv.org/abs/1710.11063.

    Args:
        relative: divide by y(X), as in the paper; the value is NaN where y(X) is not positive.
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.
    """

    name = "drop_in_confidence"
    higher_is_better = False
    range = (0.0, 1.0)

    def __init__(self, relative: bool = False, *, protocol: Protocol = "pinned", batch_size: int | None = None) -> None:
        super().__init__(protocol=protocol, batch_size=batch_size)
        self.relative = relative

    def combine(self, before: Tensor, after: Tensor) -> Tensor:
        drop = (before - after[:, 0]).clamp(min=0)
        return torch.where(before > 0, drop / before, torch.nan) if self.relative else drop


class IncreaseInConfidence(CamMultImageConfidenceChange):
    r"""Whether the score increases when the image is multiplied by the heatmap: 1 or 0.

    .. math:: [y(X \odot H) > y(X)]

    In [0, 1], higher is better; the mean over images is the rate of increase. Chattopadhay et al., *Grad-CAM++*,
    WACV 2018, https://arxiv.org/abs/1710.11063.

    Args:
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.
    """

    name = "increase_in_confidence"
    range = (0.0, 1.0)

    def combine(self, before: Tensor, after: Tensor) -> Tensor:
        return (after[:, 0] > before).double()
