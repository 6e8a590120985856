"""The smallest regions: how few pixels keep the score up, and how few it takes to bring it down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from detcam.metrics.base import Explainer, read_metric_input, warn_about_skipped
from detcam.metrics.curves import CurveMetric, CurveSettings, Kind, curve_scores
from detcam.metrics.scoring import ScoredImage, collected, examine


class RegionMetric(CurveMetric):
    """What the smallest regions share.

    Args:
        fraction: of the unchanged image's score, in (0, 1].
        threshold: the score itself, in place of a fraction.
        settings: how curves are made; shares are first tried 1/steps apart, then 1/steps^2.
        **changes: settings by name.
    """

    range = (0.0, 1.0)
    higher_is_better = False
    kind: ClassVar[Kind]

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

    def reached(self, scores: Tensor, limits: Tensor) -> Tensor:
        """Where scores (n, S) do what the region is to do, given limits (n, 1)."""
        return scores >= limits if self.kind == "insertion" else scores < limits

    def measure(
        self,
        adapter: Any,
        images: Any,
        targets: Any,
        heatmaps: Any,
        *,
        truth: Sequence[Tensor] | None = None,
        method: Explainer | None = None,
    ) -> Tensor:
        question = read_metric_input(adapter, images, targets, heatmaps)
        how = self.settings
        answers = examine(
            question, self._regions, protocol=how.protocol, batch_size=how.batch_size, probability=how.probability
        )
        return warn_about_skipped(self.name, collected(answers))

    def _regions(self, case: ScoredImage) -> Tensor:
        """The smallest share (N,) for each heatmap of an image."""
        values = torch.full((len(case.heatmaps),), float("nan"), dtype=torch.float64)
        original = torch.ones_like(case.original) if self.settings.relative else case.original
        limits = self.fraction * original if self.threshold is None else torch.full_like(original, self.threshold)
        chosen = [i for i in case.ordered if original[i] > 0 and original[i] >= limits[i]]
        if not chosen:
            return values
        steps = self.settings.steps
        apart = 1 / steps
        ends = torch.arange(1, steps + 1, dtype=torch.float64) * apart
        first = self._first(case, chosen, ends.expand(len(chosen), -1), limits)
        found = [(i, share) for i, share in zip(chosen, first, strict=True) if share is not None]
        if found:
            within = torch.stack([(share - apart + ends * apart).clamp(min=0) for _, share in found])
            finer = self._first(case, [i for i, _ in found], within, limits)
            for (i, coarse), fine in zip(found, finer, strict=True):
                values[i] = coarse if fine is None else fine
        return values

    def _first(self, case: ScoredImage, chosen: Sequence[int], shares: Tensor, limits: Tensor) -> list[float | None]:
        """The first share of each row that does it, in whole pixels, or None."""
        size = case.heatmaps[0].numel()
        shares = (shares * size).round() / size
        scores = curve_scores(case, chosen, shares, self.kind, self.settings)
        done = self.reached(scores, limits[list(chosen), None])
        rows = zip(shares.tolist(), done.tolist(), strict=True)
        return [next((share for share, yes in zip(*row, strict=True) if yes), None) for row in rows]


class SufficientRegion(RegionMetric):
    r"""Smallest share of pixels, most salient first, that alone keeps the score at a fraction of what it was.

    .. math:: \min \{ a : y(X^{+}_a) \ge f\, y(X) \}, \quad X^{+}_a = \text{the fill with the first share } a
        \text{ of } X \text{'s pixels in it}

    In [0, 1], lower is better. After the smallest sufficient region of Dabkowski and Gal, *Real Time Image Saliency
    for Black Box Classifiers*, NeurIPS 2017, https://arxiv.org/abs/1705.07857, with the heatmap's order in place of a
    mask. NaN where the unchanged image does not reach the threshold.

    Args:
        fraction: f, of the unchanged image's score, in (0, 1].
        threshold: the score itself, in place of a fraction.
        settings: how curves are made; shares are first tried 1/steps apart, then 1/steps^2.
        **changes: settings by name.
    """

    name = "sufficient_region"
    paper = "Dabkowski and Gal, Real Time Image Saliency, NeurIPS 2017, https://arxiv.org/abs/1705.07857"
    kind = "insertion"


class DestroyingRegion(RegionMetric):
    r"""Smallest share of pixels, most salient first, without which the score falls below a fraction of what it was.

    .. math:: \min \{ a : y(X^{-}_a) < f\, y(X) \}, \quad X^{-}_a = X \text{ with the first share } a
        \text{ of its pixels filled}

    In [0, 1], lower is better. After the smallest destroying region of Dabkowski and Gal, *Real Time Image Saliency
    for Black Box Classifiers*, NeurIPS 2017, https://arxiv.org/abs/1705.07857. NaN where the score never falls so low.

    Args:
        fraction: f, as in `SufficientRegion`.
        threshold: likewise.
        settings: likewise.
        **changes: likewise.
    """

    name = "destroying_region"
    paper = SufficientRegion.paper
    kind = "deletion"
