"""Deletion and insertion: how the score moves as pixels go or come, most salient first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detcam.metrics.base import Explainer, Metric, Need, read_metric_input, warn_about_skipped
from detcam.metrics.scoring import Protocol, ScoredImage, check_asking, examine
from detcam.perturbation.fills import Fill, fill_of

Kind = Literal["deletion", "insertion"]

RANKED = 2**24
"""Pixels of heatmaps that are put in order at once."""
RISE_PAPER = "Petsiuk et al., RISE, BMVC 2018, https://arxiv.org/abs/1806.07421"


@dataclass(frozen=True)
class Curve:
    """How one target's score moves.

    Attributes:
        shares: (S + 1,) float64, share of the image's pixels deleted or inserted, 0 to 1.
        scores: (S + 1,) float64, the score at each; NaN for a heatmap without an order.
    """

    shares: Tensor
    scores: Tensor

    @property
    def auc(self) -> float:
        """Area under the curve, by trapezia."""
        return float(torch.trapezoid(self.scores, self.shares))


@dataclass(frozen=True)
class CurveSettings:
    """How curves are made.

    Attributes:
        fill: what takes a removed pixel's place: ``"blur"``, ``"mean"``, ``"linear"`` or a `Fill`.
        steps: how many pixels' shares are scored, 1/steps apart.
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        relative: divide scores by the unchanged image's.
        probability: read the logit of a class, or of a class over a region, as a probability.
        batch_size: changed images per forward pass; None takes what suits the device.
        seed: of the order among pixels of equal saliency.
    """

    fill: str | Fill = "blur"
    steps: int = 20
    protocol: Protocol = "pinned"
    relative: bool = False
    probability: bool = True
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        fill_of(self.fill)
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"expected steps as a whole number of at least 1; got {self.steps!r}")
        check_asking(self.protocol, self.batch_size)


def ranks(heatmaps: Tensor, seed: int = 0) -> Tensor:
    """Each pixel's place (N, h, w) int64 in the order of saliency, 0 the most salient; equal pixels in random order.

    Ties are common (all that a rectified map leaves at 0), and an order by rows would be evidence of its own.
    """
    flat = heatmaps.flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(flat.shape[1]).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(heatmaps.shape)


def curve_scores(
    case: ScoredImage, chosen: Sequence[int], shares: Tensor, kind: Kind, settings: CurveSettings
) -> Tensor:
    """Scores (n, S) of some heatmaps' targets with shares (n, S) of the pixels deleted, or inserted into the fill."""
    size = case.heatmaps[0].numel()
    together = max(1, RANKED // size)
    if len(chosen) > together:
        parts = [slice(start, start + together) for start in range(0, len(chosen), together)]
        return torch.cat([curve_scores(case, chosen[part], shares[part], kind, settings) for part in parts])
    places = ranks(case.heatmaps[list(chosen)], settings.seed)
    counts = (shares * size).round().long()
    scores = case.original[list(chosen), None].expand(counts.shape).clone()
    asked = (counts != (0 if kind == "deletion" else size)).nonzero()  # else the image is as it was
    rows, steps = asked.unbind(1)
    fill = fill_of(settings.fill).for_image(case.image)

    def change(part: slice) -> Tensor:
        first = places[rows[part]] < counts[rows[part], steps[part]][:, None, None]
        removed = first if kind == "deletion" else ~first
        return fill(removed.to(case.image.device))

    scores[rows, steps] = case.scores([chosen[row] for row in rows.tolist()], change)
    return scores / case.original[list(chosen), None] if settings.relative else scores


def score_curves(
    adapter: Any,
    images: Any,
    targets: Any,
    heatmaps: Any,
    *,
    kind: Kind,
    settings: CurveSettings | None = None,
) -> list[Curve]:
    """The curve of each heatmap.

    Args:
        adapter: as in `Metric.measure`.
        images: likewise.
        targets: likewise.
        heatmaps: likewise.
        kind: ``"deletion"``, pixels go, most salient first; ``"insertion"``, they come, into the filled image.
        settings: how curves are made.

    Returns:
        one per heatmap, in the order of the images.
    """
    if kind not in ("deletion", "insertion"):
        raise ValueError(f"expected kind to be deletion or insertion; got {kind!r}")
    how = settings or CurveSettings()
    shares = torch.linspace(0, 1, how.steps + 1, dtype=torch.float64)

    def measure(case: ScoredImage) -> Tensor:
        scores = torch.full((len(case.heatmaps), len(shares)), float("nan"), dtype=torch.float64)
        if case.ordered:
            wanted = shares.expand(len(case.ordered), -1)
            scores[case.ordered] = curve_scores(case, case.ordered, wanted, kind, how)
        return scores

    question = read_metric_input(adapter, images, targets, heatmaps)
    answers = examine(question, measure, protocol=how.protocol, batch_size=how.batch_size, probability=how.probability)
    return [Curve(shares, row) for rows in answers if rows is not None for row in rows]


class CurveMetric(Metric):
    """What metrics along a curve share.

    Args:
        settings: how curves are made.
        **changes: settings by name, as in `CurveSettings`.
    """

    tasks: ClassVar[tuple[str, ...]] = ("class", "box", "mask", "embedding")
    needs: ClassVar[frozenset[Need]] = frozenset({"model"})

    def __init__(self, settings: CurveSettings | None = None, **changes: Any) -> None:
        if settings is not None and changes:
            raise ValueError(f"expected settings, or {', '.join(changes)} by name; got both")
        self.settings = settings or CurveSettings(**changes)


class Deletion(CurveMetric):
    r"""Area under the score as pixels are deleted, most salient first: low where the map finds what the score needs.

    .. math:: \sum_{s=1}^{S} \frac{y(X_{s-1}) + y(X_s)}{2S}, \quad X_s = X \text{ with the first } s/S
        \text{ of its pixels filled}

    In [0, 1] for scores in [0, 1], lower is better. Petsiuk et al., *RISE*, BMVC 2018,
    https://arxiv.org/abs/1806.07421.

    Args:
        settings: how curves are made.
        **changes: settings by name, as in `CurveSettings`.
    """

    name = "deletion"
    paper = RISE_PAPER
    higher_is_better = False
    range = (0.0, 1.0)
    kind: ClassVar[Kind] = "deletion"

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
        found = score_curves(adapter, images, targets, heatmaps, kind=self.kind, settings=self.settings)
        values = torch.tensor([curve.auc for curve in found], dtype=torch.float64)
        return warn_about_skipped(self.name, values)


class Insertion(Deletion):
    r"""Area under the score as pixels come into the filled image, most salient first: high for a faithful map.

    .. math:: \sum_{s=1}^{S} \frac{y(X_{s-1}) + y(X_s)}{2S}, \quad X_s = \text{the fill with the first } s/S
        \text{ of } X \text{'s pixels in it}

    In [0, 1] for scores in [0, 1], higher is better. Petsiuk et al., *RISE*, BMVC 2018,
    https://arxiv.org/abs/1806.07421.

    Args:
        settings: how curves are made.
        **changes: settings by name, as in `CurveSettings`.
    """

    name = "insertion"
    higher_is_better = True
    kind = "insertion"


class InsertionMinusDeletion(CurveMetric):
    """The area of `Insertion` minus that of `Deletion`.

    In [-1, 1] for scores in [0, 1], higher is better; a random order is near 0. Zhang et al., *Group-CAM*, 2021,
    https://arxiv.org/abs/2103.13859.

    Args:
        settings: how curves are made.
        **changes: settings by name, as in `CurveSettings`.
    """

    name = "overall"
    paper = "Zhang et al., Group-CAM, 2021, https://arxiv.org/abs/2103.13859"
    higher_is_better = True
    range = (-1.0, 1.0)

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
        areas = [
            torch.tensor(
                [c.auc for c in score_curves(adapter, images, targets, heatmaps, kind=kind, settings=self.settings)],
                dtype=torch.float64,
            )
            for kind in ("insertion", "deletion")
        ]
        return warn_about_skipped(self.name, areas[0] - areas[1])
