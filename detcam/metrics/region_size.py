"""Smallest regions: the fewest pixels that preserve the score, and the fewest whose removal destroys it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from detcam.metrics.curves import CurveKind, CurveMetric, CurveSettings, curve_scores
from detcam.metrics.metric_input import MetricImage
from detcam.metrics.scoring import ScoredImage


class RegionSizeMetric(CurveMetric, abstract=True):
    """Base class of metrics that search the smallest region.

    Args:
        fraction: fraction of the unchanged image's score that the region preserves or destroys, in (0, 1].
        threshold: absolute score, instead of a fraction.
        settings: settings of the curves; region sizes are searched in steps of 1 / S, then of 1 / S^2.
        **changes: single settings by name, as in `CurveSettings`.
    """

    range = (0.0, 1.0)
    higher_is_better = False
    kind: ClassVar[CurveKind]

    def __init__(
        self,
        fraction: float = 0.5,
        threshold: float | None = None,
        settings: CurveSettings | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(settings, **changes)
        if not 0 < fraction <= 1:
            raise ValueError(f"expected fraction in (0, 1]; got {fraction}")
        self.fraction = fraction
        self.threshold = threshold

    def value(self, image: MetricImage) -> Tensor:
        scored = self.settings.scored(image)
        values = torch.full((len(scored.heatmaps),), float("nan"), dtype=torch.float64)
        original = torch.ones_like(scored.original) if self.settings.relative else scored.original
        limits = self.fraction * original if self.threshold is None else torch.full_like(original, self.threshold)
        indices = [i for i in scored.ordered if original[i] > 0 and original[i] >= limits[i]]
        if not indices:
            return values
        step = 1 / self.settings.steps
        fractions = torch.arange(1, self.settings.steps + 1, dtype=torch.float64) * step
        coarse = self._smallest(scored, indices, fractions.expand(len(indices), -1), limits)
        reached = [(i, size) for i, size in zip(indices, coarse, strict=True) if size is not None]
        if reached:
            finer = torch.stack([(size - step + fractions * step).clamp(min=0) for _, size in reached])
            fine = self._smallest(scored, [i for i, _ in reached], finer, limits)
            for (i, coarse_size), fine_size in zip(reached, fine, strict=True):
                values[i] = coarse_size if fine_size is None else fine_size
        return values

    def _smallest(
        self, scored: ScoredImage, indices: Sequence[int], fractions: Tensor, limits: Tensor
    ) -> list[float | None]:
        """The first fraction of each row (n, S), in whole pixels, that reaches the limit; None where none does."""
        size = scored.heatmaps[0].numel()
        fractions = (fractions * size).round() / size
        scores = curve_scores(scored, indices, fractions, self.kind, self.settings)
        limit = limits[list(indices), None]
        reached = scores >= limit if self.kind == "insertion" else scores < limit
        rows = zip(fractions.tolist(), reached.tolist(), strict=True)
        return [next((fraction for fraction, yes in zip(*row, strict=True) if yes), None) for row in rows]


class SufficientRegion(RegionSizeMetric):
    r"""Smallest fraction of pixels, most salient first, that alone preserves a fraction of the score.

    .. math:: \min \{ a : y(X^{+}_a) \ge f\, y(X) \}, \quad X^{+}_a = \text{the fill with the first fraction } a
        \text{ of the pixels of } X

    In [0, 1], lower is better. After the smallest sufficient region of Dabkowski and Gal, *Real Time Image Saliency
    for Black Box Classifiers*, NeurIPS 2017, https://arxiv.org/abs/1705.07857, with the order of the heatmap instead
    of a learned mask. NaN where the unchanged image does not reach the threshold.

    Args:
        fraction: f, fraction of the unchanged image's score, in (0, 1].
        threshold: absolute score, instead of a fraction.
        settings: settings of the curves; region sizes are searched in steps of 1 / S, then of 1 / S^2.
        **changes: single settings by name, as in `CurveSettings`.
    """

    name = "sufficient_region"
    paper = "Dabkowski and Gal, Real Time Image Saliency, NeurIPS 2017, https://arxiv.org/abs/1705.07857"
    kind = "insertion"


class DestroyingRegion(RegionSizeMetric):
    r"""Smallest fraction of pixels, most salient first, whose removal lowers the score below a fraction of it.

    .. math:: \min \{ a : y(X^{-}_a) < f\, y(X) \}, \quad X^{-}_a = X \text{ with the first fraction } a
        \text{ of its pixels filled}

    In [0, 1], lower is better. After the smallest destroying region of Dabkowski and Gal, *Real Time Image Saliency
    for Black Box Classifiers*, NeurIPS 2017, https://arxiv.org/abs/1705.07857. NaN where the score never falls below
    the limit.

    Args:
        fraction: f, fraction of the unchanged image's score, in (0, 1].
        threshold: absolute score, instead of a fraction.
        settings: settings of the curves; region sizes are searched in steps of 1 / S, then of 1 / S^2.
        **changes: single settings by name, as in `CurveSettings`.
    """

    name = "destroying_region"
    paper = SufficientRegion.paper
    kind = "deletion"
