"""ImageArray times heatmap: what of the score is left where only the salient pixels stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detcam.metrics.perturbation_confidence import PerturbationConfidenceMetric

GRADCAMPP_PAPER = "Chattopadhay et al., Grad-CAM++, WACV 2018, https://arxiv.org/abs/1710.11063"


def multiply_tensor_with_cam(input_tensor: Tensor, cam: Tensor) -> Tensor:
    """An image (C, h, w) on the network's input times a heatmap (h, w)."""
    return input_tensor * cam


class CamMultImageConfidenceChange(PerturbationConfidenceMetric):
    r"""The change of the score where only the salient pixels stay: :math:`y(X \odot H) - y(X)`.

    X is the image on the network's input, H the heatmap. In [-1, 1] for scores in [0, 1], higher is better. A map of
    ones changes nothing and gives 0: read it beside a measure of how much the map keeps (`Complexity`). After
    Chattopadhay et al., *Grad-CAM++*, WACV 2018, https://arxiv.org/abs/1710.11063.

    Args:
        **options: as in `ConfidenceMetric`.
    """

    name = "confidence_change"
    paper = GRADCAMPP_PAPER
    higher_is_better = True

    def __init__(self, **options: Any) -> None:
        super().__init__(multiply_tensor_with_cam, **options)


class DropInConfidence(CamMultImageConfidenceChange):
    r"""The score's loss where only the salient pixels stay: :math:`\max(0,\; y(X) - y(X \odot H))`.

    In [0, 1] for scores in [0, 1], lower is better. Chattopadhay et al., *Grad-CAM++*, WACV 2018,
    https://arxiv.org/abs/1710.11063.

    Args:
        relative: divide by score(x), as the paper does; a score that is not above 0 then has no value.
        **options: as in `ConfidenceMetric`.
    """

    name = "drop_in_confidence"
    higher_is_better = False
    range = (0.0, 1.0)

    def __init__(self, relative: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.relative = relative

    def combine(self, before: Tensor, after: Tensor) -> Tensor:
        drop = (before - after[:, 0]).clamp(min=0)
        return torch.where(before > 0, drop / before, torch.nan) if self.relative else drop


class IncreaseInConfidence(CamMultImageConfidenceChange):
    r"""Whether the score rises where only the salient pixels stay: 1 or 0.

    .. math:: [y(X \odot H) > y(X)]

    In [0, 1], higher is better; the mean over images is the rate of increase. Chattopadhay et al., *Grad-CAM++*,
    WACV 2018, https://arxiv.org/abs/1710.11063.

    Args:
        **options: as in `ConfidenceMetric`.
    """

    name = "increase_in_confidence"
    range = (0.0, 1.0)

    def combine(self, before: Tensor, after: Tensor) -> Tensor:
        return (after[:, 0] > before).double()
