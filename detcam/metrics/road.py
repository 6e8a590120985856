"""ROAD, remove and debias: removes pixels in order of saliency and fills them by noisy linear imputation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from detcam.metrics.perturbation_confidence import DEFAULT_PERCENTILES, Percentile, RemovalMetric
from detcam.metrics.scoring import Protocol
from detcam.perturbation.fills import LinearFill

ROAD_PAPER = "Rong et al., ROAD, ICML 2022, https://arxiv.org/abs/2202.00449"


class NoisyLinearImputer:
    """Noisy linear imputation of an image, see `detcam.perturbation.fills.LinearFill`.

    Args:
        noise: standard deviation of the noise on filled pixels.
        seed: seed of the noise.
    """

    def __init__(self, noise: float = 0.01, seed: int = 0) -> None:
        self.fill = LinearFill(noise, seed)

    def __call__(self, img: Tensor, mask: Tensor) -> Tensor:
        """The image (C, h, w) with the pixels filled where the mask (h, w) is 0."""
        return self.fill(img[None], (mask == 0)[None])[0]


class ROADAverage(RemovalMetric, abstract=True):
    """Base class of the ROAD metrics: the mean over percentiles, with noisy linear imputation.

    Args:
        percentiles: from 0 to 100 each.
        noise: standard deviation of the noise on filled pixels, in units of the network's input.
        seed: seed of the noise.
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.
    """

    paper = ROAD_PAPER

    def __init__(
        self,
        percentiles: Sequence[Percentile] = DEFAULT_PERCENTILES,
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
    Attribution Methods* (ROAD), ICML 2022, https://arxiv.org/abs/2202.00449. Arguments as in `ROADAverage`.
    """

    name = "road_most_relevant"
    higher_is_better = False
    orders = (False,)


class ROADLeastRelevantFirstAverage(ROADAverage):
    r"""Mean change of the score without the lower 100 - p percent of the pixels, over percentiles p.

    As `ROADMostRelevantFirstAverage`, with percentiles of one minus the heatmap. In [-1, 1] for scores in [0, 1],
    higher is better. Rong et al., ROAD, ICML 2022, https://arxiv.org/abs/2202.00449. Arguments as in `ROADAverage`.
    """

    name = "road_least_relevant"
    higher_is_better = True
    orders = (True,)


class ROADPercentile(ROADAverage, abstract=True):
    """Base class of the ROAD metrics at one percentile.

    Args:
        percentile: from 0 to 100, or ``"auto"``; None takes `default_percentile`.
        noise: standard deviation of the noise on filled pixels, in units of the network's input.
        seed: seed of the noise.
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.
    """

    default_percentile: ClassVar[int]

    def __init__(
        self,
        percentile: Percentile | None = None,
        *,
        noise: float = 0.01,
        seed: int = 0,
        protocol: Protocol = "pinned",
        batch_size: int | None = None,
    ) -> None:
        percentiles = [self.default_percentile if percentile is None else percentile]
        super().__init__(percentiles, noise=noise, seed=seed, protocol=protocol, batch_size=batch_size)


class ROADMostRelevantFirst(ROADPercentile):
    r"""Change of the score without the salient pixels: :math:`y(X \text{ imputed where } H \ge h_p) - y(X)`.

    :math:`h_p` is the p-th percentile of the heatmap H, by default the 80th. In [-1, 1] for scores in [0, 1], lower is
    better. Rong et al., ROAD, ICML 2022, https://arxiv.org/abs/2202.00449. Arguments as in `ROADPercentile`.
    """

    name = "road_most_relevant_first"
    higher_is_better = False
    orders = (False,)
    default_percentile = 80


class ROADLeastRelevantFirst(ROADPercentile):
    r"""Change of the score without the least salient pixels: :math:`y(X \text{ imputed where } 1 - H \ge h_p) - y(X)`.

    :math:`h_p` is the p-th percentile of one minus the heatmap H; 20, the default, removes the 80 % of the pixels that
    are least salient. In [-1, 1] for scores in [0, 1], higher is better. Rong et al., ROAD, ICML 2022,
    https://arxiv.org/abs/2202.00449. Arguments as in `ROADPercentile`.
    """

    name = "road_least_relevant_first"
    higher_is_better = True
    orders = (True,)
    default_percentile = 20


class ROADCombined(ROADAverage):
    r"""Half the difference between ROAD least relevant first and ROAD most relevant first.

    .. math:: \frac{1}{2 |P|} \sum_{p \in P} y(X \text{ imputed where } 1 - H \ge h'_p)
        - y(X \text{ imputed where } H \ge h_p)

    In [-0.5, 0.5] for scores in [0, 1], higher is better; the value of a random order is near 0. Rong et al., ROAD,
    ICML 2022, https://arxiv.org/abs/2202.00449, combined as in ``pytorch_grad_cam``. Arguments as in `ROADAverage`.
    """

    name = "road"
    higher_is_better = True
    range = (-0.5, 0.5)
    orders = (True, False)

    def combine(self, before: Tensor, after: Tensor) -> Tensor:
        least, most = (part.mean(1) for part in after.chunk(2, dim=1))
        return (least - most) / 2
