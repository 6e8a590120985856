"""ROAD: remove and debias. Pixels go in order of saliency, and noisy linear imputation hides where they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detcam.metrics.perturbation_confidence import PERCENTILES, Percentile, RemovalMetric
from detcam.metrics.scoring import Protocol
from detcam.perturbation.fills import LinearFill

ROAD_PAPER = "Rong et al., ROAD, ICML 2022, https://arxiv.org/abs/2202.00449"


class NoisyLinearImputer:
    """Noisy linear imputation of one image, see `detcam.perturbation.fills.LinearFill`.

    Args:
        noise: standard deviation of the noise on filled pixels.
        seed: of the noise.
    """

    def __init__(self, noise: float = 0.01, seed: int = 0) -> None:
        self.fill = LinearFill(noise, seed)

    def __call__(self, img: Tensor, mask: Tensor) -> Tensor:
        """An image (C, h, w) with the pixels filled in where the mask (h, w) is 0."""
        return self.fill(img[None], (mask == 0)[None])[0]


class ROADAverage(RemovalMetric):
    """What the ROAD metrics share: the mean over percentiles, with noisy linear imputation.

    Args:
        percentiles: from 0 to 100 each.
        noise: standard deviation of the imputation's noise, in the network input's units.
        seed: of the noise.
        protocol: how boxes are scored.
        batch_size: changed images per forward pass; None takes what suits the device.
    """

    paper = ROAD_PAPER

    def __init__(
        self,
        percentiles: Sequence[Percentile] = PERCENTILES,
        *,
        noise: float = 0.01,
        seed: int = 0,
        protocol: Protocol = "pinned",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(percentiles, LinearFill(noise, seed), protocol=protocol, batch_size=batch_size)


class ROADMostRelevantFirstAverage(ROADAverage):
    r"""Mean change of the score without the upper 100 - p percent of the pixels, over percentiles p.

    .. math:: \frac{1}{|P|} \sum_{p \in P} y(X \text{ imputed at or above percentile } p) - y(X)

    In [-1, 1] for scores in [0, 1], lower is better. Rong et al., *A Consistent and Efficient Evaluation Strategy for
    Attribution Methods* (ROAD), ICML 2022, https://arxiv.org/abs/2202.00449.

    Args:
        percentiles: as in `ROADAverage`.
        **options: likewise.
    """

    name = "road_most_relevant"
    higher_is_better = False
    orders = (False,)


class ROADLeastRelevantFirstAverage(ROADAverage):
    r"""Mean change of the score without the lower 100 - p percent of the pixels, over percentiles p.

    As `ROADMostRelevantFirstAverage`, with percentiles of one minus the heatmap. In [-1, 1] for scores in [0, 1],
    higher is better. Rong et al., ROAD, ICML 2022, https://arxiv.org/abs/2202.00449.

    Args:
        percentiles: as in `ROADAverage`.
        **options: likewise.
    """

    name = "road_least_relevant"
    higher_is_better = True
    orders = (True,)


class ROADMostRelevantFirst(ROADMostRelevantFirstAverage):
    r"""Change of the score without the salient pixels: :math:`y(X \text{ imputed where } H \ge h_p) - y(X)`.

    :math:`h_p` is the p-th percentile of the heatmap H. In [-1, 1] for scores in [0, 1], lower is better. Rong et al.,
    ROAD, ICML 2022, https://arxiv.org/abs/2202.00449.

    Args:
        percentile: from 0 to 100, or ``"auto"``.
        **options: as in `ROADAverage`.
    """

    name = "road_most_relevant_first"

    def __init__(self, percentile: Percentile = 80, **options: Any) -> None:
        super().__init__([percentile], **options)


class ROADLeastRelevantFirst(ROADLeastRelevantFirstAverage):
    r"""Change of the score without the other pixels: :math:`y(X \text{ imputed where } 1 - H \ge h_p) - y(X)`.

    :math:`h_p` is the p-th percentile of one minus the heatmap H. In [-1, 1] for scores in [0, 1], higher is better.
    Rong et al., ROAD, ICML 2022, https://arxiv.org/abs/2202.00449.

    Args:
        percentile: from 0 to 100, or ``"auto"``; 20 takes away the four fifths that matter least.
        **options: as in `ROADAverage`.
    """

    name = "road_least_relevant_first"

    def __init__(self, percentile: Percentile = 20, **options: Any) -> None:
        super().__init__([percentile], **options)


class ROADCombined(ROADAverage):
    r"""Least relevant first minus most relevant first, halved: how much more the salient pixels matter.

    .. math:: \frac{1}{2 |P|} \sum_{p \in P} y(X \text{ imputed where } 1 - H \ge h'_p)
        - y(X \text{ imputed where } H \ge h_p)

    In [-0.5, 0.5] for scores in [0, 1], higher is better; a random order is near 0. Rong et al., ROAD, ICML 2022,
    https://arxiv.org/abs/2202.00449, combined as in ``pytorch_grad_cam``.

    Args:
        percentiles: as in `ROADAverage`.
        **options: likewise.
    """

    name = "road"
    higher_is_better = True
    range = (-0.5, 0.5)
    orders = (True, False)

    def combine(self, before: Tensor, after: Tensor) -> Tensor:
        least, most = (part.mean(1) for part in after.chunk(2, dim=1))
        return (least - most) / 2
