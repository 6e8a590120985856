"""ROAD: remove and debias. Pixels go in order of saliency, and noisy linear imputation hides where they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detcam.metrics.imputation import LinearFill
from detcam.metrics.perturbation_confidence import PERCENTILES, Percentile, RemovalMetric
from detcam.metrics.scoring import Protocol

ROAD_PAPER = "Rong et al., ROAD, ICML 2022, https://arxiv.org/abs/2202.00449"


class NoisyLinearImputer:
    """Noisy linear imputation of one picture, see `detcam.metrics.imputation.LinearFill`.

    Args:
        noise: standard deviation of the noise on filled pixels.
        seed: of the noise.
    """

    def __init__(self, noise: float = 0.01, seed: int = 0) -> None:
        self.fill = LinearFill(noise, seed)

    def __call__(self, img: Tensor, mask: Tensor) -> Tensor:
        """A picture (C, h, w) with the pixels filled in where the mask (h, w) is 0."""
        return self.fill(img[None], (mask == 0)[None])[0]


class ROADAverage(RemovalMetric):
    """What the ROAD metrics share: the mean over percentiles, with noisy linear imputation.

    Args:
        percentiles: from 0 to 100 each.
        noise: standard deviation of the imputation's noise, in the network input's units.
        seed: of the noise.
        protocol: how boxes are scored.
        batch_size: changed pictures per forward pass; None takes what suits the device.
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
    """Mean change of the score without the upper 100 - p percent of the pixels: the lower, the better."""

    name = "road_most_relevant"
    higher_is_better = False
    orders = (False,)


class ROADLeastRelevantFirstAverage(ROADAverage):
    """Mean change of the score without the lower 100 - p percent of the pixels: the higher, the better."""

    name = "road_least_relevant"
    higher_is_better = True
    orders = (True,)


class ROADMostRelevantFirst(ROADMostRelevantFirstAverage):
    """Change of the score without the pixels at or above a percentile of the heatmap: the lower, the better.

    Args:
        percentile: from 0 to 100, or ``"auto"``.
        **options: as in `ROADAverage`.
    """

    name = "road_most_relevant_first"

    def __init__(self, percentile: Percentile = 80, **options: Any) -> None:
        super().__init__([percentile], **options)


class ROADLeastRelevantFirst(ROADLeastRelevantFirstAverage):
    """Change of the score without the pixels at or above a percentile of one minus the heatmap: the higher, the better.

    Args:
        percentile: from 0 to 100, or ``"auto"``; 20 takes away the four fifths that matter least.
        **options: as in `ROADAverage`.
    """

    name = "road_least_relevant_first"

    def __init__(self, percentile: Percentile = 20, **options: Any) -> None:
        super().__init__([percentile], **options)


class ROADCombined(ROADAverage):
    """(least relevant first - most relevant first) / 2, over percentiles: the higher, the better.

    Where the score moves between 0 and 1, it lies in [-0.5, 0.5]; a random order is near 0.
    """

    name = "road"
    higher_is_better = True
    range = (-0.5, 0.5)
    orders = (True, False)

    def combine(self, before: Tensor, after: Tensor) -> Tensor:
        least, most = (part.mean(1) for part in after.chunk(2, dim=1))
        return (least - most) / 2
